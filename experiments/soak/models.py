"""Flipped bits and cut files in a model directory.

Claim: whatever file of a model is damaged, the model loads unchanged or is refused in one line.
    There is never a traceback and, with checksums, never another number.
Command: python -m experiments.soak.models --json experiments/soak/results/models.json
Cost: seven minutes on two CPU cores for 2000 damages.
Shows: the outcome of each damage, by layout: the embedded model as exported (one file, and shards)
    and as converted to Orbax, with checksums; and both formats without checksums, as most
    directories are. Without them a changed weight cannot be detected. Such cases are counted
    separately: they are the reason for the checksums.

A case damages one file, all of them equally likely: one to three bits are flipped, or it is cut.
The loaded model is compared with that of the intact directory: configuration, parameters, sampling
settings, and the processor's encoding of a prompt.
"""

import argparse
import hashlib
import logging
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.soak.record import Campaign, Outcome, parser
from othink_jax.checkpoint.convert import to_hf, to_orbax
from othink_jax.checkpoint.load import Checkpoint, load
from othink_jax.digests import SUMS
from othink_jax.errors import UserError
from othink_jax.presets import generation_defaults

_LAYOUTS: dict[str, Callable[[Path], None]] = {
    "hf": lambda out: to_hf("tiny", out),
    "hf in shards": lambda out: to_hf("tiny", out, max_shard_size="2MB"),
    "orbax": lambda out: to_orbax("tiny", out),
    "hf, no checksums": lambda out: to_hf("tiny", out),
    "orbax, no checksums": lambda out: to_orbax("tiny", out),
}
_BITS = 3  # most bits that are flipped


def main(arguments: argparse.Namespace) -> None:
    logging.disable(logging.CRITICAL)  # libraries log damaged files beside raising
    campaign = Campaign("models", arguments)
    rng = random.Random(arguments.seed)
    by_layout: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as work:
        models = {name: _write(write, Path(work) / name) for name, write in _LAYOUTS.items()}
        for name, (directory, _) in models.items():
            if name.endswith("no checksums"):
                (directory / SUMS).unlink()
        for case in range(arguments.count):
            layout = rng.choice(list(models))
            outcome = _damaged(rng, case, layout, *models[layout])
            campaign.add(outcome)
            counts = by_layout.setdefault(layout, {})
            counts[outcome.kind] = counts.get(outcome.kind, 0) + 1
    campaign.finish(layouts={name: dict(sorted(by_layout[name].items())) for name in models})


def _write(write: Callable[[Path], None], directory: Path) -> tuple[Path, str]:
    """Write a model directory; returns it and the digest of the loaded model."""
    write(directory)
    return directory, _digest(load(directory, on_host=True), directory)


def _damaged(rng: random.Random, case: int, layout: str, whole: Path, expected: str) -> Outcome:
    """Outcome of loading a copy of a model directory with one damaged file."""
    directory = whole.with_name("damaged")
    shutil.copytree(whole, directory)
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    file = rng.choice(files)
    done = _damage(rng, file)
    where = f"case {case}: {layout}, {file.relative_to(directory)}, {done}"
    try:
        found = _digest(load(directory, on_host=True), directory)
    except UserError as error:
        if "\n" in str(error):
            return Outcome(kind="refused in several lines", good=False, detail=f"{where}: {error}")
        return Outcome(kind="refused in one line", good=True)
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome(kind="traceback", good=False, detail=f"{where}: {error!r}")
    finally:
        shutil.rmtree(directory)
    if found == expected:
        return Outcome(kind="loaded as it was", good=True)
    if layout.endswith("no checksums"):
        return Outcome(kind="other numbers, and no checksums to tell", good=True)
    return Outcome(kind="other numbers without a word", good=False, detail=where)


def _damage(rng: random.Random, file: Path) -> str:
    """Flip bits of a file, or cut it; returns a description."""
    content = bytearray(file.read_bytes())
    if not content or rng.random() < 0.25:
        kept = rng.randrange(len(content)) if content else 0
        file.write_bytes(content[:kept])
        return f"cut to {kept} of {len(content)} bytes"
    flipped = [
        (rng.randrange(len(content)), rng.randrange(8)) for _ in range(rng.randint(1, _BITS))
    ]
    for byte, bit in flipped:
        content[byte] ^= 1 << bit
    file.write_bytes(content)
    return f"bits flipped: {flipped}"


def _digest(checkpoint: Checkpoint, directory: Path) -> str:
    """Digest of everything that determines the model's answers."""
    processor = checkpoint.processor
    prompt = processor.encode("How many red circles are there?", [_picture()])
    said: Any = [
        checkpoint.config,
        processor.image_settings,
        processor.eos_token_ids,
        processor.never_sampled,
        processor.pad_token_id,
        processor.encode_answer("<answer> 3 </answer>").tolist(),
        sorted(processor.tokenizer.get_vocab().items()),
        processor.decode(np.arange(checkpoint.config.text.vocab_size)),
        generation_defaults(str(directory)),
    ]
    found = hashlib.sha256(repr(said).encode("utf-8", "surrogatepass"))
    for leaf in (*jax.tree.leaves(checkpoint.params), prompt.tokens, *prompt.patches):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def _picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (84, 112, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


if __name__ == "__main__":
    main(parser(__doc__, count=2000).parse_args())
