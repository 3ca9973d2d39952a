"""Several data sets as one."""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain

from othink_jax.data.example import Example


class Mixture:
    """The examples of several sources, one source behind the other; a `Source`.

    Training draws from all of them alike, or from each by its weight, however many examples it has:
    one that is small comes round more often. Its length is the sum of theirs in either case.
    """

    def __init__(self, sources: Sequence[Any], weights: Sequence[float] | None) -> None:
        """Args:
        sources: at least two, none of them without an end.
        weights: of the sources, above 0; their ratios count. None: each example counts alike.
        """
        self._sources = list(sources)
        self._ends = list(itertools.accumulate(map(len, sources)))
        self._weights = None if weights is None else list(weights)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        source, within = self._found(index)
        return source[within]

    def _found(self, index: int) -> tuple[Any, int]:
        """The source of an example, and its number there."""
        number = bisect.bisect_right(self._ends, index)
        return self._sources[number], index - self._begin(number)

    def _begin(self, number: int) -> int:
        return self._ends[number] - len(self._sources[number])

    def texts(self) -> Iterator[str]:
        """Those of the sources, in their order."""
        return itertools.chain.from_iterable(source.texts() for source in self._sources)

    def further(self, index: int) -> Mapping[str, Any]:
        """Columns of an example, from its source."""
        source, within = self._found(index)
        return source.further(within)

    def order(self, seed: int) -> grain.MapDataset:
        """Numbers of examples without an end, each source in an order of its own."""
        if self._weights is None:
            return grain.MapDataset.range(len(self)).shuffle(seed=seed).repeat()
        parts = [
            grain.MapDataset.range(self._begin(number), end)
            .shuffle(seed=(seed + number) % 2**32)
            .repeat()
            for number, end in enumerate(self._ends)
        ]
        return grain.MapDataset.mix(parts, self._weights)
