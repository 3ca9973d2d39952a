"""Vision-language models of the Qwen families in Flax NNX, and what is computed with them."""
