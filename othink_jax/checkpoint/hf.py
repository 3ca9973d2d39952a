"""Hugging Face model directories: config.json and safetensors, in and out; strict both ways."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import snapshot_download, split_state_dict_into_shards_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from othink_jax.checkpoint.keymap import Entry, entries, hub_name
from othink_jax.data.processor_files import read_json
from othink_jax.errors import UserError
from othink_jax.files import write_atomically
from othink_jax.model.config import Qwen2VLConfig
from othink_jax.model.stack import stack_layers, unstack_layers

_log = logging.getLogger(__name__)

TINY = Path(__file__).parents[1] / "assets" / "tiny"
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_SHARDS = "model{suffix}.safetensors"
# What a model needs; weights in pickles are not fetched and not read: loading one runs its code.
_COMPANIONS = ("*.json", "*.jinja", "*.txt")
_FETCHED = (*_COMPANIONS, "*.safetensors")


def resolve(model: str | Path) -> Path:
    """The directory of a model: `tiny`, a local directory, or a hub id (fetched or from the cache).

    Raises:
      UserError: there is no such directory and the hub has or gives none.
    """
    if str(model) == "tiny":
        return TINY
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(str(model), allow_patterns=list(_FETCHED)))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"there is no directory {model}, and the hub gives no model of this name: {reason}"
        ) from error


def load_config(directory: Path) -> Qwen2VLConfig:
    """The model's shape from config.json."""
    return Qwen2VLConfig.from_hf(read_json(directory / "config.json"))


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _INDEX).is_file():
        weight_map = read_json(directory / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{directory / _INDEX} has no weight_map")
        names = sorted(set(weight_map.values()))
    elif (directory / _SINGLE).is_file():
        names = [_SINGLE]
    elif list(directory.glob("*.bin")):
        raise UserError(
            f"{directory} holds its weights as pickles (.bin), which can run code when they are"
            " read; convert them to safetensors first"
        )
    else:
        raise UserError(f"{directory} has no {_SINGLE} and no {_INDEX}")
    absent = [name for name in names if not (directory / name).is_file()]
    if absent:
        raise UserError(f"{directory}: the index names files that are absent: {', '.join(absent)}")
    return [directory / name for name in names]


def _tensors(files: list[Path]) -> Iterator[tuple[str, Any]]:
    """Name (in the hub's layout) and tensor, one after the other."""
    for file in files:
        try:
            with safe_open(file, framework="flax") as tensors:
                names = list(tensors.keys())
            for name in names:
                # Opened anew for each: a file that stays mapped stays in memory as far as it was
                # read, beside the tensors themselves.
                with safe_open(file, framework="flax") as tensors:
                    tensor = tensors.get_tensor(name)
                yield hub_name(name), tensor
        except SafetensorError as error:
            raise UserError(f"{file} is damaged: {error}") from error


def load_params(
    directory: Path, config: Qwen2VLConfig, *, dtype: DTypeLike | None, scan_layers: bool = False
) -> dict[str, Any]:
    """Parameters as a nested dict of arrays of `dtype`, or of the dtypes they are stored in (None).

    Raises:
      UserError: a tensor is missing, unknown or of another shape (all of them are listed), a file
        is damaged, or there are no safetensors.
    """
    absent = {entry.name: entry for entry in entries(config)}
    found: dict[Entry, jax.Array] = {}
    faults = []
    for name, tensor in _tensors(_weight_files(directory)):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # some files hold the tied head a second time
        entry = absent.pop(name, None)
        if entry is None:
            faults.append(f"unknown {name}")
        elif tensor.shape != entry.hub_shape:
            faults.append(f"{name} is {tensor.shape}, not {entry.hub_shape}")
        else:
            found[entry] = jnp.asarray(entry.from_hub(tensor), dtype)
            if not _all_finite(found[entry]):
                _log.warning("%s: %s holds values that are not finite", directory, name)
    faults += [f"missing {name}" for name in absent]
    if faults:
        raise UserError(f"{directory} does not fit its config.json: {'; '.join(faults)}")
    params = _nested(found)
    return scanned(params) if scan_layers else params


@jax.jit
def _all_finite(tensor: jax.Array) -> jax.Array:
    return jnp.isfinite(tensor).all()


def scanned(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a model with unrolled layers as those of the same model scanning them."""
    return {
        name: tower | {"layers": stack_layers(tower["layers"])} for name, tower in params.items()
    }


def _nested(found: dict[Entry, Any]) -> dict[str, Any]:
    tree: dict[Any, Any] = {}
    for entry, tensor in found.items():
        *parents, leaf = entry.path
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = tensor
    return tree


def copy_companions(source: Path, target: Path) -> None:
    """Copy what travels with the weights: configuration, tokenizer, image settings, template."""
    for pattern in _COMPANIONS:
        for file in source.glob(pattern):
            if file.name != _INDEX:
                shutil.copyfile(file, target / file.name)


def save(
    directory: Path, config: Qwen2VLConfig, params: Any, *, max_shard_size: int | str = "5GB"
) -> None:
    """Write config.json and the weights, names and shapes as on the hub; the dtypes are kept.

    Args:
      directory: made if it is not there.
      config: the shape.
      params: of unrolled or of scanned layers.
      max_shard_size: largest weight file, in bytes or such as `5GB`. What does not fit into one
        becomes several and an index, as transformers writes them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    params = {
        name: tower | {"layers": unstack_layers(tower["layers"])} for name, tower in params.items()
    }
    found = {}
    for entry in entries(config):
        leaf = params
        for key in entry.path:
            leaf = leaf[key]
        found[entry.name] = (entry, leaf)
    shards = split_state_dict_into_shards_factory(
        found,
        get_storage_size=lambda held: held[1].nbytes,
        filename_pattern=_SHARDS,
        max_shard_size=max_shard_size,
    )
    for file, names in shards.filename_to_tensors.items():
        _save_shard(directory / file, {name: found[name] for name in names})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_atomically(directory / _INDEX, json.dumps(index, indent=2) + "\n")
    write_atomically(directory / "config.json", json.dumps(config.to_hf(), indent=2) + "\n")


def _save_shard(file: Path, found: dict[str, tuple[Entry, Any]]) -> None:
    tensors = {
        name: np.ascontiguousarray(entry.to_hub(np.asarray(leaf)))
        for name, (entry, leaf) in found.items()
    }
    # transformers wants to know which framework's layout the file has: torch's.
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors leaves it to its owner alone


def correct_dtype(directory: Path, params: Any) -> None:
    """Let config.json name no other dtype than that of the weights: transformers would cast them.

    A file that names the right one, or none, is left as it is, byte for byte.
    """
    (dtype, *others) = {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    config = read_json(directory / "config.json")
    # "torch_dtype" is the name in the hub's files of 2024, "dtype" that of transformers 5.
    wrong = [name for name in ("torch_dtype", "dtype") if config.get(name, dtype) != dtype]
    if wrong and not others:
        text = json.dumps(config | dict.fromkeys(wrong, dtype), indent=2)
        write_atomically(directory / "config.json", text + "\n")
