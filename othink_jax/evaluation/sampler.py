"""Sampling of batches on the devices of an evaluation, within their memory."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt32

from othink_jax.checkpoint.load import Checkpoint
from othink_jax.config import SamplingConfig
from othink_jax.data.processing import EncodedPrompt, PadTo
from othink_jax.sampling import make_sampler
from othink_jax.training.parallel import OneDevice, Parallel
from othink_jax.types import Rollout

_MEMORY_OF_HOST = Path("/proc/meminfo")
# Memory limits of a container, in both versions of Linux's control groups.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """An encoded prompt, and the key of its completions."""

    encoded: EncodedPrompt
    key: UInt32[np.ndarray, " 2"]


class DoesNotFitError(Exception):
    """The memory of the devices is too small; the message says what is needed, if it is known."""


class Sampler:
    """Samples completions, of as many prompts at once as fit into memory.

    All completions of a prompt are sampled together: its prefill is computed once.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: SamplingConfig,
        parallel: Parallel,
        *,
        samples: int = 1,
    ) -> None:
        """Args:
        checkpoint: the model.
        config: sampling settings.
        parallel: the devices.
        samples: completions per prompt.
        """
        parallel.check_model(checkpoint.config)
        self._processor = checkpoint.processor
        self._parallel = parallel
        if isinstance(parallel, OneDevice):  # without a second copy
            self._params = jax.device_put(checkpoint.params, parallel.devices[0])
        else:
            self._params = parallel.reshard_for_decoding(parallel.replicate(checkpoint.params))
        self._draw: Any = parallel.compile_sampler(
            make_sampler(checkpoint.graphdef, self._processor, config, group_size=samples)
        )
        self._programs: dict[tuple[int, PadTo], Any] = {}

    def __call__(
        self, prompts: Sequence[Prompt], pad: PadTo, rows: int
    ) -> Iterator[tuple[int, Rollout | DoesNotFitError]]:
        """Completions of prompts [B, samples, T], as they are sampled.

        Args:
          prompts: at most `rows`.
          pad: shapes that they are padded to.
          rows: number of rows that they are padded to. If these do not fit, half of them are tried.

        Returns:
          Pairs: the number B of next prompts, and their completions on the host, B rows or more. An
          error replaces the completions of prompts that do not fit even at one per device.
        """
        try:
            yield len(prompts), self._sample(prompts, pad, rows)
            return
        except DoesNotFitError as error:
            reason = error.with_traceback(None)  # which would keep arrays alive
        shards = self._parallel.batch_shards
        fewer = rows // 2 // shards * shards
        if not fewer:
            yield len(prompts), reason
            return
        for first in range(0, len(prompts), fewer):
            yield from self(prompts[first : first + fewer], pad, fewer)

    def _sample(self, prompts: Sequence[Prompt], pad: PadTo, rows: int) -> Rollout:
        filled = [*prompts, *[prompts[0]] * (rows - len(prompts))]
        try:
            batch = self._processor.batch([prompt.encoded for prompt in filled], pad=pad)
            given = self._parallel.shard((batch, np.stack([prompt.key for prompt in filled])))
            program = self._program((rows, pad), given)
            return self._parallel.gather(program(self._params, None, *given))
        except MemoryError:
            raise DoesNotFitError("the host has no memory for it") from None
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFitError("a device has no memory for it") from None

    def _program(self, shapes: tuple[int, PadTo], given: Any) -> Any:
        """The program for these shapes, known to fit: Linux kills a process that takes too much.

        Raises:
          DoesNotFitError: it does not fit.
        """
        if shapes not in self._programs:
            program = self._draw.lower(self._params, None, *given).compile()
            needed, free = _running_bytes(program), free_bytes(self._parallel.devices)
            self._programs[shapes] = program
            if needed > free:
                self._programs[shapes] = DoesNotFitError(
                    f"it takes {needed / 1e9:.1f} GB on a device, of which {free / 1e9:.1f} GB are"
                    " free"
                )
        program = self._programs[shapes]
        if isinstance(program, DoesNotFitError):
            raise program
        return program


def _running_bytes(program: Any) -> int:
    """Bytes that a program needs on a device beside its arguments; 0 if the compiler gives none."""
    memory = program.memory_analysis()
    if memory is None:
        return 0
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def free_bytes(devices: Sequence[jax.Device]) -> int:
    """Free bytes of each device; simulated devices share the memory of the host."""
    stats = devices[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return _free_bytes_of_host() // len(devices)


def _free_bytes_of_host() -> int:
    try:
        lines = _MEMORY_OF_HOST.read_text().splitlines()
        in_use = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: the process is not killed there, it slows down
        return 2**63
    (available,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    limits = [file.read_text().strip() for file in _LIMITS if file.is_file()]
    return min([available * 1024, *(int(limit) - in_use for limit in limits if limit.isdigit())])
