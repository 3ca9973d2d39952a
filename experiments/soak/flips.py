"""Flipped bits and cut files in a run directory.

Claim: whatever file of a run is damaged, the run resumes to the same result or says in one line
    what is wrong. It never ends in a traceback or in other numbers.
Command: python -m experiments.soak.flips --json experiments/soak/results/flips.json
Cost: about twenty minutes on two CPU cores for 400 damages.
Shows: the outcome of each damage: no effect, a warning and the same result, or a refusal.
"""

import argparse
import contextlib
import io
import random
import shutil
import tempfile
import traceback
from pathlib import Path
from typing import Any

from experiments.soak.record import Campaign, Outcome, parser
from experiments.soak.runs import outcome_of
from othink_jax import compilation_cache
from othink_jax.config import TINY_TEMPLATE, DataConfig, OptimizerConfig, SFTConfig
from othink_jax.errors import UserError
from othink_jax.report import write_report
from othink_jax.training.sft import resume, train

# Files that neither a resumed run nor the report reads.
_UNREAD = {".lock"}


def settings(out: Path) -> SFTConfig:
    """Settings of a run of three steps with a checkpoint after each."""
    return SFTConfig(
        model="tiny",
        out=out,
        data=DataConfig(
            task="counting", limit=4, template=TINY_TEMPLATE, min_pixels=None, max_pixels=None
        ),
        steps=3,
        prompts_per_step=2,
        optimizer=OptimizerConfig(learning_rate=3e-4, lr_schedule="constant"),
        max_completion_tokens=40,
        remat="none",
        checkpoint_every=1,
        keep_checkpoints=3,
    )


def damage(run: Path, chance: random.Random) -> str:
    """Flip a bit of a file, or cut it; returns a description."""
    files = sorted(f for f in run.rglob("*") if f.is_file() and f.name not in _UNREAD)
    # Choose the folder first, because that of the reference has most of the files.
    rooms: dict[str, list[Path]] = {}
    for file in files:
        if file.stat().st_size:
            parts = file.relative_to(run).parts
            rooms.setdefault(parts[0] if len(parts) > 1 else "", []).append(file)
    file = chance.choice(rooms[chance.choice(sorted(rooms))])
    content = bytearray(file.read_bytes())
    name = file.relative_to(run)
    if chance.random() < 0.3:
        kept = chance.randrange(len(content))
        file.write_bytes(content[:kept])
        return f"{name} cut to {kept} of {len(content)} bytes"
    bit = chance.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return f"{name}, bit {bit} of {8 * len(content)} flipped"


def try_run(run: Path, done: str, expected: tuple[Any, ...]) -> Outcome:
    """Write the report of a damaged run, and resume it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            write_report(run)
            resume(run)
    except UserError as error:
        if "\n" in str(error):
            return Outcome(kind="more than a line", good=False, detail=f"{done}: {error}")
        return Outcome(kind="refused in one line", good=True)
    except BaseException:
        return Outcome(
            kind="a traceback", good=False, detail=f"{done}: {traceback.format_exc()[-1500:]}"
        )
    told = "damaged" in said.getvalue() or "not what was written" in said.getvalue()
    rows, params = outcome_of(run)
    if (rows, params) == expected:
        return Outcome(kind="said, and the same end" if told else "the same end", good=True)
    if told and params == expected[1]:
        return Outcome(kind="said that rows are not what was written", good=True)
    return Outcome(kind="another end without a word", good=False, detail=done)


def main(arguments: argparse.Namespace) -> None:
    compilation_cache.enable()
    record = Campaign("flips", arguments)
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        train(settings(whole))
        expected = outcome_of(whole)
        halfway = shutil.copytree(whole, Path(folder) / "halfway")
        shutil.rmtree(halfway / "checkpoints" / "3")
        for number in range(arguments.count):
            run = shutil.copytree(halfway, Path(folder) / str(number))
            done = damage(run, chance)
            record.add(try_run(run, done, expected))
            shutil.rmtree(run)
    record.finish()


if __name__ == "__main__":
    main(parser(__doc__, count=400).parse_args())
