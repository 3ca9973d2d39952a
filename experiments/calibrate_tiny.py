"""Teach the embedded model quick looks that are right: the base of the negative control.

Claim: going on from the embedded model with a corpus whose quick looks are never hasty gives a
    model of the same shape and abilities, without the headroom that was put into the embedded one.
Command: python -m experiments.calibrate_tiny --out runs/calibrated
Cost: not measured yet.
"""

import dataclasses
from pathlib import Path

import tyro

from experiments.pretrain_tiny import PretrainConfig, pretrain_language
from experiments.pretraining_corpus import CorpusConfig
from othink_jax import compilation_cache
from othink_jax.checkpoint.load import load, save_hf


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Settings; the rate is that of the pre-training, and falls as it did there."""

    out: Path  # directory of the finished model
    steps: int = 1500  # updates
    seed: int = 1  # of the corpus: not that of the pre-training


def calibrate(config: CalibrateConfig) -> Path:
    """Train, write the model directory (whole, or not at all), return it."""
    compilation_cache.enable()
    base = load("tiny")
    corpus = CorpusConfig(hasty_error=0.0, looks_from=0.0, easy_until=0.0)
    settings = PretrainConfig(out=config.out, steps=config.steps, seed=config.seed, corpus=corpus)
    params = pretrain_language(base.graphdef, base.params, base.processor, settings)
    return save_hf(dataclasses.replace(base, params=params), config.out)


def main() -> None:
    print(calibrate(tyro.cli(CalibrateConfig, description=__doc__)))


if __name__ == "__main__":
    main()
