"""M-RoPE positions: numbers checked by hand, and transformers' on random layouts."""

import functools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLConfig, Qwen2VLModel

from othink_jax.data.positions import mrope_positions


def test_text_counts_on_along_all_axes():
    expected = [[0, 1, 2, 3]] * 3
    positions = mrope_positions(np.zeros(4, bool), [])
    assert positions.dtype == np.int32
    np.testing.assert_array_equal(positions, expected)


def test_an_image_advances_positions_by_its_longer_side_only():
    # Two words, an image of 2 rows and 3 columns, two words.
    is_visual = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], bool)
    np.testing.assert_array_equal(
        mrope_positions(is_visual, [(1, 2, 3)]),
        [
            [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
            [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
            [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
        ],
    )


def test_the_steps_of_a_video_count_on_the_temporal_axis():
    # A word, a video of 3 steps, 1 row and 2 columns, two words.
    is_visual = np.array([0, 1, 1, 1, 1, 1, 1, 0, 0], bool)
    np.testing.assert_array_equal(
        mrope_positions(is_visual, [(3, 1, 2)]),
        [
            [0, 1, 1, 2, 2, 3, 3, 3, 4],
            [0, 1, 1, 1, 1, 1, 1, 3, 4],
            [0, 1, 2, 1, 2, 1, 2, 3, 4],
        ],
    )


def test_the_steps_of_a_video_are_apart_by_their_interval_rounded_down():
    # A word, a video of 3 steps 1.5 positions apart, 1 row and 1 column, a word.
    is_visual = np.array([0, 1, 1, 1, 0], bool)
    positions = mrope_positions(is_visual, [(3, 1, 1)], [1.5])
    np.testing.assert_array_equal(positions, [[0, 1, 2, 4, 2], [0, 1, 1, 1, 2], [0, 1, 1, 1, 2]])


@functools.cache
def peer_model(kind=Qwen2VLModel, kind_config=Qwen2VLConfig):
    with torch.device("meta"):  # its positions need no weights
        return kind(
            kind_config(
                text_config={
                    "hidden_size": 8,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 1,
                    "num_key_value_heads": 1,
                    "intermediate_size": 8,
                    "vocab_size": 8,
                },
                vision_config={
                    "depth": 1, "embed_dim": 8, "num_heads": 1, "hidden_size": 8,
                    "spatial_merge_size": 2,
                },
            )
        )  # fmt: skip


# An image (one step) or a video, and the number of words before it: at least one, for what a prompt
# shows stands between <|vision_start|> and <|vision_end|>.
shown = st.lists(
    st.tuples(
        st.sampled_from(["image", "video"]),
        st.integers(1, 9),
        st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12)),
    ),
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(
    shown=shown,
    last=st.integers(1, 9),
    fps=st.none() | st.sampled_from([0.5, 1.0, 2.0, 3.0, 24.0]),
)
def test_positions_are_those_of_transformers(shown, last, fps):
    """Of Qwen2-VL without `fps`; with it, frames a second, of Qwen2.5-VL."""
    types, grids = [], {"image": [], "video": []}
    for kind, words, (steps, rows, columns) in shown:
        grid = (1 if kind == "image" else steps, rows, columns)
        grids[kind].append([grid[0], 2 * rows, 2 * columns])
        types += [0] * words + [1 + (kind == "video")] * int(np.prod(grid))
    types = np.array(types + [0] * last, np.int32)
    peer, timing, steps_apart = peer_model(), {}, 1.0
    if fps is not None:
        peer = peer_model(Qwen2_5_VLModel, Qwen2_5_VLConfig)
        timing["second_per_grid_ts"] = [2 / fps] * len(shown)
        steps_apart = peer.config.vision_config.tokens_per_second * 2 / fps
    expected, deltas = peer.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.long),
        torch.tensor(types[None]),
        **{f"{kind}_grid_thw": torch.tensor(held) for kind, held in grids.items() if held},
        **timing,
    )
    intervals = [1.0 if kind == "image" else steps_apart for kind, *_ in shown]
    own = [(steps if kind == "video" else 1, *sides) for kind, _, (steps, *sides) in shown]
    positions = mrope_positions(types > 0, own, intervals)
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())
    assert positions.max() + 1 - len(types) == deltas.item()
