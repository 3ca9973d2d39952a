"""The safetensors files of a model directory: which of them are the model, and their tensors."""

import re
from collections.abc import Iterator
from pathlib import Path

from othink_jax.checkpoint.safetensors_file import Stored, read_header
from othink_jax.errors import UserError
from othink_jax.files import read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Weights of a whole model, as transformers names them. Others, such as those of an adapter, may be
# beside them.
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_NAMED = 3  # names that an error lists


def read_headers(directory: Path) -> Iterator[Stored]:
    """The tensors of a directory, from the headers of its files.

    Raises:
      UserError: there are no safetensors, a file is damaged or absent, the index does not match the
        files, or there are weights beside the model's.
    """
    index = _read_index(directory)
    files = _weight_files(directory, index)
    found = [tensor for file in files for tensor in read_header(file)]
    if index is not None:
        _check_index(directory, index, found)
    yield from found


def _read_index(directory: Path) -> dict[str, str] | None:
    """File name by tensor name; None without an index."""
    path = directory / INDEX
    if not path.is_file():
        return None
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path} has no weight_map")
    # Only a file's name, no path: files elsewhere do not belong to this model.
    strange = [file for file in weight_map.values() if Path(str(file)).name != file]
    if strange:
        raise UserError(f"{path} names {strange[0]!r}, which is no file of this directory")
    return weight_map


def _weight_files(directory: Path, index: dict[str, str] | None) -> list[Path]:
    names = [SINGLE] if index is None else sorted(set(index.values()))
    absent = [name for name in names if not (directory / name).is_file()]
    if absent and index is not None:
        raise UserError(f"{directory}: the index names files that are absent: {', '.join(absent)}")
    if absent and any(directory.glob("*.bin")):
        raise UserError(
            f"{directory} holds its weights as pickles (.bin), which can run code when they are"
            " read; convert them to safetensors first"
        )
    if absent:
        raise UserError(f"{directory} has no {SINGLE} and no {INDEX}")
    # Left by another model: it is unknown which of them was meant.
    others = sorted(
        file.name
        for file in directory.iterdir()
        if _WEIGHTS.fullmatch(file.name) and file.name not in names
    )
    if others:
        what = SINGLE if index is None else f"the files that {INDEX} names"
        raise UserError(
            f"{directory} holds weights twice: {what}, and {_listed(others)}; remove what is not"
            " the model's"
        )
    return [directory / name for name in names]


def _check_index(directory: Path, index: dict[str, str], found: list[Stored]) -> None:
    """Raise UserError unless the index names each tensor in the file that holds it."""
    places = {(tensor.stored_name, tensor.file.name) for tensor in found}
    wrong = sorted(name for name, _ in places ^ set(index.items()))
    if wrong:
        raise UserError(
            f"{directory / INDEX} is not that of the files beside it: they disagree on where to"
            f" find {_listed(sorted(set(wrong)))}"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
