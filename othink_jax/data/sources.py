"""Where examples come from: synthetic tasks, files, the hub; all as sized, indexable sources."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from othink_jax.config import DataConfig
from othink_jax.data.clevr import ClevrScenes, is_clevr
from othink_jax.data.example import Example, UnreadableExample
from othink_jax.data.rows import TEXTS, USED, Row, RowReader, check_columns
from othink_jax.data.stream import ENDLESS, Stream
from othink_jax.data.synthetic import LEVELS, SyntheticSource
from othink_jax.data.tables import (
    further_columns,
    local_folder,
    open_stream,
    open_table,
    plain,
)
from othink_jax.errors import UserError, first_line, quoted, writable
from othink_jax.files import as_path, check_readable, is_cloud, read_json_lines

_ROWS_AT_A_TIME = 1000


class Source(Protocol):
    """Examples by number, the same at every call (a grain RandomAccessDataSource).

    Indexing raises UnreadableExample where an image or an entry is missing or broken.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def texts(self) -> Iterator[str]:
        """What tells these examples from others, without their images; nothing of a stream."""


def open_source(config: DataConfig, *, size: int | None = None, columns: bool = False) -> Source:
    """The examples that the settings ask for.

    Args:
      config: a task, or a data set: a JSONL file whose rows name image files, a parquet file, a
        folder of parquet files, a folder written by `datasets.save_to_disk`, a folder of CLEVR or
        SuperCLEVR, or a hub id. One that is streamed is a `Stream`, unless `config.limit` is given.
      size: how many examples of a synthetic task; `config.limit` goes before it.
      columns: whether examples hold the further columns of their rows, for reward functions.

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
    if is_cloud(name):
        check_readable(as_path(name))
    if name.endswith(".jsonl"):
        source: Source = _JsonLines(as_path(name), config.images, columns=columns)
    elif config.streaming:
        return _open_stream(name, config, columns=columns)
    elif not is_cloud(name) and is_clevr(Path(name)):
        if config.images is not None:
            raise UserError("--images goes with rows that name image files; CLEVR has its own")
        source = ClevrScenes(Path(name), config.split)
    else:
        table = open_table(name, config.split, used=USED)
        reader = RowReader(name, config.images or local_folder(name), columns=columns)
        source = _Table(table, name, reader, columns=columns)
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

    def texts(self) -> Iterator[str]:
        return self._source.texts()


class _JsonLines:
    """Rows of question, ground_truth and image_path, as R1-V evaluates."""

    def __init__(self, path: Path, images: Path | None, *, columns: bool) -> None:
        """Args:
        path: of the file.
        images: folder that paths of images are relative to; that of the file if None.
        columns: see `RowReader`.

        Raises:
          UserError: there is no such file, or a row is broken or lacks an entry.
        """
        self._name = path.name
        folder = path.parent if images is None else images
        self._reader = RowReader(str(path), folder, columns=columns)
        self._rows = list(read_json_lines(path, errors="surrogateescape").items())
        for number, row in self._rows:
            check_columns(row, f"{path}, line {number}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        number, row = self._rows[index]
        return self._reader.example(row, f"{self._name}:{number}")

    def texts(self) -> Iterator[str]:
        return (repr(row) for _, row in self._rows)


def _open_stream(name: str, config: DataConfig, *, columns: bool) -> Source:
    reader = RowReader(name, config.images or local_folder(name), columns=columns)
    table = open_stream(name, config.split, used=USED, further=columns)
    stream = Stream(table, name, reader.example, seed=config.limit_seed)
    check_columns(stream.columns(), name)
    if config.limit is None:
        return stream
    rows = stream.first(config.limit)
    _check_limit(config.limit, len(rows), name)
    return _Rows(rows, name, reader)


class _Rows:
    """The first rows of a stream."""

    def __init__(self, rows: list[Row], name: str, reader: RowReader) -> None:
        self._rows = rows
        self._name = name
        self._reader = reader

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return self._reader.example(self._rows[index], f"{self._name}:{index}")

    def texts(self) -> Iterator[str]:
        for row in self._rows:
            texts = [row[column] for column in TEXTS if column in row]
            further = self._reader.further(row)
            yield repr([*texts, further] if further else texts)


class _Table:
    """R1-V's training sets: image, problem, solution."""

    def __init__(self, table: Any, name: str, reader: RowReader, *, columns: bool) -> None:
        check_columns(table.column_names, name)
        schema = table.features.arrow_schema
        further = further_columns(schema, USED) if columns else []
        self._texts = [column for column in TEXTS if column in table.column_names] + further
        self._used = [column for column in USED if column in table.column_names] + further
        # As Arrow: images stay bytes, so that a broken one is named and not fatal.
        self._table = table.select_columns(self._used).with_format("arrow")
        self._name = name
        self._reader = reader

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        identifier = f"{self._name}:{index}"
        try:
            (row,) = plain(self._table[index : index + 1], self._used).to_pylist()
        except Exception as error:  # whatever the library or a broken file comes up with
            read = Example(id=writable(identifier), images=(), question="", answer="", solution="")
            reason = quoted(first_line(error))
            raise UnreadableExample(f"{read.id}: it cannot be read: {reason}", read) from error
        return self._reader.example(row, identifier)

    def texts(self) -> Iterator[str]:
        for rows in self._table.select_columns(self._texts).iter(_ROWS_AT_A_TIME):
            yield repr(plain(rows, self._texts).to_pylist())
