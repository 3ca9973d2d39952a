"""A run as one self-contained HTML page, and as a model card."""

from othink_jax.report.card import model_card
from othink_jax.report.page import write_report

__all__ = ["model_card", "write_report"]
