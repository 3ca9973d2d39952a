"""A data set that is read while it is used, and never stored."""

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

# The length of what has no end: more than any run draws, and grain shuffles 32-bit numbers.
ENDLESS = 2**31

# Rows that are held in memory to be shuffled, and as many that have just been drawn.
WINDOW = 1000

_OPEN: "weakref.WeakSet[Stream]" = weakref.WeakSet()


class Stream:
    """The rows of a table, pass after pass, each in another order; a `Source` without an end.

    The order of a pass is that of `datasets`: the files are shuffled, ten of them are read in turn,
    and what comes is shuffled in a window of 1000 rows. Examples are named after their place in the
    stream, not after that of their row in its file. The n-th is the same at every call, as long as
    the data set and the version of `datasets` are. The next one and the last thousand are at hand;
    for one further on, the rows before it are read too, for one further back, all from the first.
    """

    def __init__(
        self, table: Any, name: str, example: Callable[[Row, str], Example], *, seed: int
    ) -> None:
        """Args:
        table: a `datasets.IterableDataset`; its images are not decoded.
        name: of the data set, for people.
        example: makes one of a row and its name.
        seed: of the order.
        """
        self._table = table
        self._name = name
        self._example = example
        self._seed = seed
        self._lock = threading.Lock()  # a thread that prepares prompts may still be at work
        self._begin()
        _OPEN.add(self)

    def close(self) -> None:
        """End reading. It goes on from the first row, if it goes on."""
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
        """Nothing: it would take reading all of it."""
        return iter(())

    def further(self, index: int) -> Mapping[str, Any]:
        """As of any source; here its images are read as well."""
        return self[index].columns

    def first(self, count: int) -> list[Row]:
        """Rows of the first pass, fewer if there are not so many."""
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
    """Those of the first row of an IterableDataset; UserError if there is none."""
    with _named(name):
        first = next(iter(table), None)
    if first is None:
        raise UserError(f"{name} holds no examples")
    return list(first)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the library, the network or the files come up with
        raise UserError(f"the data set {name} cannot be read: {first_line(error)}") from error


@atexit.register
def _close_all() -> None:
    """Arrow's threads must not outlive the interpreter: github.com/apache/arrow/issues/45214."""
    for stream in list(_OPEN):
        stream.close()
