"""Experiments about the embedded model alone, and the two bases that they start from."""

from typing import Literal, get_args

from experiments.calibrate_tiny import CalibrateConfig, calibrate
from experiments.lab.experiment import Experiment, Options, Result
from experiments.lab.scales import Laptop
from othink_jax.errors import UserError

Base = Literal["embedded", "calibrated"]
BASES: tuple[Base, ...] = get_args(Base)


class LaptopExperiment(Experiment):
    """One that has no scale but the laptop's."""

    def __init__(self, options: Options) -> None:
        if options.scale != "laptop":
            raise UserError(f"{self.name} is about the embedded model: it has no --scale paper")
        super().__init__(options)
        assert isinstance(self.scale, Laptop)
        self.laptop = self.scale
        self._calibrated = options.root / "calibrated"

    def model(self, base: Base) -> str:
        """With the engineered headroom, or without it."""
        return "tiny" if base == "embedded" else str(self._calibrated)

    def run(self) -> Result:
        if not self._calibrated.is_dir():
            calibrate(CalibrateConfig(out=self._calibrated))
        return super().run()
