"""Reading and writing weights: Hugging Face's layout, Orbax, runs and their checkpoints."""
