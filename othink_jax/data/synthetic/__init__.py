"""Synthetic tasks: visual counting and geometry reasoning, exact, endless, deterministic."""

from othink_jax.data.synthetic.counting import CountingDifficulty
from othink_jax.data.synthetic.geometry import GeometryDifficulty
from othink_jax.data.synthetic.preview import preview
from othink_jax.data.synthetic.source import LEVELS, SyntheticSource, generate

__all__ = [
    "LEVELS",
    "CountingDifficulty",
    "GeometryDifficulty",
    "SyntheticSource",
    "generate",
    "preview",
]
