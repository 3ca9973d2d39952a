"""Names of the tasks and of the graders, in one place for settings, rewards and data."""

from typing import Literal

Task = Literal["counting", "geometry", "grounding"]
Grader = Literal["strict", "r1v"]  # `r1v` gives R1-V's published verdicts
