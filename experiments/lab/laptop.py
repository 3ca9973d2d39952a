"""Base class of experiments on the embedded model alone, and the models they start from."""

from pathlib import Path
from typing import ClassVar, Literal

from experiments.continue_tiny import ContinueConfig, continue_pretraining
from experiments.lab.experiment import Experiment, Options, Result
from experiments.lab.scales import Laptop
from othink_jax.config import EvaluateConfig, Task
from othink_jax.errors import UserError

# `embedded` is the model of the package. The others continue its pre-training, with quick looks
# that are as hasty as before, or never hasty.
Base = Literal["embedded", "hasty", "calibrated"]
_HASTY_ERROR: dict[Base, float] = {"hasty": 0.5, "calibrated": 0.0}


class LaptopExperiment(Experiment):
    """An experiment that exists only at the laptop's scale."""

    bases: ClassVar[tuple[Base, ...]] = ("embedded",)  # bases that the experiment needs

    def __init__(self, options: Options) -> None:
        if options.scale != "laptop":
            raise UserError(f"{self.name} is about the embedded model: it has no --scale paper")
        super().__init__(options)

    @property
    def laptop(self) -> Laptop:
        """The settings that all experiments share at this scale."""
        assert isinstance(self.scale, Laptop)
        return self.scale

    def both_tests(self, task: Task) -> list[EvaluateConfig]:
        """The greedy and the sampled test of a task."""
        return [self.laptop.test(task, temperature=value) for value in (0.0, 1.0)]

    def model(self, base: Base) -> str:
        """Name or path of a base's model; `run` makes the missing ones."""
        return "tiny" if base == "embedded" else str(self.options.root / base)

    def run(self) -> Result:
        for base in self.bases:
            if base != "embedded" and not Path(self.model(base)).is_dir():
                continue_pretraining(
                    ContinueConfig(out=Path(self.model(base)), hasty_error=_HASTY_ERROR[base])
                )
        return super().run()
