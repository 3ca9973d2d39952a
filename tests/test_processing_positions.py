"""M-RoPE positions: numbers checked by hand, and transformers' on random layouts."""

import functools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLConfig, Qwen2VLModel

from othink_jax.data.positions import mrope_positions


def test_text_counts_on_along_all_axes():
    expected = [[0, 1, 2, 3]] * 3
    positions = mrope_positions(np.zeros(4, bool), [])
    assert positions.dtype == np.int32
    np.testing.assert_array_equal(positions, expected)


def test_an_image_advances_positions_by_its_longer_side_only():
    # Two words, an image of 2 rows and 3 columns, two words.
    is_image = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], bool)
    np.testing.assert_array_equal(
        mrope_positions(is_image, [(2, 3)]),
        [
            [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
            [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
            [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
        ],
    )


@functools.cache
def _peer() -> Qwen2VLModel:
    with torch.device("meta"):  # its positions need no weights
        return Qwen2VLModel(
            Qwen2VLConfig(
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


# An image and the number of words before it: at least one, for the images of a prompt stand between
# <|vision_start|> and <|vision_end|>.
images = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)), max_size=4)


@settings(max_examples=200, deadline=None)
@given(images=images, last=st.integers(1, 9))
def test_positions_are_those_of_transformers(images, last):
    is_image = np.concatenate(
        [
            *[[False] * words + [True] * (rows * columns) for words, rows, columns in images],
            [False] * last,
        ]
    ).astype(bool)
    grids = [(rows, columns) for _, rows, columns in images]
    expected, deltas = _peer().get_rope_index(
        torch.zeros(1, len(is_image), dtype=torch.long),
        torch.tensor(is_image[None].astype(np.int32)),
        image_grid_thw=torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids])
        if grids
        else None,
    )
    positions = mrope_positions(is_image, grids)
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())
    assert positions.max() + 1 - len(is_image) == deltas.item()
