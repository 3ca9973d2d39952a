"""Converting and exporting models: every bit kept, whole or not at all, nothing overwritten."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration as Peer

from othink_jax.checkpoint import hf
from othink_jax.checkpoint.convert import to_hf, to_orbax
from othink_jax.checkpoint.load import load, save_hf
from othink_jax.config import ComputeConfig
from othink_jax.digests import SUMS
from othink_jax.errors import UserError
from tests.model_cases import make_config, random_params, save_hub
from tests.tiny_processor import fitted, write_directory

WEIGHTS = "model.safetensors"
STORED = ComputeConfig(param_dtype="stored")


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def write_model(directory, *, tied=True, dtype="float32", shard="5GB"):
    """A whole model directory, tokenizer and all; returns it."""
    write_directory(directory)
    config = fitted(make_config(tied=tied, vision={"patch_size": 14}), directory)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_params(config)[1])
    save_hub(directory, config, params, max_shard_size=shard)
    return directory


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize(
    ("dtype", "tied", "shard"),
    [  # each dtype, tied or not, in one file or several; each pair of them once at least
        ("float32", False, "5GB"),
        ("float32", True, "100KB"),
        ("bfloat16", False, "100KB"),
        ("bfloat16", True, "5GB"),
        ("float16", False, "5GB"),
        ("float16", True, "100KB"),
    ],
)
def test_a_round_trip_through_orbax_keeps_every_bit(tmp_path, dtype, tied, shard):
    """HF -> Orbax -> HF: every tensor, dtype and key, and every other file; checksums are new."""
    first = write_model(tmp_path / "first", tied=tied, dtype=dtype, shard=shard)
    to_orbax(first, tmp_path / "orbax")
    stored = load(tmp_path / "orbax", compute=STORED)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(stored.params)} == {dtype}
    to_orbax(tmp_path / "orbax", tmp_path / "again")
    last = tmp_path / "last"
    to_hf(tmp_path / "again", last, max_shard_size=shard)
    files = len(list(last.glob("*.safetensors")))
    assert files == 1 if shard == "5GB" else files > 2
    assert {name: file for name, file in contents(last).items() if name != SUMS} == contents(first)


def test_tensors_of_several_dtypes_keep_theirs(model, tmp_path):
    tensors = load_file(model / WEIGHTS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.bfloat16)
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    again = load_file(save_hf(load(model, compute=STORED), tmp_path / "again") / WEIGHTS)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("named", [{}, {"torch_dtype": "float16"}, {"dtype": "float16"}], ids=str)
def test_transformers_loads_shards_in_the_dtype_they_are_stored_in(model, tmp_path, dtype, named):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | named))
    checkpoint = load(model, compute=ComputeConfig(param_dtype=dtype))
    made = save_hf(checkpoint, tmp_path / "made", max_shard_size="100KB")
    peer, info = Peer.from_pretrained(made, output_loading_info=True)
    assert not any(info.values()), info
    theirs = peer.model.language_model.layers[1].mlp.up_proj.weight.detach()
    assert theirs.dtype == getattr(torch, dtype)
    ours = checkpoint.params["text"]["layers"][1]["up"]["kernel"].astype("float32")
    np.testing.assert_array_equal(theirs.float().numpy().T, ours)


def test_a_model_is_replaced_by_force_alone_and_nothing_else_is(model, tmp_path):
    checkpoint = load(model)
    target = save_hf(checkpoint, tmp_path / "target")
    (target / WEIGHTS).write_bytes(b"old")
    with pytest.raises(UserError, match="--force"):
        save_hf(checkpoint, target)
    assert (target / WEIGHTS).read_bytes() == b"old"
    save_hf(checkpoint, target, force=True)
    equal(load(target).params, checkpoint.params)

    precious = tmp_path / "precious"
    precious.mkdir()
    # A config.json alone makes no model, and a run has weights and metrics too.
    for name in ("thesis.tex", "config.json", WEIGHTS):
        (precious / name).write_text("all of it")
        if name == WEIGHTS:
            (precious / "metrics.jsonl").write_text("")
        with pytest.raises(UserError, match="no model"):
            save_hf(checkpoint, precious, force=True)
        assert (precious / name).read_text() == "all of it"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "target", "precious"}


def test_an_interrupted_export_leaves_what_was_there(model, tmp_path, monkeypatch):
    checkpoint = load(model)
    target = save_hf(checkpoint, tmp_path / "target")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hf, "copy_companions", stop)
    with pytest.raises(KeyboardInterrupt):
        save_hf(checkpoint, target, force=True)
    equal(load(target).params, checkpoint.params)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "target"}


def test_a_full_disk_is_said_before_anything_is_written(model, tmp_path, monkeypatch):
    checkpoint = load(model)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"target needs 583\.2 kB, but .* has only 1\.0 kB free"):
        save_hf(checkpoint, tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
