"""Which KL terms descend KL(pi || pi_ref), and at what variance: estimator, gradient, placement.

Claim (ours): of a term in the loss, the estimator's value says nothing of what is descended. On the
    policy's own samples k1 is noise, k2 descends the KL of each token, k3 (Eq. 5) that of the
    reference to the policy; only k1 in the reward descends the KL of whole sequences.
Command: python -m experiments.kl_gradients
Cost: ten minutes on two CPU cores, five of them for the policies of the embedded model.
Shows: bias, direction and noise of the gradient of every term under three reductions, against the
    true gradient: exactly, over all sequences of small random policies at several distances from
    the reference, sampled by the policy itself and by an older one; and on the embedded model after
    50 updates of GRPO without a KL, with the KL of each token over the whole vocabulary.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.kl.enumeration import DISTANCES, Point, enumerate_gradients, random_points
from experiments.kl.sampling import (
    KINDS,
    Gradients,
    Products,
    Samples,
    bootstrap,
    products,
    sample_gradients,
)
from experiments.kl.terms import DISTINCT, Quality, Reduction, Term
from experiments.lab.cells import Cell
from experiments.lab.experiment import Options, Result, main
from experiments.lab.laptop import LaptopExperiment
from othink_jax.checkpoint.load import load
from othink_jax.config import Task
from othink_jax.report.table import Table
from othink_jax.statistics import mean_interval

UPDATES = 50
TASK: Task = "counting"
Kind = tuple[Term, Reduction]
# By kind: one Quality per point, or per seed.
Enumerated = Mapping[Kind, Sequence[Quality]]
_SHOWN = 1.0  # distance of the first table: that of a policy that has learned something
_READ = (
    "Cosine: of the expected gradient with that of the KL of whole sequences. Descent: how far a"
    " step goes down it, 1 as far as its own gradient. Noise: standard deviation of the gradient of"
    " one sequence, over the length of the true one. In parentheses: 95%, Student's t"
)


class KLGradients(LaptopExperiment):
    name: ClassVar[str] = "kl_gradients"
    policies: ClassVar[int] = 20  # random policies at each distance
    samples: ClassVar[Samples] = Samples()
    draws: ClassVar[int] = 1000  # of the bootstrap

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.updates = options.steps or UPDATES

    def _policy(self, seed: int) -> Cell:
        """A policy trained without a KL term, so that there is a KL to descend."""
        free = {"kl_schedule": "constant", "kl_value": 0.0, "steps": self.updates}
        return self.laptop.cell("grpo", TASK, seed, **free).tested_on()

    def cells(self) -> Sequence[Cell]:
        return [self._policy(seed) for seed in self.seeds]

    def _sampled(self, seed: int) -> Gradients:
        policy = load(self.options.root / self._policy(seed).name)
        data = self.laptop.test(TASK, "train").data
        return sample_gradients(policy, load(self.laptop.model), data, self.samples, seed)

    def result(self) -> Result:
        points, logits = random_points(self.policies)
        exact = enumerate_gradients(logits)
        embedded: dict[Kind, list[Products]] = {kind: [] for kind in KINDS}
        facts = []
        for seed in self.seeds:
            found = self._sampled(seed)
            facts.append({"seed": seed, "kl": found.kl, "tokens": found.length})
            for kind, of_seeds in embedded.items():
                of_seeds.append(products(found, kind))
        by_seed = {kind: [one.quality() for one in found] for kind, found in embedded.items()}
        intervals = {
            kind: [bootstrap(one, self.draws) for one in found] for kind, found in embedded.items()
        }
        tables = [
            answer_table(points, exact, by_seed),
            distance_table(points, exact),
            seed_table(self.seeds, by_seed, intervals),
        ]
        numbers = {
            "policies": facts,
            "points": [dataclasses.asdict(point) for point in points],
            "enumerated": [_kind_record(kind) | by_point(exact[kind]) for kind in KINDS],
            "embedded": [
                _kind_record(kind)
                | {"seed": seed}
                | dataclasses.asdict(one)
                | {"bootstrap": intervals[kind][number]}
                for kind, found in by_seed.items()
                for number, (seed, one) in enumerate(zip(self.seeds, found, strict=True))
            ],
        }
        return Result(tables=tables, figure=draw(points, exact, by_seed), numbers=numbers)


def at(
    points: Sequence[Point],
    found: Sequence[Quality],
    *,
    off_policy: bool,
    distance: float | None = None,
) -> list[Quality]:
    """Qualities of the policies at a distance, or at all distances."""
    return [
        one
        for point, one in zip(points, found, strict=True)
        if point.off_policy == off_policy and distance in (None, point.distance)
    ]


def by_point(found: Sequence[Quality]) -> dict[str, list[float]]:
    """Each number at every point, in order, rounded to the four digits that a page needs."""
    return {
        field.name: [float(f"{getattr(one, field.name):.4g}") for one in found]
        for field in dataclasses.fields(Quality)
    }


def verdict(found: Sequence[Quality]) -> str:
    """Whether a gradient descends KL(pi || pi_ref), by enumeration, at every point."""
    if all(one.cosine > 1 - 1e-6 for one in found):
        return "yes"
    if all(one.cosine_tokens > 1 - 1e-6 for one in found):
        return "that of each token"
    if all(abs(one.descent) < 1e-9 for one in found):
        return "no, it is noise"
    return "not exactly"


def answer_table(points: Sequence[Point], exact: Enumerated, by_seed: Enumerated) -> Table:
    """The main result: which KL terms descend KL(pi || pi_ref)."""
    rows = []
    for term, reduction in KINDS:
        found, embedded = exact[term, reduction], by_seed[term, reduction]
        near = at(points, found, off_policy=False, distance=_SHOWN)
        older = at(points, found, off_policy=True, distance=_SHOWN)
        rows.append(
            [
                term.label,
                reduction,
                verdict(at(points, found, off_policy=False)),
                *(_mean(near, name) for name in ("cosine", "descent", "noise")),
                *(_mean(older, name) for name in ("cosine", "descent")),
                *(_mean(embedded, name) for name in ("cosine", "descent", "noise")),
            ]
        )
    columns = ["term", "reduction", "descends the KL?"]
    columns += [f"enumerated: {name}" for name in ("cosine", "descent", "noise")]
    columns += [f"older sampler: {name}" for name in ("cosine", "descent")]
    columns += [f"embedded model: {name}" for name in ("cosine", "descent", "noise")]
    return Table(
        title="Which KL terms descend KL(pi || pi_ref)",
        columns=columns,
        rows=rows,
        note="The gradient `reverse` makes any estimator k2, `forward` makes it k3. Reductions: sum"
        " of a sequence's tokens, mean of its tokens, mean over all tokens of a batch. Enumerated:"
        f" random policies at a distance of {_SHOWN:g}; the older sampler is half-way to the"
        f" reference. {_READ}, over policies, and of the embedded model over seeds.",
    )


def distance_table(points: Sequence[Point], exact: Enumerated) -> Table:
    """Enumeration by distance, under the sum over tokens."""
    names = ("cosine", "cosine_tokens", "bias", "noise")
    rows = [
        [
            term.label,
            "an older policy" if off_policy else "the policy",
            f"{distance:g}",
            *(
                _mean(at(points, exact[term, "sum"], off_policy=off_policy, distance=distance), x)
                for x in names
            ),
        ]
        for term, off_policy, distance in itertools.product(DISTINCT, (False, True), DISTANCES)
    ]
    columns = ["term", "sampled by", "distance"]
    columns += ["cosine", "cosine, contexts fixed", "bias", "noise"]
    return Table(
        title="By the distance of the policy from the reference (sum over tokens, enumerated)",
        columns=columns,
        rows=rows,
        note="Distance: standard deviation of the difference of logits. Contexts fixed: the true"
        " gradient is that of the tokens' KL, without what a token does to later ones. Bias: length"
        f" of the difference from the true gradient, over that of the true one. {_READ}.",
    )


def seed_table(
    seeds: Sequence[int],
    by_seed: Enumerated,
    intervals: Mapping[Kind, Sequence[Mapping[str, tuple[float, float]]]],
) -> Table:
    """Every seed of the embedded model, under the sum over tokens."""
    names = ("cosine", "cosine_tokens", "descent", "bias", "noise")

    def row(term: Term, number: int) -> list[str]:
        one, interval = by_seed[term, "sum"][number], intervals[term, "sum"][number]
        told = [_with_interval(getattr(one, name), *interval[name]) for name in names]
        return [term.label, str(seeds[number]), *told]

    return Table(
        title="On the embedded model (sum over tokens)",
        columns=["term", "seed", "cosine", "cosine, contexts fixed", "descent", "bias", "noise"],
        rows=[row(*one) for one in itertools.product(DISTINCT, range(len(seeds)))],
        note="In parentheses: 95%, by a bootstrap over batches.",
    )


def _mean(found: Iterable[Quality], name: str) -> str:
    """Mean of one number over several policies, and its interval."""
    return _with_interval(*mean_interval([getattr(one, name) for one in found]))


def _with_interval(value: float, low: float, high: float) -> str:
    value, low, high = (round(number, 2) + 0.0 for number in (value, low, high))  # no minus 0
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _kind_record(kind: Kind) -> dict[str, Any]:
    term, reduction = kind
    return dataclasses.asdict(term) | {"reduction": reduction}


def draw(points: Sequence[Point], exact: Enumerated, by_seed: Enumerated) -> Figure:
    """Cosine and noise by distance, and descent on the embedded model; sum over tokens."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")

    def curves(panel: Axes, value: Callable[[Quality], float], *, off_policy: bool) -> None:
        for number, term in enumerate(DISTINCT):
            found = [
                at(points, exact[term, "sum"], off_policy=off_policy, distance=distance)
                for distance in DISTANCES
            ]
            means = [fmean(map(value, one)) for one in found]
            marker = {"own": "o", "ratio": "^"}[term.gradient]
            style = "--" if term.placement == "reward" else "-"
            panel.plot(DISTANCES, means, style, color=f"C{number}", marker=marker, label=term.label)
        panel.set(xscale="log", xlabel="distance of the logits from the reference")

    curves(panels[0, 0], lambda one: one.cosine, off_policy=False)
    panels[0, 0].set(title="sampled by the policy", ylabel="cosine with the true gradient")
    curves(panels[0, 1], lambda one: one.cosine, off_policy=True)
    panels[0, 1].set(title="sampled by an older policy", ylabel="cosine with the true gradient")
    curves(panels[1, 0], lambda one: one.noise, off_policy=False)
    panels[1, 0].set(title="noise of one sequence", ylabel="over the true gradient", yscale="log")
    for place, term in enumerate(DISTINCT):
        values = [one.descent for one in by_seed[term, "sum"]]
        panels[1, 1].plot(values, [place] * len(values), "o", color=f"C{place}", alpha=0.6)
    panels[1, 1].axvline(0, color="black", linewidth=0.8)
    panels[1, 1].axvline(1, color="black", linewidth=0.8, linestyle=":")
    panels[1, 1].set_yticks(range(len(DISTINCT)), [term.label for term in DISTINCT])
    panels[1, 1].invert_yaxis()
    panels[1, 1].set(title="embedded model", xlabel="descent, a dot a seed; 1 is all of it")
    panels[0, 0].legend(frameon=False, fontsize=8)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main(KLGradients, __doc__)
