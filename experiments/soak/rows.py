"""Bad rows in data sets of every format.

Claim: whatever a row of a data set holds, the row is used or named, and no other is lost.
Command: python -m experiments.soak.rows --count 10000 --json experiments/soak/results/rows.json
Cost: half a minute on two cores.
Shows: that every good row is used as it should be, that every bad one is refused in one line that
    can be written, and that a data set that cannot be opened says so in one line.

Small data sets are written in every supported format (JSONL, parquet, parquet streamed, a folder of
`datasets.save_to_disk`, CLEVR). In each row one cell or more is replaced: by texts that are not
UTF-8, base64, paths to pipes and devices, nested lists, each Arrow type. Whether a row can be used,
and its question, answer and number of images, is known from how it was made.
"""

import dataclasses
import json
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.soak.cells import (
    BAD,
    DIGITS,
    HUGE,
    ROWS,
    Cell,
    Column,
    answer_column,
    answers,
    any_column,
    image_column,
    images_of,
    nested,
    pick,
    png,
    questions,
    text_column,
    write_files,
)
from experiments.soak.record import Campaign, Outcome, parser
from othink_jax.config import DataConfig
from othink_jax.data.example import Example, UnreadableExample
from othink_jax.data.sources import open_source
from othink_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Made:
    """A data set and the results that it should give."""

    config: DataConfig
    good: Counter[tuple[str, str, int]]  # question, answer, number of images of usable rows
    bad: int  # number of unusable rows
    refused: bool = False  # the whole data set may be refused
    torn: int = 0  # number of the line whose result is unknown; 0: none


def main() -> None:
    arguments = parser(__doc__, count=10_000).parse_args()
    campaign = Campaign("rows", arguments)
    campaign.add_all(outcomes(arguments.seed, arguments.count))
    campaign.finish()


def outcomes(seed: int, count: int) -> Iterator[Outcome]:
    """Outcomes of at least `count` rows."""
    datasets.disable_progress_bars()
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    rng = np.random.default_rng(seed)
    makers: tuple[Callable[..., Made], ...] = (_jsonl, _torn, _parquet, _saved, _streamed, _clevr)
    done = 0
    while done < count:
        for make in makers:
            with tempfile.TemporaryDirectory(prefix="rows") as folder:
                datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
                made = make(Path(folder), rng)
                seen = list(_read(made))
            done += len(seen)
            yield from seen


def _read(made: Made) -> Iterator[Outcome]:
    kind = _kind(made.config)
    case = f"{kind} of {made.config.dataset_name}"
    used: Counter[tuple[str, str, int]] = Counter()
    try:
        source = open_source(made.config)
        for index in range(len(source)):
            try:
                example = source[index]
            except UnreadableExample as error:
                _check_line(str(error))
                _check_texts(error.example)
                yield Outcome(kind=f"{kind}: bad row named", good=True)
            else:
                _check_texts(example)
                used[(example.question, example.answer, len(example.images))] += 1
                yield Outcome(kind=f"{kind}: good row used", good=True)
    except UserError as error:
        _check_line(str(error))
        if made.refused or (made.torn and f", line {made.torn} " in str(error)):
            yield Outcome(kind=f"{kind}: data set refused in one line", good=True)
        else:
            yield Outcome(kind="good data set refused", good=False, detail=f"{case}: {error}")
        return
    except Exception:
        yield Outcome(kind="traceback", good=False, detail=f"{case}: {traceback.format_exc()}")
        return
    for row in (made.good - used).elements():
        yield Outcome(kind="good row lost", good=False, detail=f"{case}: {row!r:.500}")
    for row in list((used - made.good).elements())[bool(made.torn) :]:
        yield Outcome(kind="bad row used", good=False, detail=f"{case}: {row!r:.500}")


def _kind(config: DataConfig) -> str:
    name = Path(str(config.dataset_name)).name
    name = "CLEVR" if name.startswith("rows") and "." not in name else name
    return f"{name} streamed" if config.streaming else name


def _check_line(message: str) -> None:
    """Raise unless a message is one line of UTF-8 under 1000 characters, fit for any log."""
    message.encode("utf-8")
    assert len(message.splitlines()) == 1, message
    assert len(message) < 1000, message


def _check_texts(example: Example) -> None:
    for text in (example.id, example.question, example.answer, example.solution):
        text.encode("utf-8")


# Formats


def _jsonl(folder: Path, rng: np.random.Generator) -> Made:
    write_files(folder, rng)
    content = png(rng)
    thoughts: list[Cell] = [
        (None, ""),
        ("", ""),
        ("t", ""),
        (5, BAD),
        (["t"], BAD),
        ("\ud83d", BAD),
    ]
    kinds = (questions(), answers(), images_of(folder, content), thoughts)
    plain: tuple[Cell, ...] = (("q", "q"), ("1", "1"), ("good.png", 1), (None, ""))
    lines, cells = [], []
    for _ in range(ROWS):
        chosen = [
            pick(kind, rng) if rng.random() < 0.4 else usual
            for kind, usual in zip(kinds, plain, strict=True)
        ]
        names = ("question", "ground_truth", "image_path", "thinking")
        row = {name: held for name, (held, _) in zip(names, chosen, strict=True)}
        lines.append(_json(row, ascii_only=bool(rng.random() < 0.5)))
        cells.append(tuple(expected for _, expected in chosen))
    path = folder / "rows.jsonl"
    mark = b"\xef\xbb\xbf" if rng.random() < 0.3 else b""
    path.write_bytes(mark + b"\n".join(lines))
    return _made(DataConfig(dataset=str(path)), cells)


