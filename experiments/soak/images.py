"""Corrupted image files, opened like those of data sets.

Claim: a broken image costs its own row: a line, some memory and some seconds, and no more.
Command: python -m experiments.soak.images --count 2000 --json experiments/soak/results/images.json
Cost: a quarter of a minute on two cores.
Shows: that each image is read or refused in one line, within ten seconds of CPU time and 3 GiB; the
    time of the slowest and the peak memory.

Images of several depths in eight formats are corrupted: bits are flipped, bytes inserted, the end
cut off, the beginning replaced by that of another format, sizes made absurd. A separate process
with a memory limit opens each by the function that opens the images of data sets.
"""

import functools
import io
import multiprocessing
import resource
import struct
import time
import traceback
import zlib
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from PIL import Image

from experiments.soak.record import Campaign, Outcome, parser
from othink_jax.data.images import open_image
from othink_jax.errors import UserError

_SECONDS = 10.0  # of CPU time
# The largest image that is read has 89 million pixels of four bytes each, and is copied.
_MEMORY = 3 * 2**30
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000")
_MODES = {
    "PNG": ("RGB", "L", "P", "1", "RGBA", "LA", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "TIFF": ("RGB", "L", "I;16", "F", "1", "CMYK", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "P", "1"),
    "PPM": ("RGB", "L", "I"),
    "JPEG2000": ("RGB", "L", "RGBA"),
}
_HEAD = 400  # bytes of a file's header


def main() -> None:
    arguments = parser(__doc__, count=2_000).parse_args()
    campaign = Campaign("images", arguments)
    seconds, memory = [0.0], [0]
    for outcome, took, peak in outcomes(arguments.seed, arguments.count):
        campaign.add(outcome)
        seconds.append(took)
        memory.append(peak)
    campaign.finish(slowest_seconds=round(max(seconds), 2), peak_memory_mb=max(memory) // 2**20)


def outcomes(seed: int, count: int) -> Iterator[tuple[Outcome, float, int]]:
    """Outcome of each corrupted image, its seconds, and the peak memory (bytes) so far."""
    cases = [_spoilt(seed, number) for number in range(count)]
    done = 0
    while done < count:
        for result in _opened([content for _, content in cases[done:]]):
            name, _ = cases[done]
            yield _judged(f"image {done} of seed {seed}, {name}", *result)
            done += 1


def _judged(name: str, kind: str, said: str, took: float, peak: int) -> tuple[Outcome, float, int]:
    good = kind in ("read", "refused in one line")
    if good and took > _SECONDS:
        kind, good = "too slow", False
    return Outcome(kind=kind, good=good, detail=f"{name}: {said}"), took, peak


def _opened(contents: list[bytes]) -> Iterator[tuple[str, str, float, int]]:
    """Results one by one, until the process that opens the images dies or is killed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_work, args=(theirs,), daemon=True)
    worker.start()
    theirs.close()
    try:
        for content in contents:
            ours.send_bytes(content)
            # Ten times the limit: the process has to start, and the machine may be busy.
            if not ours.poll(10 * _SECONDS):
                yield "no end", "", _SECONDS, 0
                return
            try:
                yield ours.recv()
            except EOFError:
                worker.join()
                yield "the process died", f"exit code {worker.exitcode}", 0.0, 0
                return
    finally:
        ours.close()
        worker.kill()
        worker.join()


def _work(connection: Connection) -> None:
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY + 2**31, _MEMORY + 2**31))
    while True:
        try:
            content = connection.recv_bytes()
        except EOFError:
            return
        start = time.process_time()
        kind, said = _open(content)
        took = time.process_time() - start
        peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
        kind = "too much memory" if peak > _MEMORY else kind
        connection.send((kind, said, took, peak))


def _open(content: bytes) -> tuple[str, str]:
    try:
        image = open_image(io.BytesIO(content))
        if image.mode != "RGB" or np.asarray(image).shape != (image.height, image.width, 3):
            return "no RGB", image.mode
        return "read", ""
    except UserError as error:
        line = str(error)
        line.encode("utf-8")
        one = len(line.splitlines()) == 1 and len(line) < 1000
        return "refused in one line" if one else "refused in many words", line
    except BaseException:
        return "traceback", traceback.format_exc()


# Making and corrupting files


def _spoilt(seed: int, number: int) -> tuple[str, bytes]:
    """Name and content of a corrupted file."""
    rng = np.random.default_rng([seed, number])
    kind = _FORMATS[rng.integers(len(_FORMATS))]
    mode = _MODES[kind][rng.integers(len(_MODES[kind]))]
    content = bytearray(_content(kind, mode, rng))
    ways = (_flip, _put_in, _cut, _swap_head, _absurd_size)
    chosen = [ways[index] for index in rng.integers(len(ways), size=rng.integers(1, 3))]
    for spoil in chosen:
        spoil(content, rng)
    if content[:4] == b"\x89PNG" and rng.random() < 0.8:
        _mend(content)
    return f"{kind} {mode} by {' and '.join(way.__name__ for way in chosen)}", bytes(content)


def _content(kind: str, mode: str, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.02:
        return _largest()
    width, height = (int(side) for side in rng.integers(1, 80, size=2))
    if mode in ("I;16", "I"):
        deep = rng.integers(0, 2**16, (height, width), dtype=np.uint16)
        image = Image.fromarray(deep)
    elif mode == "F":
        image = Image.fromarray(rng.random((height, width), np.float32))
    else:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    options: dict[str, Any] = {}
    if kind == "TIFF" and rng.random() < 0.5:
        options = {"compression": ("tiff_lzw", "tiff_deflate", "packbits")[rng.integers(3)]}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def _largest() -> bytes:
    """A PNG file of few bytes with as many 16-bit pixels as are read at most."""
    side = 9459
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint16)).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def _flip(content: bytearray, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 20)):
        reach = min(_HEAD, len(content)) if rng.random() < 0.5 else len(content)
        content[rng.integers(reach)] ^= 1 << int(rng.integers(8))


def _put_in(content: bytearray, rng: np.random.Generator) -> None:
    place = int(rng.integers(len(content)))
    content[place:place] = rng.integers(256, size=rng.integers(1, 99), dtype=np.uint8).tobytes()


def _cut(content: bytearray, rng: np.random.Generator) -> None:
    del content[int(rng.integers(1, len(content))) :]


def _swap_head(content: bytearray, rng: np.random.Generator) -> None:
    kind = _FORMATS[rng.integers(len(_FORMATS))]
    other = _content(kind, _MODES[kind][0], rng)
    length = int(rng.integers(2, 64))
    content[:length] = other[:length]


def _absurd_size(content: bytearray, rng: np.random.Generator) -> None:
    """Overwrite the width and height fields, if they are found, with other numbers."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            sides = image.size
    except Exception:  # already corrupted
        return
    # 9459 x 9459 pixels is the largest square that is read.
    absurd = (0, 1, 3000, 9459, 9460, 2**16 - 1, 2**31 - 1, 2**32 - 1)
    for side in sides:
        size = absurd[rng.integers(len(absurd))]
        layouts = [layout for layout in (">I", "<I", ">H", "<H") if rng.random() < 0.7]
        for layout in layouts:
            place = content.find(struct.pack(layout, side), 4, _HEAD)
            if place >= 0:
                number = struct.pack(layout, size % 2 ** (8 * struct.calcsize(layout)))
                content[place : place + len(number)] = number
                break
        if content[:1] == b"P":
            content[:] = content.replace(b"%d" % side, b"%d" % size, 1)


def _mend(content: bytearray) -> None:
    """Correct a PNG file's chunk checksums, so that decoders reach the corrupted content."""
    place = 8
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        end = place + 8 + length
        if end + 4 > len(content):
            return
        struct.pack_into(">I", content, end, zlib.crc32(content[place + 4 : end]))
        place = end + 4


if __name__ == "__main__":
    main()
