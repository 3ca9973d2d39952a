"""Start of a run on several hosts: how much of a model each process reads, and how long it takes.

Claim: a process reads only the shards that its own devices hold, and has at most one more tensor in
    memory.
Command: python -m experiments.bench.startup --preset 7b --json runs/startup.json
Cost: the model's bytes on the disk and half as many of memory (7b: 17 GB and 10 GB); two minutes.
Shows: seconds and peak memory of each process. Simulated devices hold their shards in host memory,
    so the peak is compared with the bytes of the shards. The processes take turns, because the
    machine need not have room for all shards. `--whole` reads the whole model first and shards it
    afterwards.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.shapes import presets, qwen2_vl_2b
from experiments.bench.timing import environment, write_json
from othink_jax.checkpoint import hf
from othink_jax.checkpoint.tensors import Index, Tensors, lazy_params, read_params
from othink_jax.config import ParallelConfig, ProcessConfig
from othink_jax.families import Entry, entries
from othink_jax.model.config import VLMConfig
from othink_jax.training import processes
from othink_jax.training.parallel import make_parallel

_BLOCK = 2**20  # random numbers, written repeatedly
_TURN_MS = 600_000  # timeout for the turns of the other processes


def qwen2_vl_7b() -> VLMConfig:
    """Configuration of Qwen/Qwen2-VL-7B-Instruct."""
    small = qwen2_vl_2b()
    text = dataclasses.replace(
        small.text,
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    vision = dataclasses.replace(small.vision, hidden_size=3584)
    return dataclasses.replace(small, text=text, vision=vision, tie_word_embeddings=False)


MODELS = {"7b": qwen2_vl_7b(), "2b": qwen2_vl_2b(), "tiny": presets()["cpu"].model}


def write_model(directory: Path, config: VLMConfig) -> int:
    """Write random bfloat16 weights in the hub's layout; returns their bytes."""
    block = np.random.default_rng(0).normal(size=_BLOCK).astype(jnp.bfloat16)

    def read(entry: Entry, _: Index) -> np.ndarray:
        return np.resize(block, entry.shape)

    tensors = Tensors(dtypes=dict.fromkeys(entries(config), np.dtype(jnp.bfloat16)), read=read)
    hf.save(directory, config, tensors)
    return tensors.total_nbytes


def work(directory: Path, *, whole: bool) -> None:
    """Body of a process: read the model in its turn and print a record."""
    parallel = make_parallel(ParallelConfig(strategy="mesh"))
    tensors = hf.stored_tensors(directory, hf.load_config(directory))
    from jax._src import distributed  # a barrier that needs no devices has no public name

    store: Any = distributed.global_state.client
    for turn in range(jax.process_count()):
        if turn == jax.process_index():
            before, start = _bytes_in_memory("VmRSS"), time.perf_counter()
            params = read_params(tensors, on_host=True) if whole else lazy_params(tensors)
            placed = jax.block_until_ready(parallel.replicate(params))
            seconds = time.perf_counter() - start
            shards = [
                shard for leaf in jax.tree.leaves(placed) for shard in leaf.addressable_shards
            ]
            record = {
                "seconds": seconds,
                "own_bytes": sum(shard.data.nbytes for shard in shards),
                "peak_bytes": _bytes_in_memory("VmHWM") - before,
                "environment": environment(),
            }
            del params, placed, shards
            print(json.dumps(record), flush=True)
        store.wait_at_barrier(f"turn {turn}", _TURN_MS)


def _bytes_in_memory(which: str) -> int:
    """Resident memory of this process: `VmRSS` is the current value, `VmHWM` the peak."""
    status = Path("/proc/self/status").read_text()
    (kib,) = re.findall(rf"{which}:\s*(\d+) kB", status)
    return int(kib) * 1024


def measure(
    config: VLMConfig, directory: Path, *, count: int, devices: int, whole: bool
) -> dict[str, Any]:
    """The record of `count` processes with `devices` devices each.

    Args:
      config: of the model.
      directory: for the weights; created if it is missing.
      count: number of processes.
      devices: number of devices per process.
      whole: read the whole model first, and shard it afterwards.
    """
    total = write_model(directory, config)
    largest = max(entry.bytes_in(np.dtype(jnp.bfloat16)) for entry in entries(config))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    settings = {
        **{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        "MALLOC_MMAP_THRESHOLD_": str(2**20),  # return freed memory to the system
    }
    words = [sys.executable, "-m", "experiments.bench.startup", "--directory", str(directory)]
    words += ["--whole"] if whole else []
    words += ["--coordinator", address, "--count", str(count), "--process"]
    with contextlib.ExitStack() as running:
        started = [
            running.enter_context(
                subprocess.Popen(
                    [*words, str(number)],
                    env=os.environ | settings,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(count)
        ]
        said = [process.communicate()[0] for process in started]
    found = [json.loads(lines.splitlines()[-1]) for lines in said]
    ran_on = [each.pop("environment") for each in found]
    return {
        "model_bytes": total,
        "largest_tensor_bytes": largest,
        "devices_of_a_process": devices,
        "whole": whole,
        "processes": found,
        **ran_on[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=MODELS, default="7b")
    parser.add_argument("--count", type=int, default=2, help="processes")
    parser.add_argument("--devices", type=int, default=4, help="of each process")
    parser.add_argument("--whole", action="store_true", help="read all first, cut it then")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process is not None:
        processes.initialize(
            ProcessConfig(
                coordinator=given.coordinator, num_processes=given.count, process_id=given.process
            )
        )
        work(given.directory, whole=given.whole)
        return
    with tempfile.TemporaryDirectory() as directory:
        record = measure(
            MODELS[given.preset],
            Path(directory),
            count=given.count,
            devices=given.devices,
            whole=given.whole,
        )
    record = {"preset": given.preset, **record}
    print(json.dumps(record, indent=2))
    if given.json is not None:
        write_json(given.json, record)


if __name__ == "__main__":
    main()
