"""Hugging Face model directories: strict reading and writing of config.json and safetensors."""

import dataclasses
import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download, split_state_dict_into_shards_factory

from othink_jax.checkpoint import safetensors_file
from othink_jax.checkpoint.keymap import plain_name, tied_head
from othink_jax.checkpoint.safetensors_file import DTYPES, Stored
from othink_jax.checkpoint.tensors import Index, Tensors, is_tied
from othink_jax.checkpoint.weight_files import INDEX, read_headers
from othink_jax.digests import check_sums, sha256
from othink_jax.errors import UserError, first_line
from othink_jax.families import Entry, entries, from_hf, to_hf
from othink_jax.files import (
    as_path,
    check_readable,
    copy_file,
    is_cloud,
    read_json,
    write_atomically,
)
from othink_jax.hub import limit_waiting
from othink_jax.model.config import VLMConfig

_log = logging.getLogger(__name__)

TINY = Path(__file__).parents[1] / "assets" / "tiny"
EMBEDDED = {"tiny": TINY}  # models of the package, by name
_SHARDS = "model{suffix}.safetensors"
# Files of a model. Pickled weights are neither fetched nor read: loading a pickle runs its code.
COMPANIONS = ("*.json", "*.jinja", "*.txt")
_FETCHED = (*COMPANIONS, "*.safetensors")


def resolve(model: str | Path) -> Path:
    """The directory of a model: one of `EMBEDDED`, of a disk or a bucket, or of a hub id.

    A model of the hub is downloaded, or taken from the cache.

    Raises:
      UserError: there is no such directory, and the hub does not provide the model.
    """
    if str(model) in EMBEDDED:
        return EMBEDDED[str(model)]
    place = as_path(model)
    check_readable(place)
    if place.is_dir():
        return place
    if is_cloud(place):
        raise UserError(f"there is nothing in {place}")
    limit_waiting()
    try:
        fetched = Path(snapshot_download(str(model), allow_patterns=list(_FETCHED)))
    except Exception as error:  # the library, the network or the hub may raise anything
        raise UserError(
            f"there is no directory {model}, and the hub gives no model of this name:"
            f" {first_line(error)}"
        ) from error
    # An empty chat template would be taken for one that writes nothing.
    for file in sorted(fetched.glob("*")):  # empty if the hub has no file
        if file.suffix in (".json", ".jinja", ".safetensors") and file.stat().st_size == 0:
            raise UserError(f"the hub gave {file} of {model} without a content: remove it")
    return fetched


def check_integrity(directory: Path) -> None:
    """Compare the files of a model directory with their checksums, if it has any.

    Checksums are in its SHA256SUMS, which `convert` and `export` write, or, in the hub's cache, the
    names of the files. Any other directory has none: a flipped bit in a weight is then not noticed.
    In a bucket they are not compared: every file would be fetched, and the bucket has its own.

    Raises:
      UserError: a file does not match its checksum.
    """
    if is_cloud(directory) or check_sums(directory):
        return
    for pattern in _FETCHED:
        for link in directory.glob(pattern):
            blob = link.resolve()
            if blob.parent.name == "blobs" and not _is_blob(blob):
                raise UserError(
                    f"{link} is damaged: its content is not that of the hub; delete {blob} and"
                    " download it again"
                )


def _is_blob(file: Path) -> bool:
    """Whether a cached file's name is the digest of its content, if it is a digest at all.

    The hub names large files by their SHA-256, and others by their Git digest.
    """
    if re.fullmatch(r"[0-9a-f]{64}", file.name):
        return sha256(file) == file.name
    if re.fullmatch(r"[0-9a-f]{40}", file.name):
        content = file.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == file.name
    return True


def load_config(directory: Path) -> VLMConfig:
    """The model's config from config.json."""
    return from_hf(read_json(directory / "config.json"))


def stored_tensors(directory: Path, config: VLMConfig) -> Tensors:
    """The tensors of a directory; only the header of each file is read.

    A file may hold a head though the config ties it to the embedding. Both are then read and
    compared. If they are equal, the head is returned as `keymap.tied_head`, a copy. If not, it is
    returned as an untied head, with a warning (`tensors.with_stored_tie` gives the config of such a
    model).

    Reading a tensor warns of values that are not finite.

    Raises:
      UserError: tensors are missing, unknown, of another shape or not floating-point (all of them
        are listed), or as `weight_files.read_headers` does.
    """
    places = _places(directory, config)
    if config.tie_word_embeddings and tied_head(config) in places:
        config = _with_the_head_of_the_file(directory, config, places)
    # In the hub's order, which that of the files may differ from.
    ordered = [entry for entry in (*entries(config), tied_head(config)) if entry in places]

    warned: set[Entry] = set()

    def read(entry: Entry, index: Index) -> np.ndarray:
        place = places[entry]
        if entry.transposed:  # ours is [in, out]; the file is [out, in], with `in` row-major
            tensor = safetensors_file.read(place, entry.shape[::-1], _reversed(index))
        else:
            tensor = safetensors_file.read(place, entry.shape, index)
        if entry not in warned and not _all_finite(tensor):
            warned.add(entry)
            _log.warning("%s: %s holds values that are not finite", directory, entry.name)
        return tensor.T if entry.transposed else tensor

    return Tensors(dtypes={entry: DTYPES[places[entry].dtype] for entry in ordered}, read=read)


