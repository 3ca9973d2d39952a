"""Synthetic tasks, exact, endless and deterministic: counting, geometry reasoning, grounding."""

from othink_jax.data.synthetic.counting import CountingDifficulty
from othink_jax.data.synthetic.geometry import GeometryDifficulty
from othink_jax.data.synthetic.grounding import GroundingDifficulty
from othink_jax.data.synthetic.preview import preview
from othink_jax.data.synthetic.source import LEVELS, SyntheticSource, generate

__all__ = [
    "LEVELS",
    "CountingDifficulty",
    "GeometryDifficulty",
    "GroundingDifficulty",
    "SyntheticSource",
    "generate",
    "preview",
]
