"""A run as one self-contained HTML page."""

from othink_jax.report.page import write_report

__all__ = ["write_report"]
