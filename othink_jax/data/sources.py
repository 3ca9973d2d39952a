"""Where examples come from: synthetic tasks, files, the hub; all as sized, indexable sources."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from othink_jax.config import DataConfig
from othink_jax.data.example import Example
from othink_jax.data.images import open_image
from othink_jax.data.synthetic import SyntheticSource
from othink_jax.errors import UserError
from othink_jax.rewards import extract_answer

# A synthetic task has no end; this is more than any run draws.
ENDLESS = 2**40


class UnreadableExample(UserError):
    """One example that cannot be used; training skips and counts it."""


class Source(Protocol):
    """Examples by number, the same at every call (a grain RandomAccessDataSource)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def open_source(config: DataConfig, *, size: int | None = None) -> Source:
    """The examples that the settings ask for.

    Args:
      config: a task, or a data set: a JSONL file with an image folder, a parquet file or a folder
        of them, a folder written by `datasets.save_to_disk`, or a hub id.
      size: how many examples of a synthetic task; `config.limit` goes before it.

    Raises:
      UserError: there is no such data set, it lacks a column, or nothing is left of it.
    """
    if config.task is not None:
        count = config.limit or size or ENDLESS
        return SyntheticSource(config.task, config.split, count, seed=config.limit_seed)
    assert config.dataset is not None  # DataConfig saw to it
    path = Path(config.dataset)
    if path.suffix == ".jsonl":
        source: Source = _JsonLines(path)
    else:
        source = _Table(_open_table(config.dataset, path, config.split), config.dataset)
    if len(source) == 0:
        raise UserError(f"{config.dataset} holds no examples")
    if config.limit is not None:
        source = _Subset(source, config.limit, config.limit_seed)
    return source


class _Subset:
    """`count` examples of a source, chosen by a seed."""

    def __init__(self, source: Source, count: int, seed: int) -> None:
        self._source = source
        self._chosen = np.random.default_rng(seed).permutation(len(source))[:count]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._chosen[index])]


def _column(row: Mapping[str, Any], where: str, *names: str) -> Any:
    """The first of `names` that the row has."""
    for name in names:
        if name in row:
            return row[name]
    raise UserError(
        f"{where} has the columns {', '.join(row)}; {' or '.join(names)} is expected among them"
    )


def _example(
    row: Mapping[str, Any], identifier: str, where: str, images: tuple[Image.Image, ...]
) -> Example:
    solution = str(_column(row, where, "solution", "ground_truth", "answer"))
    tagged = extract_answer(solution)
    return Example(
        id=identifier,
        images=images,
        question=str(_column(row, where, "problem", "question")),
        answer=solution if tagged is None else tagged,
        solution=solution,
    )


class _JsonLines:
    """Rows of question, ground_truth and image_path (relative to the file), as R1-V evaluates."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        self._path = path
        self._rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                try:
                    self._rows.append(json.loads(line))
                except ValueError as error:
                    raise UserError(f"{path}, line {number} is not JSON: {error}") from error
        for number, row in enumerate(self._rows, start=1):
            where = f"{path}, row {number}"
            for names in (("question", "problem"), ("ground_truth", "solution", "answer")):
                _column(row, where, *names)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[index]
        named = row.get("image_path", row.get("image", []))
        names: Sequence[str] = [named] if isinstance(named, str) else named
        identifier = f"{self._path.name}:{index + 1}"
        try:
            images = tuple(open_image(self._path.parent / name) for name in names)
        except UserError as error:
            raise UnreadableExample(f"{identifier}: {error}") from error
        return _example(row, identifier, str(self._path), images)


def _open_table(name: str, path: Path, split: str) -> Any:
    """A `datasets.Dataset` from parquet, from disk or from the hub."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"reading {name} needs the package `datasets`: pip install datasets"
        ) from None
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            table = datasets.load_from_disk(str(path))
        elif path.exists() and files and all(file.suffix == ".parquet" for file in files):
            table = datasets.Dataset.from_parquet([str(file) for file in files])
        elif path.exists():
            raise UserError(
                f"{name} is no data set that can be read: give a .jsonl file, a .parquet file, a"
                " folder of parquet files, or one written by datasets.save_to_disk"
            )
        else:
            table = datasets.load_dataset(name)
    except UserError:
        raise
    except Exception as error:  # whatever the library, the network or the files come up with
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} is neither a file nor a data set on the hub: {reason}") from error
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise UserError(f"{name} has no split {split!r}; it has {', '.join(table)}")
        table = table[split]
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            # Bytes are read here and decoded by us, so that a broken image is named, not fatal.
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


class _Table:
    """R1-V's training sets: image, problem, solution."""

    def __init__(self, table: Any, name: str) -> None:
        self._table = table
        self._name = name
        columns = dict.fromkeys(table.column_names)
        for names in (("problem", "question"), ("solution", "ground_truth", "answer")):
            _column(columns, name, *names)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        row = self._table[index]
        identifier = f"{self._name}:{index}"
        held = row.get("images", row.get("image"))
        held = [] if held is None else held if isinstance(held, list) else [held]
        images = tuple(_decode(image, identifier) for image in held)
        return _example(row, identifier, self._name, images)


def _decode(image: Any, identifier: str) -> Image.Image:
    """The image of a cell: its bytes, or the path of its file."""
    if not isinstance(image, Mapping):
        raise UnreadableExample(f"{identifier}: its image is a {type(image).__name__}, not a file")
    try:
        return open_image(io.BytesIO(image["bytes"]) if image.get("bytes") else Path(image["path"]))
    except UserError as error:
        raise UnreadableExample(f"{identifier}: {error}") from error