def _reversed(index: Index) -> Index:
    """The index into the transposed matrix."""
    rows, columns = (*index, slice(None), slice(None))[:2]
    return columns, rows


def _places(directory: Path, config: VLMConfig) -> dict[Entry, Stored]:
    """Location of each tensor; raises UserError if they do not match the config."""
    wanted = {plain_name(entry.name): entry for entry in entries(config)}
    # The file of a tied model may hold the head as well.
    expected = {tied_head(config).name: tied_head(config)} | wanted
    places: dict[Entry, Stored] = {}
    faults = []
    for tensor in read_headers(directory):
        entry = expected.get(tensor.name)
        if entry is None:
            faults.append(f"unknown {tensor.name}")
            continue
        if entry in places:
            faults.append(f"{tensor.name} stands twice")
        elif tensor.shape != entry.hub_shape:
            faults.append(f"{tensor.name} is {tensor.shape}, not {entry.hub_shape}")
        elif tensor.dtype not in DTYPES:
            faults.append(f"{tensor.name} is of type {tensor.dtype}, not of {', '.join(DTYPES)}")
        places[entry] = tensor
    faults += [f"missing {name}" for name, entry in wanted.items() if entry not in places]
    if faults:
        raise UserError(f"{directory} does not fit its config.json: {'; '.join(faults)}")
    return places


def _with_the_head_of_the_file(
    directory: Path, config: VLMConfig, places: dict[Entry, Stored]
) -> VLMConfig:
    """The config, untied if the file's head differs from the embedding; `places` is updated."""
    copy, untied = tied_head(config), dataclasses.replace(config, tie_word_embeddings=False)
    by_name = {plain_name(entry.name): entry for entry in entries(untied)}
    embedding = places[by_name["model.embed_tokens.weight"]]
    if np.array_equal(_read(embedding), _read(places[copy])):  # by value, as transformers compares
        return config
    _log.warning(
        "%s: config.json says that the embedding is the head (tie_word_embeddings), but"
        " lm_head.weight is another matrix; it is kept, as in transformers",
        directory,
    )
    places[by_name[copy.name]] = places.pop(copy)
    return untied


def _read(tensor: Stored) -> np.ndarray:
    return safetensors_file.read(tensor, tensor.shape, ())


def _all_finite(tensor: np.ndarray) -> bool:
    """Whether all values are finite, by their bits: ten times as fast as np.isfinite in bfloat16.

    Read as integers, infinity and nan are the largest numbers of either sign.
    """
    infinity = np.array([np.inf, -np.inf], tensor.dtype)
    signed, unsigned = f"i{tensor.itemsize}", f"u{tensor.itemsize}"
    return bool(
        tensor.view(signed).max() < infinity.view(signed)[0]
        and tensor.view(unsigned).max() < infinity.view(unsigned)[1]
    )


def copy_companions(source: Path, target: Path, tensors: Tensors) -> None:
    """Copy the files beside the weights: configuration, tokenizer, image settings, template.

    config.json is corrected to match these tensors: whether the head is tied, and the dtype, to
    which transformers would cast them. A correct file is copied byte for byte.
    """
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
            if file.name != INDEX:
                copy_file(file, target / file.name)
    config = read_json(target / "config.json")
    corrected = _with_head(_with_dtype(config, tensors), tied=is_tied(tensors))
    if corrected != config:
        _write_config(target, corrected)


def _with_dtype(config: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The config with its dtype corrected to that of the weights, if they have one in common."""
    (dtype, *others) = {dtype.name for dtype in tensors.dtypes.values()}
    # "torch_dtype" is the name in the hub's files of 2024, "dtype" that of transformers 5.
    wrong = [name for name in ("torch_dtype", "dtype") if config.get(name, dtype) != dtype]
    return config if others else config | dict.fromkeys(wrong, dtype)


def _with_head(config: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """The config with `tie_word_embeddings` corrected, also in `text_config` (see `from_hf`)."""
    if from_hf(config).tie_word_embeddings == tied:
        return config
    config = config | {"tie_word_embeddings": tied}
    if "text_config" in config:
        config["text_config"] = config["text_config"] | {"tie_word_embeddings": tied}
    return config


def save(
    directory: Path,
    config: VLMConfig,
    tensors: Tensors,
    *,
    companions: Path | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write config.json and the weights, with names, shapes and layout of the hub.

    Args:
      directory: created if it does not exist.
      config: the model's config.
      tensors: all of them are written; their dtypes are kept.
      companions: a model directory whose other files are copied, see `copy_companions`.
      max_shard_size: largest weight file, in bytes or such as `5GB`. A larger model is split into
        several files and an index, as transformers does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    by_name = {entry.name: entry for entry in tensors.dtypes}
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
        write_atomically(directory / INDEX, json.dumps(index, indent=2) + "\n")
    if companions is None:
        _write_config(directory, to_hf(config))
    else:
        copy_companions(companions, directory, tensors)


def _write_config(directory: Path, config: dict[str, Any]) -> None:
    write_atomically(directory / "config.json", json.dumps(config, indent=2) + "\n")
