"""Runs that trained adapters: the model they make, exported merged and as an adapter of PEFT."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from othink_jax.checkpoint.convert import to_adapter, to_hf
from othink_jax.checkpoint.load import abstract_model, load
from othink_jax.checkpoint.orbax_model import save_model
from othink_jax.checkpoint.store import TrainingStore
from othink_jax.checkpoint.tensors import in_memory
from othink_jax.config import (
    RUN_CHECKPOINTS,
    RUN_REFERENCE,
    ComputeConfig,
    DataConfig,
    GRPOConfig,
    LoRAConfig,
)
from othink_jax.digests import SUMS
from othink_jax.errors import UserError
from othink_jax.model.config import WindowsConfig
from othink_jax.model.vlm import merge
from othink_jax.training.grpo import GRPOTrainer
from othink_jax.training.partial import fresh_adapters, merge_params
from othink_jax.training.run_directory import RunDirectory
from othink_jax.training.state import TrainState
from tests.model_cases import IMAGE, make_config, random_case, random_params, save_hub, to_prompts
from tests.peers import KINDS, run_peer
from tests.tiny_processor import fitted, write_directory

LORA = LoRAConfig(lora_rank=3, lora_alpha=6.0)
WEIGHTS = "adapter_model.safetensors"
SHAPES = {
    "Qwen2-VL, tied": make_config(vision={"patch_size": 14}),
    # Its vision tower has layers that are called like those of the text tower.
    "Qwen2.5-VL, untied": make_config(
        family="qwen2_5_vl",
        tied=False,
        vision={
            "patch_size": 14,
            "intermediate_size": 44,
            "windows": WindowsConfig(window_size=56, full_layers=(1,)),
        },
    ),
    "Qwen3-VL, tied": make_config(family="qwen3_vl", vision={"patch_size": 14}),
}


def write_run(directory, config, *, train="lora"):
    """A run whose last checkpoint holds adapters that change much; returns all there is of it."""
    base = write_directory(directory / "base")
    config = fitted(config, base)
    params = random_params(config)[1]
    save_hub(base, config, params)
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0]), leaf.dtype),
        fresh_adapters(config, LORA, seed=0),
    )
    run = directory / "run"
    run.mkdir()
    data = DataConfig(task="counting")
    settings = GRPOConfig(model=str(base), out=run, data=data, train=train, lora=LORA)
    with RunDirectory(run).beginning(settings, 1, GRPOTrainer):
        save_model(run / RUN_REFERENCE, in_memory(config, params), companions=base)
    store = TrainingStore(run / RUN_CHECKPOINTS, keep=1)
    store.save(1, TrainState.create(adapters, optax.sgd(1.0)), {})
    store.close()
    return SimpleNamespace(
        base=base, run=run, config=config, params=params, adapters=adapters, out=directory / "out"
    )


@pytest.fixture(params=SHAPES)
def made(request, tmp_path):
    return write_run(tmp_path, SHAPES[request.param])


@pytest.fixture
def one(tmp_path):
    return write_run(tmp_path, SHAPES["Qwen2-VL, tied"])


def case_of(config):
    case = random_case(np.random.default_rng(2), config, [(2, 3)])
    shown = case.tokens == IMAGE
    return dataclasses.replace(
        case, tokens=np.where(shown, config.image_token_id, case.tokens).astype(np.int32)
    )


def logits_of(graphdef, params, config):
    prompts = to_prompts(config, [case_of(config)])

    def compute(params):
        model = merge(graphdef, params)
        return model.logits(model.prefill(prompts)[0])[0]

    return np.asarray(jax.jit(compute)(params))


def peer_of(directory):
    kind, _ = KINDS[AutoConfig.from_pretrained(directory).model_type]
    return kind.from_pretrained(directory, dtype=torch.float32).eval()


def peer_logits(peer, config):
    with torch.no_grad():
        return run_peer(peer, config, case_of(config)).logits[0].numpy()


def test_adapters_merged_exported_and_in_transformers_give_the_same_logits(made):
    """And they are no small change, nor one that merging could lose."""
    with_adapters, _ = abstract_model(made.config, ComputeConfig(lora=LORA))
    expected = logits_of(with_adapters, merge_params(made.params, made.adapters), made.config)
    loaded = load(made.run)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.float32)}
    merged = logits_of(loaded.graphdef, loaded.params, made.config)
    to_hf(made.run, made.out)
    exported = peer_logits(peer_of(made.out), made.config)
    base = logits_of(loaded.graphdef, made.params, made.config)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(exported, expected, rtol=0, atol=1e-4)
    assert np.abs(base - expected).mean() > 0.1


def test_the_adapter_file_holds_the_factors_of_the_modules_of_transformers(made):
    """Added by hand: W + alpha / r * B A, in each module that the file names."""
    to_adapter(made.run, made.out)
    tensors, peer = load_file(made.out / WEIGHTS), peer_of(made.base)
    settings = json.loads((made.out / "adapter_config.json").read_text())
    names = {name.rpartition(".lora_")[0] for name in tensors}
    assert len(tensors) == 2 * len(names) == 2 * 7 * made.config.text.num_hidden_layers
    for name in names:
        module = peer.get_submodule(name.removeprefix("base_model.model."))
        added = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        module.weight.data += settings["lora_alpha"] / settings["r"] * added
    with_adapters, _ = abstract_model(made.config, ComputeConfig(lora=LORA))
    expected = logits_of(with_adapters, merge_params(made.params, made.adapters), made.config)
    np.testing.assert_allclose(peer_logits(peer, made.config), expected, rtol=0, atol=1e-4)


def test_peft_loads_the_adapter_and_gives_the_logits_of_our_model(made):
    peft = pytest.importorskip("peft")
    to_adapter(made.run, made.out)
    peer = peft.PeftModel.from_pretrained(peer_of(made.base), made.out).eval()
    assert peft.get_peft_model_state_dict(peer).keys() == load_file(made.out / WEIGHTS).keys()
    with_adapters, _ = abstract_model(made.config, ComputeConfig(lora=LORA))
    expected = logits_of(with_adapters, merge_params(made.params, made.adapters), made.config)
    np.testing.assert_allclose(peer_logits(peer, made.config), expected, rtol=0, atol=1e-4)


def test_the_sum_is_made_in_f32_and_rounded_once(one):
    """To the dtype asked for, from the adapters in f32."""
    to_hf(one.run, one.out, dtype="bfloat16")
    stored = load_file(one.out / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert stored.dtype == torch.bfloat16
    kernel = np.float32(one.params["text"]["layers"][1]["down"]["kernel"])
    pair = one.adapters["text"]["layers"][1]["down"]
    exact = kernel + 2.0 * np.float64(pair["lora_a"]) @ np.float64(pair["lora_b"])
    expected = jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16).T
    assert (stored.float().numpy() == np.float32(expected)).mean() > 0.999


def test_an_adapter_is_cast_and_replaces_another_by_force_alone(one):
    to_adapter(one.run, one.out)
    with pytest.raises(UserError, match="--force"):
        to_adapter(one.run, one.out, dtype="bfloat16")
    to_adapter(one.run, one.out, dtype="bfloat16", force=True)
    assert {tensor.dtype for tensor in load_file(one.out / WEIGHTS).values()} == {torch.bfloat16}


def test_what_has_no_adapters_says_so(tmp_path, one):
    with pytest.raises(UserError, match="base has no adapters: it is no run directory"):
        to_adapter(one.base, one.out)
    other = write_run(tmp_path / "other", SHAPES["Qwen2-VL, tied"], train="text")
    with pytest.raises(UserError, match="run has no adapters: it was trained with --train text"):
        to_adapter(other.run, one.out)
    (one.run / RUN_CHECKPOINTS / "1").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="run has no adapters yet: it has no checkpoint"):
        to_adapter(one.run, one.out)
    assert not one.out.exists()


def test_a_checkpoint_of_another_rank_is_refused(one):
    record = json.loads((one.run / "config.json").read_text())
    record["config"]["lora"]["lora_rank"] = 4
    (one.run / "config.json").write_text(json.dumps(record))
    (one.run / SUMS).unlink()
    with pytest.raises(UserError, match=r"q\.lora_a is \(\d+, 3\), not \(\d+, 4\)"):
        load(one.run)
