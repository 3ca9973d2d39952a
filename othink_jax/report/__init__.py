"""A run or an experiment as one self-contained HTML page, and a run as a model card."""

from othink_jax.report.card import model_card
from othink_jax.report.experiment import experiments_in, write_experiment_report
from othink_jax.report.page import write_report

__all__ = ["experiments_in", "model_card", "write_experiment_report", "write_report"]
