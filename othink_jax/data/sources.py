"""Where examples come from: synthetic tasks, files, the hub; all as sized, indexable sources."""

import dataclasses
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from othink_jax.config import DataConfig
from othink_jax.data.clevr import ClevrScenes, is_clevr
from othink_jax.data.example import Example, UnreadableExample
from othink_jax.data.images import open_image
from othink_jax.data.stream import ENDLESS, Row, Stream
from othink_jax.data.synthetic import LEVELS, SyntheticSource
from othink_jax.data.tables import open_stream, open_table
from othink_jax.errors import UserError
from othink_jax.files import read_json_lines
from othink_jax.rewards import extract_answer, ground_truth

# Column names in use, the first that is there is taken: R1-V's training sets, its test files.
_QUESTION = ("problem", "question")
_SOLUTION = ("solution", "ground_truth", "answer")
_IMAGES = ("images", "image", "image_path")
# Reasoning that stands before the solution, where R1-V's sets for supervised fine-tuning have it.
_THINKING = "thinking"
# Folder that the paths of a table's images are relative to.
_HERE = Path()


class Source(Protocol):
    """Examples by number, the same at every call (a grain RandomAccessDataSource).

    Indexing raises UnreadableExample where an image or an entry is missing or broken.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def open_source(config: DataConfig, *, size: int | None = None) -> Source:
    """The examples that the settings ask for.

    Args:
      config: a task, or a data set: a JSONL file whose rows name image files, a parquet file, a
        folder of parquet files, a folder written by `datasets.save_to_disk`, a folder of CLEVR or
        SuperCLEVR, or a hub id. One that is streamed is a `Stream`, unless `config.limit` is given.
      size: how many examples of a synthetic task; `config.limit` goes before it.

    Raises:
      UserError: there is no such data set, it lacks a column, or it holds too few examples.
    """
    if config.task is not None:
        count = config.limit or size or ENDLESS
        return SyntheticSource(
            config.task,
            config.split,
            count,
            seed=config.limit_seed,
            difficulty=LEVELS[config.task][config.difficulty],
        )
    assert config.dataset is not None  # DataConfig saw to it
    name = config.dataset
    if name.endswith(".jsonl"):
        source: Source = _JsonLines(Path(name), config.images)
    elif config.streaming:
        return _open_stream(name, config)
    elif is_clevr(Path(name)):
        source = ClevrScenes(Path(name), config.split)
    else:
        source = _Table(open_table(name, config.split), name)
    if len(source) == 0:
        raise UserError(f"{name} holds no examples")
    if config.limit is None:
        return source
    _check_limit(config.limit, len(source), name)
    return _Subset(source, config.limit, config.limit_seed)


def _check_limit(limit: int, found: int, name: str) -> None:
    if limit > found:
        raise UserError(f"limit asks for {limit} examples, but {name} holds only {found}")


class _Subset:
    """`count` examples of a source, chosen by a seed."""

    def __init__(self, source: Source, count: int, seed: int) -> None:
        self._source = source
        self._chosen = np.random.default_rng(seed).permutation(len(source))[:count]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._chosen[index])]


class _JsonLines:
    """Rows of question, ground_truth and image_path, as R1-V evaluates."""

    def __init__(self, path: Path, images: Path | None) -> None:
        """Args:
        path: of the file.
        images: folder that paths of images are relative to; that of the file if None.

        Raises:
          UserError: there is no such file, or a row is broken or lacks an entry.
        """
        self._path = path
        self._images = path.parent if images is None else images
        self._rows = list(read_json_lines(path).items())
        for number, row in self._rows:
            _check_columns(row, f"{path}, line {number}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        number, row = self._rows[index]
        return _example(row, f"{self._path.name}:{number}", self._images)


def _open_stream(name: str, config: DataConfig) -> Source:
    stream = Stream(open_stream(name, config.split), name, _example, seed=config.limit_seed)
    _check_columns(stream.columns(), name)
    if config.limit is None:
        return stream
    rows = stream.first(config.limit)
    _check_limit(config.limit, len(rows), name)
    return _Rows(rows, name)


class _Rows:
    """The first rows of a stream."""

    def __init__(self, rows: list[Row], name: str) -> None:
        self._rows = rows
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return _example(self._rows[index], f"{self._name}:{index}")


class _Table:
    """R1-V's training sets: image, problem, solution."""

    def __init__(self, table: Any, name: str) -> None:
        _check_columns(table.column_names, name)
        # As Arrow: images stay bytes, so that a broken one is named and not fatal.
        self._table = table.with_format("arrow")
        self._name = name

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        (row,) = self._table[index : index + 1].to_pylist()
        return _example(row, f"{self._name}:{index}")


def _column(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in columns), None)


def _check_columns(columns: Iterable[str], where: str) -> None:
    for names in (_QUESTION, _SOLUTION, _IMAGES):
        if _column(columns, names) is None:
            raise UserError(
                f"{where} has no column {' or '.join(names)}; it has {', '.join(columns)}"
            )


def _entry(row: Row, names: tuple[str, ...]) -> Any:
    name = _column(row, names)
    held = None if name is None else row[name]
    if held is None or (isinstance(held, str) and not held.strip()):
        raise UserError(f"its {name} is empty")
    return held


def _example(row: Row, identifier: str, folder: Path = _HERE) -> Example:
    read = Example(id=identifier, images=(), question="", answer="", solution="")
    try:
        read = dataclasses.replace(read, question=_question(row))
        answer, solution = _solution(row)
        read = dataclasses.replace(read, answer=answer, solution=solution)
        held = _entry(row, _IMAGES)
        parts = held if isinstance(held, list) else [held]
        return dataclasses.replace(read, images=tuple(_image(part, folder) for part in parts))
    except UserError as error:
        raise UnreadableExample(f"{identifier}: {error}", read) from error


def _question(row: Row) -> str:
    held = _entry(row, _QUESTION)
    if not isinstance(held, str):
        raise UserError(f"its {_column(row, _QUESTION)} is no text but {type(held).__name__}")
    return held


def _solution(row: Row) -> tuple[str, str]:
    """The ground truth, and the solution that holds it in its answer tag."""
    name = _column(row, _SOLUTION)
    try:
        solution = ground_truth(_entry(row, _SOLUTION))
    except ValueError as error:
        raise UserError(f"its {name} {error}") from error
    answer = extract_answer(solution)
    if answer is None:
        if "<answer>" in solution or "</answer>" in solution:
            raise UserError(f"its {name} has an answer tag that is not opened and closed")
        answer = solution.strip()  # a bare ground truth
        solution = f"<answer>{answer}</answer>"
    if not answer:
        raise UserError(f"its {name} has an empty answer tag")
    if row.get(_THINKING):
        solution = f"{row[_THINKING]}\n\n{solution}"
    return answer, solution


def _image(held: Any, folder: Path) -> Image.Image:
    """The image of a cell: a path, or a struct of `bytes` and `path` of which one may be empty."""
    if isinstance(held, str):
        held = {"path": held}
    if not isinstance(held, Mapping) or not (held.get("bytes") or held.get("path")):
        raise UserError("its image is neither bytes nor the path of a file")
    content = held.get("bytes")
    return open_image(io.BytesIO(content) if content else folder / held["path"])
