"""Downloads and streams from a hub that fails.

Claim: whatever the hub answers, or not, the result is right or one line, in a bounded time.
Command: python -m experiments.soak.hub --count 72 --json experiments/soak/results/hub.json
Cost: five minutes on two cores.
Shows: that each case ends with the hub's content, or with one line.

A hub on this machine has a data set and a model. In each case a new process with an empty cache
downloads or streams one of them while the hub fails: it answers slowly, with an error, with
nonsense, with a body that is cut or of another length than announced; it hangs up; it redirects in
circles; it never answers. The fault affects one kind of request or all, from the start or in the
middle, and for good or for some requests only. Waits between retries are twenty times shorter than
usual (`--real-waits` keeps them), and so is the bound, ten minutes.
"""

import concurrent.futures
import dataclasses
import functools
import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from experiments.soak.hub_server import SHA, Hub, serving
from experiments.soak.record import Campaign, Outcome, parser
from othink_jax.checkpoint.hf import TINY
from othink_jax.checkpoint.load import load

_BOUND_S = 600.0
_SHORTER = 20.0
_AT_ONCE = 4
_ROWS = 6
_NAME = "someone/thing"
_USES = ("data set", "data set streamed", "model")
# At the start a file has lost nothing; later a stream has been opened, and is read.
_WHERE = ("info", "tree", "file", "everything")
_CLIENT = """
import sys, time
shorter, use = float(sys.argv[1]), sys.argv[2]
wait = time.sleep
time.sleep = lambda seconds: wait(seconds / shorter)
import datasets, huggingface_hub.file_download
huggingface_hub.file_download._ETAG_RETRY_TIMEOUT /= shorter
datasets.disable_progress_bars()
from othink_jax.config import DataConfig
from othink_jax.data.sources import open_source
from othink_jax.errors import UserError
if use == "model":
    from experiments.soak.hub import digest
start = time.perf_counter()
try:
    if use == "model":
        said = f"HAS {digest('someone/thing')}"
    else:
        streaming = use == "data set streamed"
        source = open_source(DataConfig(dataset="someone/thing", streaming=streaming))
        examples = [source[index] for index in range(6)]
        said = f"HAS {sorted((e.question, e.answer, e.images[0].size) for e in examples)}"
except UserError as error:
    said = f"LINE {error}"
print(f"{time.perf_counter() - start:.2f} {said}")
"""


@dataclasses.dataclass(frozen=True)
class Case:
    use: str
    fault: str
    where: str  # which requests fail
    after: int  # number of them answered before the first fault
    times: int  # number of them that then fail


def main() -> None:
    made = parser(__doc__, count=72)
    made.add_argument("--real-waits", action="store_true", help="shorten no wait")
    arguments = made.parse_args()
    campaign = Campaign("hub", arguments)
    shorter = 1.0 if arguments.real_waits else _SHORTER
    slowest = 0.0
    for outcome, seconds in outcomes(arguments.seed, arguments.count, shorter=shorter):
        campaign.add(outcome)
        slowest = max(slowest, seconds)
    campaign.finish(slowest_seconds=round(slowest, 1), waits_shorter_by=shorter)


def outcomes(
    seed: int, count: int, *, shorter: float = _SHORTER
) -> Iterator[tuple[Outcome, float]]:
    """Outcome of each case, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder))
        cases = [_case(seed, number) for number in range(count)]
        # In parallel, because cases mostly wait.
        with concurrent.futures.ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            yield from pool.map(lambda case: _outcome(case, Path(folder), shorter), cases)


def _case(seed: int, number: int) -> Case:
    rng = np.random.default_rng([seed, number])
    use = _USES[number % len(_USES)]
    return Case(
        use=use,
        fault=sorted(_FAULTS)[number // len(_USES) % len(_FAULTS)],
        where=_WHERE[rng.integers(len(_WHERE))],
        after=int(rng.integers(3)) if rng.random() < 0.4 else 0,
        times=int(rng.integers(1, 4)) if rng.random() < 0.4 else 10**9,
    )


def _write(folder: Path) -> None:
    """Write the data set and the model."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(_ROWS):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
        rows.append({"problem": f"q {number}", "solution": f"{number}", "image": image})
    (folder / "data set" / "data").mkdir(parents=True)
    for part in (0, 1):
        table = pa.Table.from_pylist(rows[part::2])
        pq.write_table(table, folder / "data set" / "data" / f"train-0000{part}-of-00002.parquet")
    shutil.copytree(TINY, folder / "model")


@functools.cache
def digest(model: str) -> int:
    """Checksum of a model's weights and of its encoding of a question."""
    checkpoint = load(model)
    leaves = jax.tree.leaves(checkpoint.params)
    tokens = checkpoint.processor.encode("How many?", []).tokens
    return zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in (*leaves, tokens)))


