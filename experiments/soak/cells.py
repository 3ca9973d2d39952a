"""Cells of data set rows, each with the result that it should give."""

import base64
import dataclasses
import io
import os
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

ROWS = 20  # rows of a data set
# DIGITS is a number of more digits than Python writes; HUGE is its placeholder until the file is
# written.
HUGE, DIGITS = "a huge number", "1" + "0" * 4999
BAD = None  # expected result of a cell that cannot be used
Cell = tuple[Any, Any]  # its value; the expected text or number of images


def png(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_files(folder: Path, rng: np.random.Generator) -> None:
    """Write good and bad images, a pipe and a folder."""
    content = png(rng)
    (folder / "good.png").write_bytes(content)
    (folder / "broken.png").write_bytes(content[:60])
    (folder / "bomb.png").write_bytes(content[:16] + b"\0\0\xff\xff" * 2 + content[24:])
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")


def questions() -> list[Cell]:
    kept = ["How many?", "a\0b", "a\u2028b", "ع and 🙂", "é" * 9000, "<b>1</b>", "Is <image> it?"]
    nothing = ["", " \n", None, 5, 0.5, True, [], {}, ["q"], {"a": "q"}, nested(60), HUGE]
    broken = ["\ud83d how?", "\udcff", "<image>", "<image><image>q", "<video>q", "q <audio>"]
    edges = ["<image>\nq", "q <image>", "<|vision_start|><|image_pad|><|vision_end|>q"]
    return [
        *((text, text) for text in kept),
        *((held, BAD) for held in (*nothing, *broken)),
        *((text, "q") for text in edges),
    ]


def answers() -> list[Cell]:
    nothing = ["", None, True, [], {}, ["1"], {"a": 1}, float("nan"), float("inf"), nested(60)]
    broken = ["\ud83d 9", "<answer>3", "<answer> </answer>", "3</answer>"]
    return [
        *[("9", "9"), (4, "4"), (0.5, "0.5"), (3.0, "3"), (-2, "-2"), ("x\0", "x\0")],
        *[(HUGE, DIGITS), ("<think>t</think> <answer> 7 </answer>", "7")],
        *((held, BAD) for held in (*nothing, *broken)),
    ]


def images_of(folder: Path, content: bytes) -> list[Cell]:
    text = base64.b64encode(content).decode()
    path = "good.png"
    good = [
        *[path, str(folder / path), [path], {"path": path}, {"bytes": None, "path": path}],
        *[text, f"data:image/png;base64,{text}", {"bytes": text}, {"bytes": text, "path": 3}],
        *[base64.urlsafe_b64encode(content).decode(), text.rstrip("="), base64_lines(content)],
    ]
    bad = [
        *[None, "", " ", [], {}, 3, 0.5, True, [None], [[path]], [3], nested(60), {"a": path}],
        *["absent.png", "broken.png", "bomb.png", "folder", "pipe", "/dev/zero", "/dev/tty"],
        *["x" * 5000, "a\0b", "\ud83d.png", "\udcff.png", f"{path}/a", "http://localhost/a.png"],
        *[{"path": 3}, {"path": None}, {"bytes": "abc"}, {"bytes": [1, 2]}, {"bytes": {"a": 1}}],
        *["data:,a", "data:image/png;base64,@@", "data:image/png;base64,YWJj", text[:40]],
    ]
    return [*((held, 1) for held in good), *((held, BAD) for held in bad)]


def base64_lines(content: bytes) -> str:
    """Base64 in lines of 76 characters, as in mail."""
    return base64.encodebytes(content).decode()


def nested(depth: int) -> Any:
    held: Any = 1
    for _ in range(depth):
        held = [held]
    return held


def pick(cells: list[Cell], rng: np.random.Generator) -> Cell:
    return cells[rng.integers(len(cells))]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table; `refused`: a data set with it may be refused."""

    array: pa.Array
    expected: list[Any]
    refused: bool = False


# Columns of tables: every type that Arrow has


def text_column(folder: Path, rng: np.random.Generator) -> Column:
    texts = [held for held, expected in questions() if isinstance(held, str) and expected]
    cells: list[Cell] = [(text, text) for text in texts if "image" not in text and text.strip()]
    cells += [(None, BAD), ("", BAD), ("<image>", BAD), ("<image>\nq", "q")]
    return _any_of([*_texts(cells, rng), *_of_no_text()], rng)


def answer_column(folder: Path, rng: np.random.Generator) -> Column:
    cells: list[Cell] = [("9", "9"), ("<answer>7</answer>", "7"), (None, BAD), ("<answer>3", BAD)]
    literals = [*["3.14", "0.1", "45.5", "2", "-7", "1000", "0.001"], "nan", "inf", "-inf"]
    floats = [
        _column([_picked(literals, rng) for _ in range(ROWS)], kind)
        for kind in (np.float16, np.float32, np.float64)
    ]
    signed = [getattr(pa, f"int{bits}")() for bits in (8, 16, 32, 64)]
    unsigned = [getattr(pa, f"uint{bits}")() for bits in (8, 16, 32, 64)]
    whole = [Column(pa.array([5] * ROWS, kind), ["5"] * ROWS) for kind in signed + unsigned]
    most = Column(pa.array([2**64 - 1] * ROWS, pa.uint64()), [str(2**64 - 1)] * ROWS)
    digits = 10**50 + 7
    decimals = [
        Column(pa.array([Decimal("3.140")] * ROWS, pa.decimal128(10, 3)), ["3.14"] * ROWS),
        Column(pa.array([Decimal("100")] * ROWS, pa.decimal128(10, 2)), ["100"] * ROWS),
        Column(pa.array([Decimal(digits)] * ROWS, pa.decimal256(60, 2)), [str(digits)] * ROWS),
        Column(pa.array([Decimal("0.5")] * ROWS, pa.decimal32(5, 2)), ["0.5"] * ROWS, True),
    ]
    others = [column for column in _of_no_text() if not _is_number(column.array.type)]
    return _any_of([*_texts(cells, rng), *floats, *whole, most, *decimals, _dates(), *others], rng)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _column(literals: list[str], kind: type[np.floating[Any]]) -> Column:
    """Numbers, each of which should be read as its literal here."""
    expected = [BAD if literal.strip("-") in ("nan", "inf") else literal for literal in literals]
    return Column(pa.array(np.array([float(literal) for literal in literals], kind)), expected)


def _dates() -> Column:
    days: list[Any] = [date(2024, 1, 31), None] * (ROWS // 2)
    expected = ["2024-01-31", BAD] * (ROWS // 2)
    array = pa.array(days, pa.date32())
    return Column(
        pa.concat_arrays([array[1:], pa.array([2**30], pa.int32()).view(pa.date32())]),
        [*expected[1:], BAD],
    )


def image_column(folder: Path, rng: np.random.Generator) -> Column:
    content = png(rng)
    text = base64.b64encode(content).decode()
    path = str(folder / "good.png")
    inside: list[Cell] = [(path, 1), ("absent.png", BAD), (str(folder / "pipe"), BAD), (None, BAD)]
    inside += [(text, 1), (f"data:image/png;base64,{text}", 1), ("", BAD), ("/dev/zero", BAD)]
    cells = [pick(inside, rng) for _ in range(ROWS)]
    paths = [held for held, _ in cells]
    expected = [shown for _, shown in cells]
    contents = [_picked([content, content[:60], None, b"", b"\xff" * 99], rng) for _ in paths]
    read = [1 if held == content else BAD for held in contents]
    either = [
        shown if held in (None, b"") else one
        for shown, held, one in zip(expected, contents, read, strict=True)
    ]
    structs = pa.StructArray.from_arrays([pa.array(contents), pa.array(paths)], ["bytes", "path"])
    broken = _views([b"\xff\xfe" if held is None else held for held in contents], pa.string())
    half = pa.StructArray.from_arrays([pa.array(contents), broken], ["bytes", "path"])
    numbers = pa.StructArray.from_arrays(
        [pa.array(contents), pa.array([3] * ROWS)], ["bytes", "path"]
    )
    texts = pa.StructArray.from_arrays([pa.array(paths), pa.array([3] * ROWS)], ["bytes", "path"])
    encoded = [1 if held and held.endswith(text) else BAD for held in paths]
    listed = [
        pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), structs),
        pa.LargeListArray.from_arrays(pa.array(range(ROWS + 1), pa.int64()), structs),
        pa.FixedSizeListArray.from_arrays(structs, 1),
    ]
    good = [
        *[Column(pa.array(paths, kind), expected) for kind in (pa.string(), pa.large_string())],
        *[Column(pa.array(contents, kind), read) for kind in (pa.binary(), pa.large_binary())],
        *[Column(array, either) for array in (structs, *listed)],
        *[Column(half, read), Column(numbers, read), Column(texts, encoded)],
        Column(pa.array(paths).dictionary_encode(), expected),
        Column(pa.array([[]] * ROWS, pa.list_(pa.binary())), [BAD] * ROWS),
        Column(pa.array([[content] * 2] * ROWS), [2] * ROWS),
        Column(_views([b"\xff\xfe"] * ROWS, pa.string()), [BAD] * ROWS),
    ]
    return _any_of([*good, *good, *_of_no_text()], rng)


def any_column(folder: Path, rng: np.random.Generator) -> Column:
    """A column that is not read, whatever it holds."""
    column = _any_of([*_texts([("a", "a")], rng), *_of_no_text()], rng)
    return dataclasses.replace(column, expected=[""] * ROWS)


def _texts(cells: list[Cell], rng: np.random.Generator) -> list[Column]:
    """These cells in every text and bytes type, with and without values that are not UTF-8."""
    chosen = [pick(cells, rng) for _ in range(ROWS)]
    held = [None if text is None else text.encode() for text, _ in chosen]
    expected = [text for _, text in chosen]
    spoilt = [b"a\xff" if rng.random() < 0.3 else text for text in held]
    of_spoilt = [
        BAD if text == b"a\xff" else kept for text, kept in zip(spoilt, expected, strict=True)
    ]
    strings, large = _views(spoilt, pa.string()), _views(spoilt, pa.large_string())
    known = _views([text or b"" for text in spoilt], pa.string())
    indices = pa.array([None if text is None else i for i, text in enumerate(spoilt)], pa.int32())
    return [
        *[Column(_views(held, kind), expected) for kind in (pa.string(), pa.large_string())],
        Column(_views(held, pa.string()).cast(pa.string_view()), expected, True),
        Column(_views(held, pa.string()).dictionary_encode(), expected),
        *[Column(strings, of_spoilt), Column(large, of_spoilt)],
        Column(pa.DictionaryArray.from_arrays(indices, known), of_spoilt),
        *[Column(pa.array(spoilt, kind), of_spoilt) for kind in (pa.binary(), pa.large_binary())],
        Column(pa.array([b"12"] * ROWS, pa.binary(2)), ["12"] * ROWS),
        Column(pa.array([b"\xff\xfe"] * ROWS, pa.binary(2)), [BAD] * ROWS),
    ]


def _views(held: list[bytes | None], kind: pa.DataType) -> pa.Array:
    """Bytes viewed as text, whether they are UTF-8 or not."""
    of_bytes = pa.large_binary() if kind == pa.large_string() else pa.binary()
    return pa.array(held, of_bytes).view(kind)


def _of_no_text() -> list[Column]:
    """Columns that hold neither question nor image; a data set with times is refused."""
    moment = datetime(2024, 1, 31, 12)
    refused: list[tuple[Any, pa.DataType]] = [
        ([("a", 5)], pa.map_(pa.string(), pa.int8())),  # `datasets` has no such type
        *[(moment, pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")],
        *[(moment, pa.timestamp("us", "Europe/Berlin")), (time(12), pa.time32("s"))],
        *[(time(12), pa.time64("us")), (timedelta(1), pa.duration("ms"))],
    ]
    others: list[tuple[Any, pa.DataType]] = [
        *[(None, pa.null()), (True, pa.bool_()), (5, pa.int8()), (5, pa.uint64())],
        *[(0.5, pa.float32()), (0.5, pa.float64()), (Decimal("0.5"), pa.decimal128(5, 2))],
        *[
            ([], pa.list_(pa.int8())),
            ([5], pa.large_list(pa.int8())),
            ([5, 6], pa.list_(pa.int8(), 2)),
        ],
        ({"a": 5}, pa.struct([("a", pa.int8())])),
        ([[[["a"]]]], pa.list_(pa.list_(pa.list_(pa.list_(pa.string()))))),
    ]
    inside = pa.StructArray.from_arrays([_views([b"\xff"] * ROWS, pa.string())], ["a"])
    far = pa.array([2**62] * ROWS, pa.int64()).view(pa.timestamp("ms"))
    return [
        *(Column(pa.array([held] * ROWS, kind), [BAD] * ROWS, True) for held, kind in refused),
        *(Column(pa.array([held] * ROWS, kind), [BAD] * ROWS) for held, kind in others),
        Column(inside, [BAD] * ROWS),
        Column(far, [BAD] * ROWS, True),
    ]


def _any_of(columns: list[Column], rng: np.random.Generator) -> Column:
    return columns[rng.integers(len(columns))]


def _picked(values: list[Any], rng: np.random.Generator) -> Any:
    return values[rng.integers(len(values))]
