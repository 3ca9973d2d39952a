"""Parquet files, folders written by `datasets`, and the hub, through `datasets`."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from othink_jax.errors import UserError, first_line

_FILES = (".parquet", ".csv", ".tsv", ".json", ".arrow", ".zip")


def open_table(name: str, split: str) -> Any:
    """A `datasets.Dataset`, which stays on disk: its size does not matter to memory.

    A set of the hub is downloaded whole, or taken from the hub's cache.

    Args:
      name: a parquet file, a folder of parquet files (whose names tell their splits, as on the
        hub), a folder written by `datasets.save_to_disk`, or a hub id.
      split: which split, where there are several; a single file has none.

    Raises:
      UserError: there is no such data set or split, it cannot be read, or `datasets` is missing.
    """
    return _open(name, split, streaming=False)


def open_stream(name: str, split: str) -> Any:
    """A `datasets.IterableDataset` of rows whose images are not decoded; nothing is stored.

    Args:
      name, split, and what is raised: as of `open_table`; a folder must have parquet files.
    """
    table = _open(name, split, streaming=True)
    if table.features is not None:
        table = table.decode(False)
    # No Arrow: of that, `datasets` cannot shuffle more than 2 GiB in a window.
    return table.map(dict, features=table.features)


def _open(name: str, split: str, *, streaming: bool) -> Any:
    path = Path(name)
    if not path.exists() and _is_local(name):
        raise UserError(f"there is no file or folder {name}")
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"reading {name} needs the package `datasets`: pip install datasets"
        ) from None
    try:
        if path.is_file():
            return _parquet_file(path, streaming=streaming)
        saved = any((path / file).is_file() for file in ("dataset_info.json", "dataset_dict.json"))
        without = path.is_dir() and not any(path.rglob("*.parquet"))
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
        elif path.is_dir() or streaming:
            table = datasets.load_dataset(name, streaming=streaming)
        else:
            # Not by its id: `datasets` does not look into the hub's cache when it is offline.
            table = datasets.load_dataset(snapshot_download(name, repo_type="dataset"))
    except UserError:
        raise
    except Exception as error:  # whatever the library, the network or the files come up with
        raise UserError(f"the data set {name} cannot be read: {first_line(error)}") from error
    if isinstance(table, datasets.DatasetDict | datasets.IterableDatasetDict):
        if split not in table:
            raise UserError(f"{name} has no split {split!r}; it has {', '.join(table)}")
        return table[split]
    # One that was saved alone may still know which split it was.
    if table.split is not None and str(table.split) != split:
        raise UserError(f"{name} has no split {split!r}; it is {table.split}")
    return table


def _is_local(name: str) -> bool:
    """Whether a name can only be a path: a hub id has at most one slash and no such ending."""
    return name.endswith(_FILES) or name.startswith((".", "/", "~")) or name.count("/") > 1


def _parquet_file(path: Path, *, streaming: bool) -> Any:
    import datasets

    if path.suffix != ".parquet":
        raise UserError(f"{path} is no data set: a file must end in .jsonl or .parquet")
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    return kind.from_parquet(str(path))
