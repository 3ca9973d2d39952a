"""Settings that may change when a run resumes."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeVar

from othink_jax.config.checks import require
from othink_jax.config.compute import Attention, Remat, ScanLayers
from othink_jax.config.data import given_datasets
from othink_jax.config.labels import LABELS
from othink_jax.config.options import DatasetOption
from othink_jax.config.record import to_dict
from othink_jax.config.runs import TrainingConfig
from othink_jax.files import as_path

_C = TypeVar("_C", bound=TrainingConfig)
_OF_DEVICES = ("strategy", "devices", "tensor")
_OF_DATA = ("dataset", "images")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeConfig:
    """A run to resume. Settings that are not given stay as they are; nothing else may change."""

    resume: Path  # run directory
    steps: int | None = None  # of the whole run; the schedules of learning rate and KL end there
    dataset: DatasetOption = ()  # new places of the same data sets, without their weights
    images: Path | None = None  # new place of the images
    strategy: Literal["jit", "pmap", "mesh"] | None = None  # how an update is spread over devices
    devices: int | None = None  # number of devices (pmap, mesh)
    tensor: int | None = None  # tensor-parallel devices (mesh)
    micro_batches: int | None = None  # micro-batches per device and update (gradient accumulation)
    remat: Remat | None = None  # values that the backward pass recomputes
    scan_layers: ScanLayers | None = None  # whether layers are scanned over or unrolled
    attention: Attention | None = None  # the attention kernel
    checkpoint_every: int | None = None  # steps between checkpoints
    wandb: bool = False  # from here on, also log to Weights & Biases
    notes: str | None = None  # new notes; "" removes them
    tags: tuple[str, ...] | None = None  # new tags; --tags without a value removes them
    # Continue although the source of the run's custom trainer or reward functions has changed
    allow_changed_source: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "resume", as_path(self.resume))

    def applied(self, config: _C) -> _C:
        """The settings of a run, updated by these.

        Raises:
          UserError: a setting cannot be used, or does not go with the run's others.
        """
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("resume", "allow_changed_source")
            and getattr(self, field.name) is not None
            and getattr(self, field.name) is not False
            and (field.name != "dataset" or self.dataset)
        }
        devices = {name: given.pop(name) for name in _OF_DEVICES if name in given}
        data = {name: given.pop(name) for name in _OF_DATA if name in given}
        require(
            not data or bool(config.data.dataset),
            "--dataset and --images say where the data set of a run lies now; this one has a task",
        )
        parallel = config.parallel
        if "strategy" in devices:  # the old strategy's other settings may not fit the new one
            parallel = type(parallel)()
        where = config.data
        if "dataset" in data:
            where = where.with_dataset_paths(given_datasets(data.pop("dataset")))
        return dataclasses.replace(
            config,
            parallel=dataclasses.replace(parallel, **devices),
            data=dataclasses.replace(where, **data),
            **given,
        )


def changed_settings(before: TrainingConfig, after: TrainingConfig) -> dict[str, list[Any]]:
    """Settings that differ, with old and new value, by dotted name such as `data.limit`.

    Notes and tags are left out, since they do not change what a run is.
    """

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, dict):
                found |= flat(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value
        return found

    old, new = flat(to_dict(before)), flat(to_dict(after))
    return {
        name: [old[name], new[name]]
        for name in old
        if old[name] != new[name] and name not in LABELS
    }
