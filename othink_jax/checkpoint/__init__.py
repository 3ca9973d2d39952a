"""Weights in and out: Hugging Face's layout, Orbax, runs and their checkpoints."""
