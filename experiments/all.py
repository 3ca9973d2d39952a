"""Every table and figure, one after the other.

Claim: those of the experiments.
Command: python -m experiments.all [--scale laptop]
Cost: laptop: about five hours on two CPU cores; an interrupted call, repeated, resumes.
Shows: one page with all of them, report.html in the results.
"""

import dataclasses

import tyro

from experiments.figure1_sft_vs_grpo import OverUpdates
from experiments.figure4_format_weight import FormatWeight
from experiments.figure5_training_curves import TrainingCurves
from experiments.figure6_kl_weight import KLWeight
from experiments.figure7_cross_task import CrossTask
from experiments.figure8_case_study import CaseStudy
from experiments.lab.experiment import GOES_ON, Experiment, Options, as_command
from experiments.lab.laptop import LaptopExperiment
from experiments.long_run import LongRun
from experiments.matched_settings import MatchedSettings
from experiments.negative_control import NegativeControl
from experiments.regime_search import RegimeSearch
from experiments.table1_same_task import SameTask
from experiments.tuning import Tuning
from othink_jax.report import write_experiment_report

EXPERIMENTS: tuple[type[Experiment], ...] = (
    SameTask,
    MatchedSettings,
    CrossTask,
    CaseStudy,
    TrainingCurves,
    OverUpdates,
    KLWeight,
    FormatWeight,
    NegativeControl,
    RegimeSearch,
    LongRun,  # in the regime that RegimeSearch found
)


def main() -> None:
    options = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    if options.scale == "laptop":
        Tuning(options).run()
        tuned = options.results / Tuning.name / "results.json"
        options = dataclasses.replace(options, tuned=tuned)
    for experiment in EXPERIMENTS:
        if options.scale == "laptop" or not issubclass(experiment, LaptopExperiment):
            experiment(options).run()
    print(write_experiment_report(options.results))


if __name__ == "__main__":
    as_command("all", main, stopped=GOES_ON)
