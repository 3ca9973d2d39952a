"""Mixtures of several data sets."""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain

from othink_jax.data.example import Example


class Mixture:
    """Several sources, concatenated into one `Source`.

    Without weights, training draws all examples equally often. With weights, it draws each source
    by its weight, whatever its size, so a small source repeats more often. The length is the sum of
    the sources' lengths in both cases.
    """

    def __init__(self, sources: Sequence[Any], weights: Sequence[float] | None) -> None:
        """Args:
        sources: at least two, none of them endless.
        weights: of the sources, above 0; only their ratios count. None weighs all examples alike.
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
        """The source of an example, and its index there."""
        number = bisect.bisect_right(self._ends, index)
        return self._sources[number], index - self._begin(number)

    def _begin(self, number: int) -> int:
        return self._ends[number] - len(self._sources[number])

    def texts(self) -> Iterator[str]:
        """Texts of the sources, in order."""
        return itertools.chain.from_iterable(source.texts() for source in self._sources)

    def further(self, index: int) -> Mapping[str, Any]:
        """See `data.sources.Source`."""
        source, within = self._found(index)
        return source.further(within)

    def order(self, seed: int) -> grain.MapDataset:
        """Endless shuffled indices of examples; with weights, each source is shuffled by itself."""
        if self._weights is None:
            return grain.MapDataset.range(len(self)).shuffle(seed=seed).repeat()
        parts = [
            grain.MapDataset.range(self._begin(number), end)
            .shuffle(seed=(seed + number) % 2**32)
            .repeat()
            for number, end in enumerate(self._ends)
        ]
        return grain.MapDataset.mix(parts, self._weights)
