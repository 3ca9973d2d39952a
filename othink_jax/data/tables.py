"""Tables from parquet files, folders written by `datasets`, and the hub."""

import functools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import snapshot_download

from othink_jax.errors import UserError, first_line, quoted
from othink_jax.files import as_path, is_cloud
from othink_jax.hub import limit_reading

_FILES = (".parquet", ".csv", ".tsv", ".json", ".arrow", ".zip")


def open_table(name: str, split: str) -> Any:
    """Open a `datasets.Dataset`, which stays on disk and so may exceed the memory.

    A data set of the hub is downloaded whole, or taken from the hub's cache.

    Args:
      name: a parquet file, a folder of parquet files (whose names give their splits, as on the
        hub), a folder written by `datasets.save_to_disk`, or a hub id.
      split: the split to open; ignored for a single file.

    Raises:
      UserError: there is no such data set or split, it cannot be read, or `datasets` is missing.
    """
    return _open(name, split, streaming=False)


def open_stream(name: str, split: str) -> Any:
    """Open a `datasets.IterableDataset`, which stores nothing.

    Arguments and errors are those of `open_table`; a folder must hold parquet files.
    """
    return _open(name, split, streaming=True)


def further_columns(schema: pa.Schema, used: Collection[str]) -> list[str]:
    """Names of the columns outside `used` that hold plain data: numbers, texts, booleans.

    Lists and structs of these are plain too. So are dates, which become texts.
    """
    return [
        field.name
        for field in schema
        if field.name not in used
        and (pa.types.is_date(field.type) or all(map(_is_plain, _all_types(field.type))))
    ]


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    return (
        pa.types.is_null(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_struct(kind)
        or pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    )


def plain_stream(table: Any, name: str, *, used: Collection[str], further: bool = False) -> Any:
    """The rows of an `open_stream` as an IterableDataset whose images are not decoded.

    Args:
      table: the stream.
      name: of the data set, for messages.
      used: names of the columns to read; absent ones are ignored, all other columns become None.
      further: read `further_columns` too.

    Raises:
      UserError: see `check_types`.
    """
    if table.features is None:
        return table.map(dict)
    schema = table.features.arrow_schema
    check_types(schema, name, used)
    if further:
        used = (*used, *further_columns(schema, used))
    table = table.decode(False).with_format("arrow").map(functools.partial(plain, used=used))
    # No Arrow from here on: `datasets` cannot shuffle more than 2 GiB of it in a buffer.
    return table.with_format(None).map(dict)


def local_folder(name: str) -> Path | None:
    """Base folder of the relative paths in a data set; None for a data set of the hub."""
    path = as_path(name)
    if not path.exists():
        return None
    return path if path.is_dir() else path.parent


def plain(table: pa.Table, used: Collection[str]) -> pa.Table:
    """The rows in types whose values Python can hold; columns outside `used` become null.

    16- and 32-bit floats become the 64-bit floats that are written with the same digits. Dates
    become texts. A column with a text that is not UTF-8 becomes bytes.
    """
    columns = {
        name: _plain(table[name]) if name in used else pa.nulls(len(table))
        for name in table.column_names
    }
    return pa.table(columns)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        own = np.float16 if pa.types.is_float16(kind) else np.float32
        # Not Arrow's cast to text: it gives 16-bit floats too many digits.
        held = [None if value is None else float(str(own(value))) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(held, pa.float64())])
    if pa.types.is_date(kind):
        text = column.cast(pa.string())
        out_of_range = pc.starts_with(text, "<")  # Arrow's text for such a date
        return pc.if_else(out_of_range, pa.scalar(None, pa.string()), text)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return column.cast(_of_bytes(kind))
    return column


def _of_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes instead of texts."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_of_bytes(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_of_bytes(kind.value_type), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_of_bytes(kind.value_type))
    return kind


def check_types(schema: pa.Schema, name: str, used: Collection[str]) -> None:
    """Raise UserError if a used column holds times: nobody could guess their text as an answer."""
    for field in schema:
        if field.name in used and any(
            pa.types.is_temporal(kind) and not (pa.types.is_date(kind) and kind == field.type)
            for kind in _all_types(field.type)
        ):
            raise UserError(
                f"{name}: the column {field.name} holds {quoted(str(field.type))}: give texts or"
                " numbers"
            )


def _all_types(kind: pa.DataType) -> Iterator[pa.DataType]:
    yield kind
    for number in range(kind.num_fields):
        yield from _all_types(kind.field(number).type)


def _open(name: str, split: str, *, streaming: bool) -> Any:
    path = as_path(name)
    if not path.exists() and _is_local(name):
        raise UserError(f"there is no file or folder {name}")
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"reading {name} needs the package `datasets`: pip install datasets"
        ) from None
    limit_reading()
    try:
        if path.is_file():
            return _parquet_file(path, streaming=streaming)
        saved = any((path / file).is_file() for file in ("dataset_info.json", "dataset_dict.json"))
        without = path.is_dir() and not _has_parquet(path)
        if streaming and (saved or without):
            raise UserError(
                f"--streaming reads parquet files, and {name} is no folder of them: leave it out,"
                " what lies there is read from the disk as it is"
            )
        if saved:
            table = datasets.load_from_disk(name)
        elif without:
            raise UserError(
                f"the folder {name} holds no data set: give a .jsonl file, a .parquet file, a"
                " folder of parquet files, of CLEVR, or one written by datasets.save_to_disk"
            )
        elif is_cloud(name):
            table = _parquet_in_bucket(name, streaming=streaming)
        elif path.is_dir() or streaming:
            table = datasets.load_dataset(name, streaming=streaming)
        else:
            # Not by hub id: `datasets` does not look into the hub's cache when offline.
            table = datasets.load_dataset(snapshot_download(name, repo_type="dataset"))
    except UserError:
        raise
    except Exception as error:  # library, network and files can raise anything
        raise UserError(f"the data set {name} cannot be read: {first_line(error)}") from error
    if isinstance(table, datasets.DatasetDict | datasets.IterableDatasetDict):
        if split not in table:
            raise UserError(f"{name} has no split {split!r}; it has {', '.join(table)}")
        return table[split]
    # A split that was saved alone may still know its name.
    if table.split is not None and str(table.split) != split:
        raise UserError(f"{name} has no split {split!r}; it is {table.split}")
    return table


def _has_parquet(folder: Path) -> bool:
    if is_cloud(folder):  # here `**` would list the whole bucket
        return any(any(folder.glob(pattern)) for pattern in ("*.parquet", "*/*.parquet"))
    return any(folder.rglob("*.parquet"))


def _is_local(name: str) -> bool:
    """Whether a name can only be a path: a hub id has at most one slash and no such ending."""
    return name.endswith(_FILES) or name.startswith((".", "/", "~")) or name.count("/") > 1


def _parquet_in_bucket(name: str, *, streaming: bool) -> Any:
    """Load a folder as `datasets.load_dataset` does, which itself takes only disk or hub."""
    import datasets
    from datasets.data_files import get_data_patterns

    files = {
        split: [f"{name}/{pattern}" for pattern in patterns]
        for split, patterns in get_data_patterns(name).items()
    }
    return datasets.load_dataset("parquet", data_files=files, streaming=streaming)


def _parquet_file(path: Path, *, streaming: bool) -> Any:
    import datasets

    if path.suffix != ".parquet":
        raise UserError(f"{path} is no data set: a file must end in .jsonl or .parquet")
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    return kind.from_parquet(str(path))
