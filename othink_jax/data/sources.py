"""Sized, indexable sources of examples: synthetic tasks, files, the hub."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from othink_jax.config import DataConfig
from othink_jax.data.clevr import ClevrScenes, is_clevr
from othink_jax.data.example import Example, UnreadableExample, answer_format
from othink_jax.data.mixture import Mixture
from othink_jax.data.rows import ColumnChoice, Row, RowReader
from othink_jax.data.stream import ENDLESS, Stream, first_columns
from othink_jax.data.synthetic import LEVELS, SyntheticSource
from othink_jax.data.tables import (
    check_types,
    further_columns,
    local_folder,
    open_stream,
    open_table,
    plain,
    plain_stream,
)
from othink_jax.errors import UserError, first_line, quoted, writable
from othink_jax.files import as_path, check_readable, is_cloud, read_json_lines

_ROWS_AT_A_TIME = 1000


class Source(Protocol):
    """Examples by index, the same at every call (a grain RandomAccessDataSource).

    Indexing raises UnreadableExample if an image or an entry is missing or broken.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def texts(self) -> Iterator[str]:
        """Texts that identify the examples, without their images; nothing for a stream."""

    def further(self, index: int) -> Mapping[str, Any]:
        """`Example.columns` of an example without reading its images; empty if it has no row."""


