"""Streamed data sets, which are read during use and never stored."""

import atexit
import contextlib
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Self

from othink_jax.data.example import Example
from othink_jax.data.rows import Row
from othink_jax.errors import UserError, first_line

# Nominal length of an endless source: more than any run draws; grain shuffles 32-bit indices.
ENDLESS = 2**31

# Rows in the shuffle buffer; as many of the rows drawn last are kept.
WINDOW = 1000

_OPEN: "weakref.WeakSet[Stream]" = weakref.WeakSet()


class Stream:
    """An endless `Source` over the rows of a table, reshuffled every epoch.

    `datasets` defines the order of an epoch: it shuffles the files, reads ten of them in turn, and
    shuffles their rows in a buffer of 1000. The id of an example holds its index in the stream, not
    its row in the file. The n-th example is the same at every call for the same data set and
    version of `datasets`. The next example and the last thousand are cheap. A later example also
    reads all rows before it; an earlier one reads all rows from the first.
    """

    def __init__(
        self, table: Any, name: str, example: Callable[[Row, str], Example], *, seed: int
    ) -> None:
        """Args:
        table: a `datasets.IterableDataset`; its images are not decoded.
        name: of the data set, for messages and ids.
        example: makes an example from a row and an id.
        seed: of the shuffle.
        """
        self._table = table
        self._name = name
        self._example = example
        self._seed = seed
        self._lock = threading.Lock()  # a prefetching thread may still be reading
        self._begin()
        _OPEN.add(self)

    def close(self) -> None:
        """Stop reading. Further use starts again from the first row."""
        with self._lock:
            self._rows.close()
            self._begin()

    def _begin(self) -> None:
        self._rows = self._passes()
        self._drawn = 0
        self._last: deque[Row] = deque(maxlen=WINDOW)

    def shuffled(self, seed: int) -> Self:
        """The same rows in the order of another seed."""
        return type(self)(self._table, self._name, self._example, seed=seed)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Example:
        with self._lock:
            if index < self._drawn - len(self._last):
                self._begin()
            while self._drawn <= index:
                self._last.append(next(self._rows))
                self._drawn += 1
            row = self._last[index - self._drawn]
        return self._example(row, f"{self._name}:{index}")

    def texts(self) -> Iterator[str]:
        """Nothing: it would mean reading the whole data set."""
        return iter(())

    def further(self, index: int) -> Mapping[str, Any]:
        """See `data.sources.Source`; here the images are read too."""
        return self[index].columns

    def first(self, count: int) -> list[Row]:
        """The first rows of the first epoch, at most `count`."""
        return list(itertools.islice(self._pass(0), count))

    def _passes(self) -> Generator[Row, None, None]:
        for number in itertools.count():
            yield from self._pass(number)

    def _pass(self, number: int) -> Iterator[Row]:
        shuffled = self._table.shuffle(seed=self._seed, buffer_size=WINDOW)
        shuffled.set_epoch(number)
        with self._reading():
            yield from shuffled

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with _named(self._name):
                yield
        except UserError:
            self._begin()
            raise


def first_columns(table: Any, name: str) -> list[str]:
    """Column names of the first row of an IterableDataset; raises UserError if it has no row."""
    with _named(name):
        first = next(iter(table), None)
    if first is None:
        raise UserError(f"{name} holds no examples")
    return list(first)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # library, network and files can raise anything
        raise UserError(f"the data set {name} cannot be read: {first_line(error)}") from error


@atexit.register
def _close_all() -> None:
    """Arrow's threads must not outlive the interpreter: github.com/apache/arrow/issues/45214."""
    for stream in list(_OPEN):
        stream.close()
