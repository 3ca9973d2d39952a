"""Data sets, from tasks, files and the hub to batches of encoded prompts."""
