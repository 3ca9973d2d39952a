"""Training by GRPO and SFT: runs, run directories, compiled programs, device parallelism."""