def _outcome(case: Case, folder: Path, shorter: float) -> tuple[Outcome, float]:
    kind = case.use.removesuffix(" streamed")
    failing = _Failing(case, shorter)
    with (
        serving(folder / kind, _NAME, kind=kind.replace(" ", ""), fault=failing) as address,
        tempfile.TemporaryDirectory() as home,
    ):
        said, errors, code = _run(case.use, address, home, shorter)
    failing.over.set()
    number, _, line = said.partition(" ")
    seconds = float(number or 0)
    if code is None or seconds > _BOUND_S / shorter:
        outcome, good = "no end in time", False
    elif code != 0 or "Traceback" in errors:
        outcome, good = "traceback", False
    elif line.startswith("HAS"):
        good = line.rstrip() == _expected(kind)
        outcome = "right result" if good else "wrong result"
    else:
        good = line.startswith("LINE") and line.count("\n") == 1 and len(line) < 1000
        outcome = "one line" if good else "many lines"
    detail = f"{case} after {seconds:.0f} s: {said[-500:]} {errors[-3000:]}"
    return Outcome(kind=f"{case.use}: {outcome}", good=good, detail=detail), seconds


def _run(use: str, address: str, home: str, shorter: float) -> tuple[str, str, int | None]:
    """The client's stdout, stderr and exit code, None if it timed out."""
    timeout = str(max(1, round(10 / shorter)))
    settings = {
        "HF_ENDPOINT": address,
        "HF_HOME": home,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_ETAG_TIMEOUT": timeout,
        "HF_HUB_DOWNLOAD_TIMEOUT": timeout,
        "HF_HUB_DISABLE_XET": "1",
        "JAX_PLATFORMS": "cpu",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CLIENT, str(shorter), use],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            # 300 s for the start of the process, which is neither shortened nor counted.
            timeout=_BOUND_S / shorter + 300,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return _text(error.stdout), _text(error.stderr), None
    return done.stdout, done.stderr, done.returncode


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _expected(kind: str) -> str:
    if kind == "model":
        return f"HAS {digest('tiny')}"
    return f"HAS {[(f'q {number}', str(number), (30, 40)) for number in range(_ROWS)]}"


# Faults: what a hub does instead of answering


class _Failing:
    """Injects the fault of a case."""

    def __init__(self, case: Case, shorter: float) -> None:
        self._case = case
        self._shorter = shorter
        self._lock = threading.Lock()
        self._seen = 0
        self.over = threading.Event()  # set when the client has ended

    def __call__(self, hub: Hub, what: str) -> bool:
        if self._case.where not in (what, "everything"):
            return False
        with self._lock:
            number = self._seen - self._case.after
            self._seen += 1
        if not 0 <= number < self._case.times:
            return False
        return _FAULTS[self._case.fault](hub, self.over, self._shorter)


def _slow(hub: Hub, over: threading.Event, shorter: float) -> bool:
    over.wait(8 / shorter)
    return False


def _silent(hub: Hub, over: threading.Event, shorter: float) -> bool:
    over.wait()
    hub.close_connection = True
    return True


def _hang_up(hub: Hub, over: threading.Event, shorter: float) -> bool:
    hub.close_connection = True
    hub.connection.close()
    return True


def _status(status: int, hub: Hub, over: threading.Event, shorter: float) -> bool:
    hub.answer(status, b'{"error": "no\\nwith a story"}', {"X-Error-Message": "no"})
    return True


def _rate_limit(hub: Hub, over: threading.Event, shorter: float) -> bool:
    hub.answer(429, b"", {"Retry-After": "5"})
    return True


def _body(content: bytes, hub: Hub, over: threading.Event, shorter: float) -> bool:
    hub.answer(200, content, {"ETag": '"x"', "X-Repo-Commit": SHA})
    return True


def _cut(hub: Hub, over: threading.Event, shorter: float) -> bool:
    """Send half of the announced body, then close the connection."""
    hub.answer(200, b"[" * 500, {"Content-Length": "1000", "ETag": '"x"'})
    hub.close_connection = True
    return True


def _stall(hub: Hub, over: threading.Event, shorter: float) -> bool:
    """Send half of the announced body, then leave the connection open."""
    hub.answer(200, b"[" * 500, {"Content-Length": "1000", "ETag": '"x"'})
    hub.wfile.flush()
    return _silent(hub, over, shorter)


def _too_long(hub: Hub, over: threading.Event, shorter: float) -> bool:
    """Send a longer body than announced."""
    hub.answer(200, b"[" * 1000, {"Content-Length": "500", "ETag": '"x"'})
    hub.close_connection = True
    return True


def _in_circles(hub: Hub, over: threading.Event, shorter: float) -> bool:
    hub.answer(302, b"", {"Location": hub.path})
    return True


def _nonsense(hub: Hub, over: threading.Event, shorter: float) -> bool:
    """Send bytes that are no HTTP at all."""
    hub.wfile.write(b"\xff\xfe hello\r\n" * 9)
    hub.close_connection = True
    return True


_FAULTS: dict[str, Callable[[Hub, threading.Event, float], bool]] = {
    "slow": _slow,
    "silent": _silent,
    "hangs up": _hang_up,
    "asks to wait": _rate_limit,
    "cut": _cut,
    "stalls": _stall,
    "too long": _too_long,
    "in circles": _in_circles,
    "nonsense": _nonsense,
    **{f"status {status}": functools.partial(_status, status) for status in (401, 404, 500, 503)},
    **{
        f"body {content[:12]!r}": functools.partial(_body, content)
        for content in (b"", b"<html>down</html>", b"null", b"[]", b"{}", b'{"sha": 5}', b"[5]")
    },
    **{
        f"body {content[:12]!r}": functools.partial(_body, content)
        for content in (b'[{"type": "file"}]', b"\xff\xfe\0" * 9, b"[" * 99_999, b"PAR1" * 9)
    },
}


if __name__ == "__main__":
    main()