def open_source(config: DataConfig, *, size: int | None = None, columns: bool = False) -> Source:
    """Open the source of examples that a configuration names.

    Args:
      config: a task, or data sets, each a JSONL file whose rows name image files, a parquet file, a
        folder of parquet files, a folder written by `datasets.save_to_disk`, a folder of CLEVR or
        SuperCLEVR, or a hub id. Several data sets make a `Mixture`. A streamed one is a `Stream`,
        unless `config.limit` is given.
      size: number of examples of a synthetic task; `config.limit` takes precedence.
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
    opener = _Opener(config, further=columns)
    sources = [opener.open(name) for name in config.dataset_names]
    opener.choice.check()
    return sources[0] if len(sources) == 1 else Mixture(sources, config.weights)


class _Opener:
    """Opens the data sets of a configuration."""

    def __init__(self, config: DataConfig, *, further: bool) -> None:
        self.choice = ColumnChoice(config.column_names)
        self._config = config
        self._further = further
        self._answers = answer_format(config)

    def open(self, name: str) -> Source:
        """Open one data set, cut down to `config.limit` examples if that is given."""
        if is_cloud(name):
            check_readable(as_path(name))
        source = self._whole(name)
        if len(source) == 0:
            raise UserError(f"{name} holds no examples")
        limit = self._config.limit
        if limit is None or isinstance(source, _Rows):
            return source
        _check_limit(limit, len(source), name)
        return drawn(source, limit, self._config.limit_seed)

    def _whole(self, name: str) -> Source:
        config = self._config
        if name.endswith(".jsonl"):
            return self._json_lines(name)
        if config.streaming:
            return self._stream(name)
        if not is_cloud(name) and is_clevr(Path(name)):
            if config.images is not None:
                raise UserError("--images goes with rows that name image files; CLEVR has its own")
            return ClevrScenes(Path(name), config.split)
        table = open_table(name, config.split)
        reader = self._reader(name, local_folder(name), table.column_names)
        return _Table(table, name, reader, further=self._further)

    def _reader(self, name: str, folder: Path | None, there: Iterable[str]) -> RowReader:
        return RowReader(
            name,
            self._config.images or folder,
            columns=self.choice.among(there),
            further=self._further,
            answers=self._answers,
        )

    def _json_lines(self, name: str) -> "_JsonLines":
        path = as_path(name)
        rows = list(read_json_lines(path, errors="surrogateescape").items())
        there = dict.fromkeys(itertools.chain.from_iterable(row for _, row in rows))
        reader = self._reader(str(path), path.parent, there)
        return _JsonLines(path, rows, reader)

    def _stream(self, name: str) -> Source:
        table = open_stream(name, self._config.split)
        there = table.column_names or first_columns(table, name)
        reader = self._reader(name, local_folder(name), there)
        rows = plain_stream(table, name, used=reader.columns.used, further=self._further)
        stream = Stream(rows, name, reader.example, seed=self._config.limit_seed)
        reader.columns.check(first_columns(rows, name), name)
        if self._config.limit is None:
            return stream
        found = stream.first(self._config.limit)
        _check_limit(self._config.limit, len(found), name)
        return _Rows(found, name, reader)


def _check_limit(limit: int, found: int, name: str) -> None:
    if limit > found:
        raise UserError(f"limit asks for {limit} examples, but {name} holds only {found}")


def drawn(source: Source, count: int, seed: int) -> "Subset":
    """A random subset of `count` examples of a source."""
    return Subset(source, np.random.default_rng(seed).permutation(len(source))[:count].tolist())


class Subset:
    """Some examples of a source."""

    def __init__(self, source: Source, chosen: Sequence[int]) -> None:
        """Args:
        source: the whole source.
        chosen: indices into it, in the order of the subset.
        """
        self._source = source
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._chosen[index]]

    def texts(self) -> Iterator[str]:
        """Texts of the whole source."""
        return self._source.texts()

    def further(self, index: int) -> Mapping[str, Any]:
        """See `Source`."""
        return self._source.further(self._chosen[index])


class _JsonLines:
    """A JSONL file, such as R1-V's tests (question, ground_truth, image_path)."""

    def __init__(self, path: Path, rows: Sequence[tuple[int, Row]], reader: RowReader) -> None:
        """Args:
          path: of the file.
          rows: line numbers and rows.
          reader: makes examples of the rows.

        Raises:
          UserError: a row lacks a question, an answer or an image.
        """
        self._name = path.name
        self._reader = reader
        self._rows = rows
        for number, row in rows:
            reader.columns.check(row, f"{path}, line {number}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        number, row = self._rows[index]
        return self._reader.example(row, f"{self._name}:{number}")

    def texts(self) -> Iterator[str]:
        return (repr(row) for _, row in self._rows)

    def further(self, index: int) -> Mapping[str, Any]:
        return self._reader.further(self._rows[index][1])


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
            texts = [row[column] for column in self._reader.columns.texts if column in row]
            further = self._reader.further(row)
            yield repr([*texts, further] if further else texts)

    def further(self, index: int) -> Mapping[str, Any]:
        return self._reader.further(self._rows[index])


class _Table:
    """A table, such as R1-V's training sets (image, problem, solution)."""

    def __init__(self, table: Any, name: str, reader: RowReader, *, further: bool) -> None:
        columns = reader.columns
        columns.check(table.column_names, name)
        schema = table.features.arrow_schema
        check_types(schema, name, columns.used)
        others = further_columns(schema, columns.used) if further else []
        self._texts = [one for one in columns.texts if one in table.column_names] + others
        self._others = table.select_columns(others).with_format("arrow")
        self._used = [one for one in columns.used if one in table.column_names] + others
        # In Arrow format images stay bytes, so a broken one is reported by its id and not fatal.
        self._table = table.select_columns(self._used).with_format("arrow")
        self._name = name
        self._reader = reader

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        identifier = f"{self._name}:{index}"
        try:
            (row,) = plain(self._table[index : index + 1], self._used).to_pylist()
        except Exception as error:  # library and broken files can raise anything
            read = Example(id=writable(identifier), images=(), question="", answer="", solution="")
            reason = quoted(first_line(error))
            raise UnreadableExample(f"{read.id}: it cannot be read: {reason}", read) from error
        return self._reader.example(row, identifier)

    def texts(self) -> Iterator[str]:
        for rows in self._table.select_columns(self._texts).iter(_ROWS_AT_A_TIME):
            yield repr(plain(rows, self._texts).to_pylist())

    def further(self, index: int) -> Mapping[str, Any]:
        names = self._others.column_names
        if not names:
            return {}
        try:
            (row,) = plain(self._others[index : index + 1], names).to_pylist()
        except Exception:  # as above; reading the example reports it
            return {}
        return self._reader.further(row)
