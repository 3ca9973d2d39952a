"""Hugging Face model directories: config.json and safetensors, in and out; strict both ways."""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download, split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from othink_jax.checkpoint import safetensors_file
from othink_jax.checkpoint.keymap import Entry, entries, hub_name
from othink_jax.checkpoint.safetensors_file import DTYPES
from othink_jax.checkpoint.tensors import Tensors
from othink_jax.errors import UserError, first_line
from othink_jax.files import read_json, write_atomically
from othink_jax.hub import limit_waiting
from othink_jax.model.config import Qwen2VLConfig
from othink_jax.model.hf_config import from_hf, to_hf

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
    limit_waiting()
    try:
        fetched = Path(snapshot_download(str(model), allow_patterns=list(_FETCHED)))
    except Exception as error:  # whatever the library, the network or the hub come up with
        raise UserError(
            f"there is no directory {model}, and the hub gives no model of this name:"
            f" {first_line(error)}"
        ) from error
    # An empty chat template would be taken for one that writes nothing.
    for file in sorted(fetched.glob("*")):  # of nothing, if the hub has no file
        if file.suffix in (".json", ".jinja", ".safetensors") and file.stat().st_size == 0:
            raise UserError(f"the hub gave {file} of {model} without a content: remove it")
    return fetched


def load_config(directory: Path) -> Qwen2VLConfig:
    """The model's shape from config.json."""
    return from_hf(read_json(directory / "config.json"))


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


def stored_tensors(directory: Path, config: Qwen2VLConfig) -> Tensors:
    """The tensors of a directory; of each file only the header is read.

    Reading warns of values that are not finite.

    Raises:
      UserError: a tensor is missing, unknown, of another shape or no floating-point number (all of
        them are listed), a file is damaged, or there are no safetensors.
    """
    absent = {entry.name: entry for entry in entries(config)}
    places: dict[Entry, tuple[Path, str]] = {}
    dtypes: dict[Entry, np.dtype] = {}
    faults = []
    for file, stored_name, shape, dtype in _headers(_weight_files(directory)):
        name = hub_name(stored_name)
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # some files hold the tied head a second time
        entry = absent.pop(name, None)
        if entry is None:
            faults.append(f"unknown {name}")
        elif shape != entry.hub_shape:
            faults.append(f"{name} is {shape}, not {entry.hub_shape}")
        elif dtype not in DTYPES:
            faults.append(f"{name} is of type {dtype}, not of {', '.join(DTYPES)}")
        else:
            places[entry], dtypes[entry] = (file, stored_name), DTYPES[dtype]
    faults += [f"missing {name}" for name in absent]
    if faults:
        raise UserError(f"{directory} does not fit its config.json: {'; '.join(faults)}")

    def read(chosen: Sequence[Entry]) -> Iterator[np.ndarray]:
        for entry in chosen:
            tensor = _read(*places[entry])
            if not _all_finite(tensor):
                _log.warning("%s: %s holds values that are not finite", directory, entry.name)
            yield entry.from_hub(tensor)

    return Tensors(dtypes=dtypes, read=read)


def _headers(files: list[Path]) -> Iterator[tuple[Path, str, tuple[int, ...], str]]:
    """File, name, shape and dtype of each tensor."""
    for file in files:
        try:
            with safe_open(file, framework="numpy") as stored:
                for name in stored.keys():  # noqa: SIM118 (it is no dict)
                    about = stored.get_slice(name)
                    yield file, name, tuple(about.get_shape()), about.get_dtype()
        except SafetensorError as error:
            raise UserError(f"{file} is damaged: {error}") from error


def _read(file: Path, name: str) -> np.ndarray:
    # Opened anew for each tensor: a file that stays mapped stays in memory as far as it was read,
    # beside the tensors themselves.
    with safe_open(file, framework="numpy") as stored:
        return stored.get_tensor(name)


def _all_finite(tensor: np.ndarray) -> bool:
    """By the bits, ten times faster than np.isfinite in bfloat16.

    Read as integers, infinity and nan are the largest numbers of either sign.
    """
    infinity = np.array([np.inf, -np.inf], tensor.dtype)
    signed, unsigned = f"i{tensor.itemsize}", f"u{tensor.itemsize}"
    return bool(
        tensor.view(signed).max() < infinity.view(signed)[0]
        and tensor.view(unsigned).max() < infinity.view(unsigned)[1]
    )


def copy_companions(source: Path, target: Path) -> None:
    """Copy what travels with the weights: configuration, tokenizer, image settings, template."""
    for pattern in _COMPANIONS:
        for file in source.glob(pattern):
            if file.name != _INDEX:
                shutil.copyfile(file, target / file.name)


def save(
    directory: Path,
    config: Qwen2VLConfig,
    tensors: Tensors,
    *,
    companions: Path | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write config.json and the weights, names, shapes and layout as on the hub.

    Args:
      directory: made if it is not there.
      config: the shape.
      tensors: their dtypes are kept.
      companions: a model directory whose other files are copied, its config.json among them, in
        which only a dtype that is not that of the weights is corrected.
      max_shard_size: largest weight file, in bytes or such as `5GB`. What does not fit into one
        becomes several and an index, as transformers writes them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    by_name = {entry.name: entry for entry in entries(config)}
    shards = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=tensors.nbytes,
        filename_pattern=_SHARDS,
        max_shard_size=max_shard_size,
    )
    for file, names in shards.filename_to_tensors.items():
        safetensors_file.write(directory / file, [by_name[name] for name in names], tensors)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_atomically(directory / _INDEX, json.dumps(index, indent=2) + "\n")
    if companions is None:
        _write_config(directory, to_hf(config))
    else:
        copy_companions(companions, directory)
        _correct_dtype(directory, tensors)


def _write_config(directory: Path, config: dict[str, Any]) -> None:
    write_atomically(directory / "config.json", json.dumps(config, indent=2) + "\n")


def _correct_dtype(directory: Path, tensors: Tensors) -> None:
    """Let config.json name no other dtype than that of the weights: transformers would cast them.

    A file that names the right one, or none, is left as it is, byte for byte.
    """
    (dtype, *others) = {dtype.name for dtype in tensors.dtypes.values()}
    config = read_json(directory / "config.json")
    # "torch_dtype" is the name in the hub's files of 2024, "dtype" that of transformers 5.
    wrong = [name for name in ("torch_dtype", "dtype") if config.get(name, dtype) != dtype]
    if wrong and not others:
        _write_config(directory, config | dict.fromkeys(wrong, dtype))
