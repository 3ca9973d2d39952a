"""Search for the fewest micro-batches with which a run fits into its devices' memory."""

import dataclasses
import importlib.metadata
from collections.abc import Callable

from othink_jax.config import GRPOConfig
from othink_jax.model.attention import check_attention
from othink_jax.plan.compiled import Report, compiled
from othink_jax.plan.devices import compile_only_devices
from othink_jax.plan.lowering import lowering
from othink_jax.plan.report import Plan
from othink_jax.plan.shapes import model_of
from othink_jax.plan.targets import Target
from othink_jax.training.parallel import make_parallel

_VERSIONED = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")


def plan(
    config: GRPOConfig,
    *,
    target: Target | None = None,
    device_memory: int | None = None,
    tried: Callable[[Plan], None] = lambda _: None,
) -> Plan:
    """The plan with the fewest micro-batches, from `config.micro_batches` up, that fits.

    If none fits, it is the plan with the most micro-batches, or the first if more cannot help.
    Programs that do not take prompts in micro-batches are compiled once.

    Args:
      config: settings of the run; its data are not read.
      target: machine to compile for; None simulates devices on the CPU.
      device_memory: bytes of one device, instead of the target's.
      tried: is called with every plan that is made.

    Raises:
      UserError: as for a run; the compiler of the target is missing; or a bound that the worst case
        needs is missing.
    """
    devices = None if target is None else compile_only_devices(target)
    parallel = make_parallel(config.parallel, devices)
    prompts = config.prompts_per_step
    parallel.check_batch(prompts, config.micro_batches)
    model = model_of(config, "cpu" if target is None else target.chip.backend)
    parallel.check_model(model.config)
    check_attention(model.compute)
    share = prompts // parallel.batch_shards
    known: dict[str, Report] = {}
    memory = device_memory or (target.chip.memory if target else 0)

    def make(micro_batches: int) -> Plan:
        cut = dataclasses.replace(config, micro_batches=micro_batches)
        run = lowering(cut, model, parallel)
        reports = [known.get(each.name) or compiled(each) for each in run.programs]
        known.update(
            {each.name: report for each, report in zip(run.programs, reports, strict=True)
             if not each.cut}
        )  # fmt: skip
        made = Plan(
            config=cut,
            target=target,
            devices=len(parallel.devices),
            device_memory=memory,
            staying=run.staying,
            programs=tuple(reports),
            versions=_versions(),
        )
        tried(made)
        return made

    pieces = [n for n in range(config.micro_batches, share + 1) if share % n == 0]
    return _least(make, pieces, known)


def _least(make: Callable[[int], Plan], pieces: list[int], known: dict[str, Report]) -> Plan:
    """Bisect for the fewest pieces that fit: more pieces never take more memory."""
    made = make(pieces[0])
    hopeless = sum(made.staying.values()) > made.device_memory or any(
        each.refused or made.needed(each) > made.device_memory
        for each in made.programs
        if each.name in known  # it does not take micro-batches
    )
    if made.fits or hopeless or len(pieces) == 1:
        return made
    best = make(pieces[-1])
    low, high = 0, len(pieces) - 1
    while best.fits and high - low > 1:
        middle = (low + high) // 2
        made = make(pieces[middle])
        low, high = (low, middle) if made.fits else (middle, high)
        best = made if made.fits else best
    return best


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
