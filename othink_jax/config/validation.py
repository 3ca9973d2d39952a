"""The settings of validation between the steps of a run."""

import dataclasses

from othink_jax.config.checks import require
from othink_jax.config.data import DataConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation between steps: greedy answers to questions that are not trained on."""

    validate_every: int = 0  # steps between validations, the last step included; 0: none
    # Number of questions, chosen by `limit_seed` if there are more
    validate_count: int = 200
    # Split of the task, or of the data sets
    validate_split: str = "validation"
    # Data set that replaces those of the training, such as a file, which has no splits
    validate_dataset: str | None = None
    # Number of consecutive validations without improvement after which the run ends; none if not
    # given
    patience: int | None = None

    def __post_init__(self) -> None:
        require(self.validate_every >= 0, f"validate_every must be >= 0, got {self.validate_every}")
        require(self.validate_count >= 1, f"validate_count must be >= 1, got {self.validate_count}")
        require(
            self.patience is None or self.patience >= 1,
            f"patience must be >= 1, got {self.patience}",
        )
        require(
            self.patience is None or self.used,
            "--patience counts validations: give --validate-every",
        )

    @property
    def used(self) -> bool:
        """Whether there are validations."""
        return self.validate_every > 0

    def data(self, training: DataConfig) -> DataConfig:
        """Data of the validation, asked as the training asks.

        Raises:
          UserError: it is the data that is trained on.
        """
        names = training.dataset_names
        if self.validate_dataset is not None:
            names, task = (self.validate_dataset,), None
        else:
            task = training.task
        made = dataclasses.replace(
            training,
            task=task,
            dataset=names,
            split=self.validate_split,
            limit=None,
            streaming=False,
        )
        same = made.split == training.split or not made.has_splits
        require(
            self.validate_dataset is not None or not same,
            f"--validate-every would ask what is trained on, {training.name}: give"
            f" {'--validate-split' if made.has_splits else '--validate-dataset'}",
        )
        require(
            self.validate_dataset not in training.dataset_names or (made.has_splits and not same),
            f"--validate-dataset {self.validate_dataset} is what is trained on",
        )
        return made
