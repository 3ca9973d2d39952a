"""Interleaved timing, and the record of the environment, for all benchmarks.

It imports nothing but JAX, so that benchmarks run without the rest of the package's dependencies.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

# Turns that torch's threads spin before they sleep, if torch is imported later. Both sides are
# fastest at this value. Ten times as many, the usual number, take the cores from XLA's threads and
# from other processes, beside which torch gets ten times slower. With none, torch takes twice as
# long to wake its threads.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

_VERSIONS_OF = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "trl")


def interleave(
    variants: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds of each variant: minimum and median of `repeats` rounds through all of them.

    The variants take turns, so that other load on the machine affects all of them alike. One round
    before the first is not counted: it compiles and fills caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(repeats + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: fastest_and_median(values) for name, values in seconds.items()}


def fastest_and_median(seconds: Sequence[float]) -> dict[str, float]:
    """Minimum and median of one variant, by their names in records."""
    return {"min_s": min(seconds), "median_s": statistics.median(seconds)}


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each way")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    return parser


def environment() -> dict[str, Any]:
    """Device, system and versions, for the record."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "platform": device.platform,
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record; missing directories are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
