"""Weights that do not belong together, and files whose bits have changed: noticed, one line."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
from safetensors.numpy import load_file, save_file

from othink_jax.checkpoint.convert import to_adapter, to_hf, to_orbax
from othink_jax.checkpoint.load import load, save_hf
from othink_jax.digests import SUMS, check_sums
from othink_jax.errors import UserError
from tests.model_cases import make_config, random_params, save_hub
from tests.test_checkpoint_adapter import SHAPES, write_run
from tests.tiny_processor import fitted, write_directory

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def model(tmp_path):
    """A model in two shards and an index."""
    directory = write_directory(tmp_path / "model")
    shape = make_config(vision={"patch_size": 14}, depth=1, vision_depth=1)
    config = fitted(shape, directory)
    save_hub(directory, config, random_params(config)[1], max_shard_size="150KB")
    assert (directory / INDEX).is_file()
    return directory


def shards(directory):
    return sorted(directory.glob("model-*.safetensors"))


def refused(model, message):
    with pytest.raises(UserError, match=message) as caught:
        load(model)
    assert "\n" not in str(caught.value)


# Weights of two models


def test_a_whole_file_beside_an_index_of_others_is_refused(model):
    save_file(load_file(shards(model)[0]), model / WEIGHTS)
    refused(model, r"holds weights twice: the files that .*index\.json names, and model\.safetens")


def test_shards_that_the_index_does_not_name_are_refused(model):
    save_file(load_file(shards(model)[0]), model / "model-00001-of-00009.safetensors")
    refused(model, r"holds weights twice: .* and model-00001-of-00009\.safetensors; remove")


def test_shards_beside_a_whole_file_are_refused(model, tmp_path):
    whole = save_hf(load(model), tmp_path / "whole")
    shard = shards(model)[0]
    (whole / shard.name).write_bytes(shard.read_bytes())
    refused(whole, r"holds weights twice: model\.safetensors, and model-0")


def test_weights_of_another_kind_may_lie_beside_a_model(model):
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        save_file({}, model / name)
    load(model)


def test_weights_in_both_layouts_are_refused(model, tmp_path):
    to_orbax(model, tmp_path / "orbax")
    (tmp_path / "orbax" / WEIGHTS).write_bytes(shards(model)[0].read_bytes())
    refused(tmp_path / "orbax", "holds weights twice: params/ and safetensors")


def test_an_index_of_other_shards_is_refused(model):
    content = json.loads((model / INDEX).read_text())
    places = content["weight_map"]
    name = "model.norm.weight"
    others = [shard.name for shard in shards(model) if shard.name != places[name]]
    for change in ({name: others[0]}, {"model.norm.weight_old": others[0]}):
        (model / INDEX).write_text(json.dumps({"weight_map": places | change}))
        refused(model, rf"disagree on where to find {next(iter(change))}$")
    del places[name]
    (model / INDEX).write_text(json.dumps({"weight_map": places}))
    refused(model, rf"disagree on where to find {name}$")


def test_a_tensor_that_stands_twice_is_refused(model, tmp_path):
    """Under the hub's name and under the one that it has in memory."""
    whole = save_hf(load(model), tmp_path / "whole")
    (whole / SUMS).unlink()
    tensors = load_file(whole / WEIGHTS)
    tensors["model.language_model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, whole / WEIGHTS)
    refused(whole, r"model\.norm\.weight stands twice$")


@pytest.mark.parametrize("place", [3, "../other/model.safetensors", "/etc/passwd", None])
def test_an_index_that_names_no_file_is_refused(model, place):
    content = json.loads((model / INDEX).read_text())
    content["weight_map"]["model.norm.weight"] = place
    (model / INDEX).write_text(json.dumps(content))
    refused(model, rf"names {re.escape(repr(place))}, which is no file of this directory")


# Files whose bits have changed


def flip(file, at=-1):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("write", [to_hf, to_orbax])
def test_a_flipped_bit_in_anything_that_was_written_is_noticed(model, tmp_path, write):
    write(model, tmp_path / "out")
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert any(file.stat().st_size > 50_000 for file in files)
    for file in files:
        if file.name != SUMS:
            flip(file)
            refused(tmp_path / "out", rf"{re.escape(file.name)} differs")
            flip(file)
    load(tmp_path / "out")


@pytest.mark.slow
def test_a_damaged_model_without_checksums_is_one_line_on_stderr(tmp_path):
    """Of the embedded model: so many tensors are read at once that some end after the error."""
    to_orbax("tiny", tmp_path / "orbax")
    (tmp_path / "orbax" / SUMS).unlink()
    data = (tmp_path / "orbax" / "params").rglob("*")
    largest = max(data, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    command = ["export", tmp_path / "orbax", tmp_path / "out"]
    ended = subprocess.run(
        [sys.executable, "-m", "othink_jax", *command], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert re.fullmatch(r"othink-jax: .*params is damaged: .*\n", ended.stderr)


def test_a_file_changed_on_purpose_is_accepted_by_its_line(model, tmp_path):
    made = save_hf(load(model), tmp_path / "made", card="A card")
    (made / "README.md").write_text("Another card")  # there to be edited
    flip(made / "generation_config.json", at=0)
    (made / "generation_config.json").write_text("{}")
    refused(made, rf"generation_config\.json differs\. To accept .* delete its line in {SUMS}")
    lines = (made / SUMS).read_text().splitlines(keepends=True)
    (made / SUMS).write_text("".join(line for line in lines if "generation_config" not in line))
    load(made)


def test_what_cannot_be_verified_is_not_converted_either(model, tmp_path):
    to_orbax(model, tmp_path / "orbax")
    flip(tmp_path / "orbax" / "tokenizer_config.json")
    with pytest.raises(UserError, match=r"tokenizer_config\.json differs"):
        to_hf(tmp_path / "orbax", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_adapter_comes_with_its_checksums(tmp_path):
    run = write_run(tmp_path, SHAPES["Qwen2-VL, tied"])
    to_adapter(run.run, run.out)
    assert check_sums(run.out)
    flip(run.out / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors differs"):
        check_sums(run.out)


def test_a_flipped_bit_in_the_hubs_cache_is_noticed(model, tmp_path):
    """Its files bear their digests as names: large ones as SHA-256, small ones as Git's."""
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "0"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        content = file.read_bytes()
        name = hashlib.sha256(content).hexdigest()
        if file.suffix != ".safetensors":
            name = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (blobs / name).write_bytes(content)
        os.symlink(blobs / name, snapshot / file.name)
    load(snapshot)
    for name in (shards(model)[0].name, "tokenizer_config.json"):
        flip(snapshot / name)
        refused(snapshot, rf"{re.escape(name)} is damaged: its content is not that of the hub")
        flip(snapshot / name)
