"""Random chats: tokens, positions and patches are those of transformers, and find each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from othink_jax.data.processing import Processor
from tests.peers import PeerProcessor
from tests.test_processing_positions import peer_model
from tests.tiny_processor import noise, write_directory

BOUNDS = {"min_pixels": 28 * 28, "max_pixels": 84 * 84}

sides = st.integers(10, 120)
images = st.builds(noise, sides, sides, seed=st.integers(0, 9))
videos = st.builds(
    lambda width, height, count: [noise(width, height, seed=seed) for seed in range(count)],
    sides,
    sides,
    st.integers(1, 7),
)
parts = st.one_of(
    st.text("How many? 3\n", max_size=20).map(lambda text: {"type": "text", "text": text}),
    images.map(lambda image: {"type": "image", "image": image}),
    videos.map(lambda video: {"type": "video", "video": video}),
)
turns = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant"]),
        "content": st.one_of(st.text("Which? 4", max_size=9), st.lists(parts, max_size=4)),
    }
)
chats = st.lists(turns, min_size=1, max_size=3)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    directory = write_directory(tmp_path_factory.mktemp("tiny"))
    return Processor.from_pretrained(directory, **BOUNDS), PeerProcessor(directory, **BOUNDS)


@settings(max_examples=60, deadline=None)
@given(batch=st.lists(chats, min_size=1, max_size=3))
def test_random_chats_are_processed_as_in_transformers(both, batch):
    processor, peer = both
    prompts = processor.batch([processor.encode_chat(chat) for chat in batch])
    for row, chat in enumerate(batch):
        inputs = peer(chat)
        tokens, types = inputs["input_ids"], inputs["mm_token_type_ids"]
        mask = prompts.mask[row]
        assert mask[: tokens.shape[1]].all()
        assert not mask[tokens.shape[1] :].any()
        np.testing.assert_array_equal(prompts.tokens[row, mask], tokens[0])
        grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
        positions, _ = peer_model().get_rope_index(tokens, types, **grids)
        np.testing.assert_array_equal(prompts.positions[row][:, mask], positions[:, 0])
        # The placeholders, in order, point to the merged patches of what the chat shows, in order.
        index = prompts.image_index[row]
        np.testing.assert_array_equal(index[mask] >= 0, types[0] > 0)
        assert (index[~mask] == -1).all()
        width = 4 * prompts.patches.shape[-1]
        pointed = prompts.patches[row].reshape(-1, width)[index[index >= 0]]
        visuals = [pixels.reshape(-1, width) for _, pixels, _ in peer.visuals(chat)]
        expected = torch.cat([torch.zeros(0, width), *visuals])
        np.testing.assert_allclose(pointed, expected, rtol=0, atol=1e-6)
