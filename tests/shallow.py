"""The model of tests of whole runs: the embedded one with one layer a tower, which compiles fast.

It is fine-tuned for seconds, once, so that it answers in the right form and is sometimes right:
where all rewards are the same, a policy learns nothing, and two runs of it are trivially equal.
"""

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import filelock
from safetensors.numpy import load_file, save_file

from othink_jax.checkpoint import convert, hf
from othink_jax.config import TINY_TEMPLATE, DataConfig, OptimizerConfig, SFTConfig
from othink_jax.digests import SUMS, sha256
from othink_jax.training.sft import train

_CACHE = Path(__file__).parents[1] / ".pytest_cache"
_OTHER_LAYERS = tuple(f"{name}.{n}." for name in ("model.layers", "visual.blocks") for n in (1, 2))


@functools.cache
def shallow() -> str:
    """Its directory; made where it is not there yet."""
    made_of = (sha256(hf.resolve("tiny") / "model.safetensors"), sha256(Path(__file__)))
    directory = _CACHE / f"shallow-{'-'.join(digest[:12] for digest in made_of)}"
    _CACHE.mkdir(exist_ok=True)
    with filelock.FileLock(_CACHE / "shallow.lock"):  # of the workers of the session
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
                os.replace(_make(Path(folder)), directory)
    return str(directory)


def _make(folder: Path) -> Path:
    cut = folder / "cut"
    shutil.copytree(hf.resolve("tiny"), cut)
    weights = load_file(cut / "model.safetensors")
    kept = {name: w for name, w in weights.items() if not name.startswith(_OTHER_LAYERS)}
    save_file(kept, cut / "model.safetensors")
    config = json.loads((cut / "config.json").read_text())
    config["num_hidden_layers"] = config["vision_config"]["depth"] = 1
    (cut / "config.json").write_text(json.dumps(config))
    train(
        SFTConfig(
            model=str(cut),
            out=folder / "run",
            data=DataConfig(
                task="counting", template=TINY_TEMPLATE, min_pixels=None, max_pixels=None
            ),
            steps=60,
            prompts_per_step=8,
            optimizer=OptimizerConfig(learning_rate=3e-3),
            max_completion_tokens=40,
            remat="none",
        )
    )
    made = folder / "made"
    convert.to_hf(folder / "run", made)
    (made / SUMS).unlink()  # tests change its files
    return made
