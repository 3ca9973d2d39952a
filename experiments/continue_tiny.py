"""Continue pre-training the embedded model on another mixture of its corpus.

Claim: without hasty quick looks this gives a model of the same shape that lacks the engineered
    headroom of the embedded one; with them, a twin for comparison.
Command: python -m experiments.continue_tiny --out runs/calibrated --hasty-error 0
Cost: five minutes on two CPU cores.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import tyro

from experiments.pretrain_tiny import PretrainConfig, pretrain_language
from experiments.pretraining_corpus import CorpusConfig
from othink_jax import compilation_cache
from othink_jax.checkpoint.load import load, save_hf
from othink_jax.digests import write_sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinueConfig:
    """Settings; learning rate and schedule are those of the pre-training."""

    out: Path  # directory of the finished model
    hasty_error: float  # probability that the answer of a quick look is wrong
    steps: int = 1500  # updates
    seed: int = 1  # seed of the corpus; differs from that of the pre-training


def continue_pretraining(config: ContinueConfig) -> Path:
    """Train, write the model directory atomically, and return it."""
    compilation_cache.enable()
    base = load("tiny")
    corpus = CorpusConfig(hasty_error=config.hasty_error, looks_from=0.0, easy_until=0.0)
    settings = PretrainConfig(out=config.out, steps=config.steps, seed=config.seed, corpus=corpus)
    params = pretrain_language(base.graphdef, base.params, base.processor, settings)
    unfinished = config.out.with_name(f".{config.out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    made = save_hf(dataclasses.replace(base, params=params), unfinished)
    record = {"goes_on_from": "tiny", **dataclasses.asdict(config)}
    del record["out"]
    (made / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")  # not the base's
    write_sums(made)
    return made.rename(config.out)


def main() -> None:
    print(continue_pretraining(tyro.cli(ContinueConfig, description=__doc__)))


if __name__ == "__main__":
    main()