def _torn(folder: Path, rng: np.random.Generator) -> Made:
    """A JSONL file with bytes of one line changed, cut off or inserted."""
    (folder / "good.png").write_bytes(png(rng))
    row = {"question": "q", "ground_truth": "1", "image_path": "good.png"}
    lines = [json.dumps(row).encode()] * ROWS
    torn = int(rng.integers(ROWS))
    line = bytearray(lines[torn])
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(line)))
        some = rng.integers(256, size=rng.integers(3), dtype=np.uint8).tobytes()
        line[place : place + int(rng.integers(len(line) if rng.random() < 0.2 else 3))] = some
    lines[torn] = bytes(line).translate(None, b"\r\n") or b"{"
    path = folder / "torn.jsonl"
    path.write_bytes(b"\n".join(lines))
    made = _made(DataConfig(dataset=str(path)), [("q", "1", 1)] * (ROWS - 1))
    return dataclasses.replace(made, torn=torn + 1)


def _json(row: dict[str, Any], *, ascii_only: bool) -> bytes:
    """One line, with surrogates escaped or as bytes that are not UTF-8."""
    text = json.dumps(row, ensure_ascii=ascii_only).replace(f'"{HUGE}"', DIGITS)
    # High surrogates can only be written as JSON escapes; raw bytes can only stand for low ones.
    return text.replace("\ud83d", "\\ud83d").encode("utf-8", "surrogateescape")


def _made(config: DataConfig, cells: list[tuple[Any, ...]], *, refused: bool = False) -> Made:
    good: Counter[tuple[str, str, int]] = Counter()
    for question, answer, images, *others in cells:
        if BAD not in (question, answer, images, *others):
            good[(question, answer, images)] += 1
    return Made(config, good, len(cells) - good.total(), refused)


def _table(folder: Path, rng: np.random.Generator) -> tuple[pa.Table, list[Any], bool]:
    """A table with odd types in some columns, its expected cells, and whether it may be refused."""
    write_files(folder, rng)
    usual = (
        Column(pa.array([f"q {i}" for i in range(ROWS)]), [f"q {i}" for i in range(ROWS)]),
        Column(pa.array(["1"] * ROWS), ["1"] * ROWS),
        Column(pa.array([{"bytes": png(rng), "path": None}] * ROWS), [1] * ROWS),
        Column(pa.array(range(ROWS)), [""] * ROWS),  # not read
    )
    makers = (text_column, answer_column, image_column, any_column)
    columns = [
        make(folder, rng) if rng.random() < 0.4 else column
        for make, column in zip(makers, usual, strict=True)
    ]
    names = ("problem", "solution", "image", "other")
    table = pa.table({name: column.array for name, column in zip(names, columns, strict=True)})
    cells = list(zip(*(column.expected for column in columns), strict=True))
    return table, cells, any(column.refused for column in columns)


def _parquet(folder: Path, rng: np.random.Generator) -> Made:
    table, cells, refused = _table(folder, rng)
    path = folder / "rows.parquet"
    pq.write_table(table, path)
    return _made(DataConfig(dataset=str(path)), cells, refused=refused)


def _streamed(folder: Path, rng: np.random.Generator) -> Made:
    made = _parquet(folder, rng)
    config = dataclasses.replace(made.config, streaming=True, limit=ROWS)
    return dataclasses.replace(made, config=config)


def _saved(folder: Path, rng: np.random.Generator) -> Made:
    while True:
        place = folder / f"{rng.integers(10**9)}"
        place.mkdir()
        table, cells, refused = _table(place, rng)
        try:
            datasets.Dataset(table).save_to_disk(place / "saved")
        except Exception:  # a type that `datasets` does not have and cannot save
            continue
        config = DataConfig(dataset=str(place / "saved"), images=place)
        return _made(config, cells, refused=refused)


def _clevr(folder: Path, rng: np.random.Generator) -> Made:
    images = folder / "images" / "train"
    images.mkdir(parents=True)
    (folder / "scenes").mkdir()
    write_files(images, rng)
    names: list[Cell] = [
        *[("good.png", 1), ("../train/good.png", 1), (None, BAD), (3, BAD), (["good.png"], BAD)],
        *[({}, BAD), ("", BAD), ("pipe", BAD), ("broken.png", BAD), ("a\0b", BAD)],
        *[("\ud83d.png", BAD), ("x" * 5000, BAD), (True, BAD), (nested(60), BAD)],
    ]
    traits: list[Cell] = [
        *[("red", "r"), ("", "r"), ("\ud83d", BAD), (5, BAD), (None, BAD), (["red"], BAD)],
        *[({}, BAD), (0.5, BAD), (10**999, BAD), (nested(60), BAD)],
    ]
    scenes, cells = [], []
    for _ in range(ROWS):
        name, shown = pick(names, rng) if rng.random() < 0.4 else ("good.png", 1)
        trait, said = pick(traits, rng) if rng.random() < 0.4 else ("red", "r")
        things = int(rng.integers(1, 4))
        objects = [{"color": trait, "shape": "cube", "3d_coords": [0.5]}] * things
        scenes.append({"image_filename": name, "objects": objects})
        question = "How many different items are there in the image?"
        cells.append((question, str(things), shown, said))
    text = json.dumps({"info": {}, "scenes": scenes})
    (folder / "scenes" / "CLEVR_train_scenes.json").write_text(text)
    return _made(DataConfig(dataset=str(folder)), cells)


if __name__ == "__main__":
    main()
