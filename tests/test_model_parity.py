"""The model computes what transformers computes: image features, every layer, logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration as Peer

from othink_jax.checkpoint import hf
from othink_jax.checkpoint.load import abstract_model
from othink_jax.config import ComputeConfig
from othink_jax.model.config import WindowsConfig
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.vlm import merge
from tests.model_cases import (
    IMAGE,
    VOCAB,
    close,
    layers_and_logits,
    load_hub,
    make_config,
    random_case,
    to_prompts,
)
from tests.peers import make_peer, recorded_layers, run_peer, scale_weights

TOLERANCE = 2e-5

# Shape and, for each prompt of the batch, the images in it.
SHAPES = {
    "grouped-query, tied": (make_config(), [[(2, 3)], [], [(1, 1), (3, 1)]]),
    "multi-head, untied": (
        make_config(
            heads=2, kv_heads=2, section=(1, 1, 2), depth=1, vision_depth=3, tied=False,
            vision={"intermediate_size": 128, "num_heads": 4},
        ),
        [[(4, 2)], [(1, 1)]],
    ),
    "multi-query, deep": (
        make_config(heads=6, kv_heads=1, section=(2, 2, 2), depth=4, vision_depth=1),
        [[], [(1, 5)], [(2, 2), (2, 2), (1, 3)]],
    ),
    "wide heads, large theta": (
        make_config(
            heads=2, kv_heads=1, section=(4, 6, 6), tied=False,
            text={"rope_theta": 1_000_000.0, "rms_norm_eps": 1e-5, "intermediate_size": 80},
        ),
        [[(3, 4)], [(1, 2), (2, 1)], []],
    ),
    "patches of 14 pixels, windows of one": (
        make_config(
            heads=4, kv_heads=4, section=(2, 1, 1), depth=3,
            vision={
                "patch_size": 14, "spatial_merge_size": 1, "embed_dim": 48, "intermediate_size": 96,
                "num_heads": 4,
            },
        ),
        [[(3, 3)], [(1, 1)]],
    ),
    "one frame, windows of nine": (
        make_config(
            heads=8, kv_heads=4, section=(1, 2, 1), vision_depth=1, tied=False,
            vision={"temporal_patch_size": 1, "spatial_merge_size": 3, "num_heads": 1},
        ),
        [[(2, 1)], [(1, 1), (1, 2)]],
    ),
    "Qwen2.5-VL, windows cut by the border": (
        make_config(
            family="qwen2_5_vl", vision_depth=3,
            vision={"windows": WindowsConfig(window_size=16, full_layers=(1,))},
        ),
        [[(5, 7)], [], [(1, 1), (3, 4)]],
    ),
    "Qwen2.5-VL, no layer sees all": (
        make_config(
            family="qwen2_5_vl", heads=2, kv_heads=1, section=(1, 2, 1), vision_depth=1, tied=False,
            vision={
                "intermediate_size": 44, "windows": WindowsConfig(window_size=8, full_layers=()),
            },
        ),
        [[(2, 3)], [(4, 1)]],
    ),
    "Qwen3-VL": (
        make_config(
            family="qwen3_vl", depth=3, vision_depth=3,
            vision={"deepstack": (0, 2), "position_grid": 5}, text={"head_dim": 16},
        ),
        [[(5, 7)], [], [(1, 1), (3, 4)]],
    ),
    "Qwen3-VL, heads wider than the states": (
        make_config(
            family="qwen3_vl", heads=2, kv_heads=1, section=(3, 2, 1), vision_depth=2, tied=False,
            text={"hidden_size": 10},
            vision={"intermediate_size": 44, "hidden_size": 10, "deepstack": ()},
        ),
        [[(2, 3)], [(4, 1)]],
    ),
    "no image at all": (make_config(section=(4, 2, 2), depth=1), [[], []]),
}  # fmt: skip


@functools.cache
def load_both(name, directory):
    """The peer, and what we load of the files that it writes."""
    config, _ = SHAPES[name]
    peer = make_peer(config)
    peer.save_pretrained(directory)
    loaded = hf.load_config(directory)
    assert loaded == config
    graphdef, abstract = abstract_model(config)
    params = load_hub(directory, config)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract)
    return peer, graphdef, params


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("peers")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("together", [False, True], ids=["alone", "batch"])
def test_features_layers_and_logits_are_those_of_transformers(name, together, place):
    config, layouts = SHAPES[name]
    peer, graphdef, params = load_both(name, place / name)
    rng = np.random.default_rng(1)
    cases = [random_case(rng, config, grids) for grids in layouts]

    @jax.jit
    def run(params, prompts):
        model = merge(graphdef, params)
        hidden, prefix = model.prefill(prompts)
        images = model.encode_images(prompts) if prompts.patches.shape[1] else None
        return images, prefix, model.logits(hidden)

    expected = [run_peer(peer, config, case) for case in cases]
    # Alone, a prompt has no padding at all; in the batch, every kind of it.
    widest = max(len(case.tokens) for case in cases)
    batches = [cases] if together else [[case] for case in cases]
    rows = []
    for batch in batches:
        prompts = to_prompts(config, batch, tokens=widest + 3 if together else None)
        images, prefix, logits = run(params, prompts)
        rows += [
            jax.tree.map(lambda leaf, row=row: leaf[row], (prompts, images, prefix, logits))
            for row in range(len(batch))
        ]
    for case, peers, (prompts, images, prefix, logits) in zip(cases, expected, rows, strict=True):
        count = len(case.tokens)
        if case.grids:
            features = images[prompts.image_index[:count][case.tokens == IMAGE]]
            seen = peer.model.visual(
                torch.tensor(np.concatenate(case.pixels)),
                grid_thw=torch.tensor(
                    [
                        [1, *(side * config.vision.spatial_merge_size for side in grid)]
                        for grid in case.grids
                    ]
                ),
            )
            theirs = [seen.pooler_output, *getattr(seen, "deepstack_features", ())]
            close(features, torch.cat(theirs, dim=-1), TOLERANCE, "image features")
        for number, layer in enumerate(peers.past_key_values.layers):
            for kind in ("keys", "values"):
                own = getattr(prefix, kind)[number][:count]
                theirs = getattr(layer, kind)[0].transpose(0, 1)
                close(own, theirs, TOLERANCE, f"{kind} of text layer {number}")
        assert 0.3 < peers.logits.std() < 3
        close(logits[:count], peers.logits[0], TOLERANCE, "logits")


@pytest.mark.parametrize("name", ["grouped-query, tied", "wide heads, large theta"])
def test_completion_log_probs_are_those_of_the_whole_text_in_transformers(name, place):
    config, layouts = SHAPES[name]
    peer, graphdef, params = load_both(name, place / name)
    rng = np.random.default_rng(2)
    cases = [random_case(rng, config, grids) for grids in layouts]
    completions = rng.integers(0, VOCAB - 10, (len(cases), 3, 5)).astype(np.int32)
    own = jax.jit(
        lambda params, prompts: completion_logp(
            merge(graphdef, params), prompts, jnp.asarray(completions), chunk=7
        )
    )(params, to_prompts(config, cases, tokens=40))
    for row, case in enumerate(cases):
        for number, completion in enumerate(completions[row]):
            logits = run_peer(peer, config, case, completion.tolist()).logits[0]
            logp = logits.log_softmax(dim=-1)[len(case.tokens) - 1 : -1]
            theirs = logp[torch.arange(5), torch.tensor(completion)]
            close(own[row, number], theirs, TOLERANCE)


@pytest.mark.parametrize("name", ["grouped-query, tied", "multi-query, deep"])
def test_every_layer_puts_out_what_that_of_transformers_does(name, place):
    config, _ = SHAPES[name]
    peer, graphdef, params = load_both(name, place / name)
    case = random_case(np.random.default_rng(4), config, [(2, 3), (4, 1), (2, 2)])
    prompts = to_prompts(config, [case])
    with recorded_layers(peer) as expected:
        run_peer(peer, config, case)
    states, _ = layers_and_logits(graphdef, params, prompts)
    for tower, real in (("vision", prompts.patch_mask[0]), ("text", 0)):
        assert len(states[tower]) == len(expected[tower])
        for number, (own, theirs) in enumerate(zip(states[tower], expected[tower], strict=True)):
            theirs = theirs.reshape(-1, theirs.shape[-1])
            close(own[real], theirs, TOLERANCE, f"{tower} layer {number}")


def test_bfloat16_is_no_farther_from_float32_than_in_transformers(tmp_path):
    """Root mean square of the error of the logits; the weights are those of a bf16 file.

    A long prompt and sharp attention, so that positions and scores have to be exact.
    """
    config = make_config(
        section=(8, 12, 12), depth=4, vision_depth=4, text={"intermediate_size": 512},
        vision={"embed_dim": 160, "intermediate_size": 640},
    )  # fmt: skip
    peer = make_peer(config, seed=2)
    scale_weights(peer, {"q_proj.weight": 3, "k_proj.weight": 3, "qkv.weight": 3})
    peer.bfloat16().save_pretrained(tmp_path)
    case = random_case(np.random.default_rng(5), config, [(6, 6), (3, 8)], words=150)

    def theirs(dtype):
        return run_peer(Peer.from_pretrained(tmp_path, dtype=dtype).eval(), config, case).logits[0]

    graphdef, _ = abstract_model(config, ComputeConfig(dtype="bfloat16"))
    params = load_hub(tmp_path, config, jnp.bfloat16)
    _, ours = layers_and_logits(graphdef, params, to_prompts(config, [case]))
    with torch.no_grad():
        exact, rounded = theirs(torch.float32).numpy(), theirs(torch.bfloat16).float().numpy()
    own, other = (np.sqrt(np.mean((made - exact) ** 2)) for made in (ours[0], rounded))
    assert own <= other
