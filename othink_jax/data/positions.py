"""M-RoPE positions of a prompt, in numpy."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int


def mrope_positions(
    is_visual: Bool[np.ndarray, " p"],
    grids: Sequence[tuple[int, int, int]],
    intervals: Sequence[float] | None = None,
) -> Int[np.ndarray, "3 p"]:
    """M-RoPE positions (Qwen2-VL, section 2.1): temporal, height and width of each token.

    Text advances all three axes together. The time steps, rows and columns of an image (one step)
    or a video count from the end of the text before it. Text after it continues past the larger of
    rows and columns, as in transformers 5; in the paper, past the steps too. On the temporal axis,
    a video of more time steps than max(rows, columns) therefore reaches into the text after it.

    Args:
      is_visual: true at the placeholders, one per merge window and time step.
      grids: time steps, rows and columns of merge windows of each image or video, in order.
      intervals: temporal positions between the time steps of each, rounded down at every step
        (Qwen2.5-VL, arXiv 2502.13923, section 2.1.3: absolute time); 1 if not given.

    Returns:
      int32 positions.
    """
    positions = np.zeros((3, len(is_visual)), np.int32)
    token, following = 0, 0
    for grid, interval in zip(grids, intervals or [1] * len(grids), strict=True):
        start = token + int(np.argmax(is_visual[token:]))
        positions[:, token:start] = following + np.arange(start - token)
        following += start - token
        token = start + int(np.prod(grid))
        steps, rows, columns = np.indices(grid).reshape(3, -1)
        steps = np.floor(steps * interval)
        positions[:, start:token] = following + np.stack([steps, rows, columns])
        following += max(grid[1:])
    positions[:, token:] = following + np.arange(len(is_visual) - token)
    return positions
