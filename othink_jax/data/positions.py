"""M-RoPE positions of a prompt, in numpy."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int


def mrope_positions(
    is_image: Bool[np.ndarray, " p"], grids: Sequence[tuple[int, int]]
) -> Int[np.ndarray, "3 p"]:
    """M-RoPE positions (Qwen2-VL, section 2.1): temporal, height and width of each token.

    Text counts on along all three axes. An image's tokens share one temporal position, and their
    rows and columns count from there; text after it goes on past the largest of them.

    Args:
      is_image: true at the placeholders, one a merge window.
      grids: rows and columns of merge windows of each image, in order.

    Returns:
      int32 positions.
    """
    positions = np.zeros((3, len(is_image)), np.int32)
    token, following = 0, 0
    for rows, columns in grids:
        start = token + int(np.argmax(is_image[token:]))
        positions[:, token:start] = following + np.arange(start - token)
        following += start - token
        token = start + rows * columns
        positions[0, start:token] = following
        positions[1, start:token] = following + np.repeat(np.arange(rows), columns)
        positions[2, start:token] = following + np.tile(np.arange(columns), rows)
        following += max(rows, columns)
    positions[:, token:] = following + np.arange(len(is_image) - token)
    return positions
