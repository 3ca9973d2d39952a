"""Cost of padding the batches of a run to few shapes, each of which needs a compilation.

Claim: 500 steps over images of any sizes need at most 2 shapes of prompts and 6 of updates, for on
    average a third more FLOPs than batches padded to their own largest sizes.
Command: python -m experiments.bench.padding --json runs/padding.json
Cost: half a minute on one CPU core; nothing is compiled.
Shows: of simulated runs, the number of sampling programs and of update programs; FLOPs of reference
    and update at 2B over those of batches padded to their own largest prompt, image and completion;
    padded tokens and patches over real ones.
"""

import argparse
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.shapes import Shapes, presets, unique_flops
from experiments.bench.timing import write_json
from othink_jax.checkpoint.load import load
from othink_jax.data.images import resized_shape
from othink_jax.data.processing import PadTo, Processor
from othink_jax.training.shapes import SURVEYED, choose_shapes, largest_prompts, quarters

STEPS = 500
GROUP = 8
MAX_PROMPT_TOKENS, MAX_NEW_TOKENS = 1024, 512  # the defaults of `othink-jax grpo`
_PHOTOS = ((480, 640), (640, 480), (427, 640), (375, 500), (1080, 1920), (3024, 4032), (612, 612))


def _photos(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.array(_PHOTOS)[rng.integers(len(_PHOTOS), size=count)]


def _any_size(rng: np.random.Generator, count: int) -> np.ndarray:
    area = rng.lognormal(math.log(180), 0.6, (count, 1))
    return np.clip(area * rng.lognormal(0, 0.2, (count, 2)), 30, 3000)


def _two_kinds(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.where(rng.random((count, 1)) < 0.03, [[600, 660]], [[150, 200]])


# Functions that sample height and width, in pixels, of a number of images.
IMAGES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "80 to 500 pixels": lambda rng, count: rng.integers(80, 501, (count, 2)),
    "photos": _photos,
    "CLEVR": lambda rng, count: np.tile([320, 480], (count, 1)),
    "any size (log-normal)": _any_size,
    "3% large, others small": _two_kinds,
}
# Median tokens of a completion in the first and in the last step; log-normal, sigma 0.35.
COMPLETIONS = {"300 to 100": (300, 100), "60": (60, 60)}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sizes in a batch before padding."""

    tokens: np.ndarray  # of each prompt
    patches: np.ndarray  # of each prompt's image
    completions: np.ndarray  # tokens of each completion

    @property
    def shape(self) -> tuple[int, int, int]:
        """Largest sizes: P, K, T."""
        return int(self.tokens.max()), int(self.patches.max()), int(self.completions.max())


def batches(
    processor: Processor, images: str, medians: tuple[int, int], prompts: int, seed: int
) -> list[Batch]:
    """Batches of a run: prompts of one image and 50 to 100 tokens of text."""
    rng, settings, made = np.random.default_rng(seed), processor.image_settings, []
    for median in np.linspace(*medians, STEPS):
        sides = IMAGES[images](rng, prompts).astype(int)
        pixels = [math.prod(resized_shape(int(h), int(w), settings)) for h, w in sides]
        patches = np.array(pixels) // settings.patch_size**2
        text = rng.integers(50, 101, prompts)
        drawn = rng.lognormal(math.log(median), 0.35, prompts * GROUP)
        completions = np.clip(np.ceil(drawn), 1, MAX_NEW_TOKENS).astype(int)
        made.append(Batch(patches // settings.merge_size**2 + text, patches, completions))
    return made


Shape = tuple[PadTo, int]  # shape of prompts, and T


def paddings(processor: Processor, run: Sequence[Batch]) -> dict[str, list[Shape]]:
    """Padded shapes of all steps, by padding strategy."""
    needed = [
        processor.multiples(prompt_tokens=tokens, image_slots=1, patches=patches)
        for tokens, patches, _ in (batch.shape for batch in run)
    ]
    longest = [length for *_, length in (batch.shape for batch in run)]
    few = choose_shapes(
        processor,
        needed[:SURVEYED],
        quarters(MAX_NEW_TOKENS),
        max_prompt_tokens=MAX_PROMPT_TOKENS,
    )
    largest = largest_prompts(processor, max_prompt_tokens=MAX_PROMPT_TOKENS, image_slots=1)

    def power(size: int) -> int:
        return 1 << (size - 1).bit_length()

    prompts = [few.of_prompts(shape) for shape in needed]
    doubled = [PadTo(**{k: power(v) for k, v in vars(shape).items()}) for shape in needed]
    return {
        "multiples of 32, 64, 64": [
            (shape, min(MAX_NEW_TOKENS, math.ceil(length / 64) * 64))
            for shape, length in zip(needed, longest, strict=True)
        ],
        "powers of two": [
            (shape, power(length)) for shape, length in zip(doubled, longest, strict=True)
        ],
        "one shape": [(largest, MAX_NEW_TOKENS)] * len(run),
        "few": [
            (shape, few.of_completions(shape, length))
            for shape, length in zip(prompts, longest, strict=True)
        ],
    }


def flops(prompts: int, tokens: int, patches: int, length: int) -> float:
    """FLOPs of reference and update of a 2B model; padding costs what real tokens do."""
    padded: Shapes = dataclasses.replace(
        presets()["gpu_2b"],
        prompts=prompts,
        group=GROUP,
        prompt_tokens=tokens,
        image=(1, patches // 4),
        length=length,
    )
    return unique_flops(padded)


def measure(processor: Processor, images: str, completions: str, prompts: int) -> dict[str, Any]:
    """Cost of each padding strategy in one simulated run."""
    run = batches(processor, images, COMPLETIONS[completions], prompts, seed=0)
    least = sum(flops(prompts, *batch.shape) for batch in run)
    rows = {}
    for name, shapes in paddings(processor, run).items():
        padded = [(shape.prompt_tokens, shape.patches, length) for shape, length in shapes]
        rows[name] = {
            "sampling_programs": len({shape for shape, _ in shapes}),
            "update_programs": len(set(shapes)),
            "flops_over_own": sum(flops(prompts, *shape) for shape in padded) / least,
            "prompt_tokens_over_real": sum(prompts * P for P, _, _ in padded)
            / sum(int(batch.tokens.sum()) for batch in run),
            "patches_over_real": sum(prompts * K for _, K, _ in padded)
            / sum(int(batch.patches.sum()) for batch in run),
            "completion_tokens_over_real": sum(prompts * GROUP * T for _, _, T in padded)
            / sum(int(batch.completions.sum()) for batch in run),
        }
    return {"images": images, "completions": completions, "prompts": prompts, "ways": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the record to this file")
    arguments = parser.parse_args()
    processor = load("tiny", min_pixels=3136, max_pixels=401408).processor
    runs = []
    for images, completions, prompts in itertools.product(IMAGES, COMPLETIONS, (16, 4)):
        runs.append(measure(processor, images, completions, prompts))
        print(f"{images}, {prompts} prompts, completions of {completions} tokens")
        for name, row in runs[-1]["ways"].items():
            print(
                f"  {name:<26}{row['sampling_programs']:>4}{row['update_programs']:>5}"
                f"{row['flops_over_own']:>8.2f}x"
                f"{row['prompt_tokens_over_real']:>8.2f}{row['patches_over_real']:>8.2f}"
                f"{row['completion_tokens_over_real']:>8.2f}"
            )
    if arguments.json is not None:
        write_json(arguments.json, {"steps": STEPS, "group": GROUP, "seed": 0, "runs": runs})


if __name__ == "__main__":
    main()
