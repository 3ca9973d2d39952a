"""Qwen2-VL and Qwen2.5-VL in Flax NNX, and what is computed with them."""
