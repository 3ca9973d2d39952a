"""Recipes: the loss settings of a paper, under one name.

A recipe is a list of options of `grpo` and `plan`, which the user's own options override. The
optimizer, the batch and the sampling are not part of a recipe.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence

from othink_jax.presets import without_option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A loss from the literature."""

    source: str  # title, arXiv number, and place in the paper
    options: str  # command-line options
    missing: str = ""  # part of the paper's loss that `options` leaves out


_NO_KL = "--kl-schedule constant --kl-value 0"

RECIPES: Mapping[str, Recipe] = {
    "grpo_d": Recipe(source="OThink-MR1, arXiv 2503.16081, Eq. 2 to 5", options=""),
    "grpo": Recipe(
        source="DeepSeekMath, arXiv 2402.03300, Eq. 3 and section 4.2",
        options="--kl-schedule constant --kl-value 0.04",
    ),
    "drgrpo": Recipe(
        source="Dr. GRPO, arXiv 2503.20783, section 3.2",
        options=f"--advantage mean --reduction length {_NO_KL}",
    ),
    "dapo": Recipe(
        source="DAPO, arXiv 2503.14476, Eq. 8 and section 4.1",
        options=f"--clip-high 0.28 --reduction token --mask-truncated --redraw 3 {_NO_KL}",
        missing="soft overlong punishment, which is --overlong-cache N",
    ),
    "lite_ppo": Recipe(
        source="Tricks or Traps, arXiv 2508.08221, section 5",
        options=f"--advantage batch --reduction token {_NO_KL}",
    ),
    "gspo": Recipe(
        source="GSPO, arXiv 2507.18071, Eq. 5 and section 5.1",
        options=f"--objective gspo {_NO_KL}",
    ),
    "cispo": Recipe(
        source="MiniMax-M1, arXiv 2506.13585, Eq. 4 and 5",
        options=f"--objective cispo --reduction token {_NO_KL}",
    ),
    "sapo": Recipe(source="SAPO, arXiv 2511.20347", options=f"--objective sapo {_NO_KL}"),
    "gmpo": Recipe(source="GMPO, arXiv 2507.20673", options=f"--objective gmpo {_NO_KL}"),
    "luspo": Recipe(source="LUSPO, arXiv 2602.05261", options=f"--objective luspo {_NO_KL}"),
    "vespo": Recipe(
        source="VESPO, arXiv 2602.10693",
        options=f"--objective vespo --reduction token {_NO_KL}",
    ),
    "rloo": Recipe(
        source="RLOO, arXiv 2402.14740, section 3",
        options="--advantage rloo --reduction sum --kl-placement reward"
        " --kl-schedule constant --kl-value 0.03",
    ),
    "reinforce_pp": Recipe(
        source="REINFORCE++, arXiv 2501.03262",
        options="--advantage reinforce_pp --reduction token --kl-placement reward"
        " --kl-schedule constant --kl-value 0.01",
    ),
}


def with_recipe(arguments: Sequence[str]) -> list[str]:
    """A command line with the options of its `--recipe` before the user's own, which override them.

    Raises SystemExit(2) if there is no such recipe.
    """
    name, rest = without_option(arguments, "--recipe")
    if name is None:
        return rest
    if name not in RECIPES:
        print(f"othink-jax: --recipe must be one of {', '.join(RECIPES)}", file=sys.stderr)
        raise SystemExit(2)
    return [*RECIPES[name].options.split(), *rest]
