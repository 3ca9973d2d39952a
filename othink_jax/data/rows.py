"""Rows of external data sets as examples: roles of the columns and forms of their values.

Every value of every column becomes part of an example, or the row is refused by its id: training
skips it, evaluation counts it as wrong.
"""

import base64
import dataclasses
import datetime
import io
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from othink_jax.data.example import PLACEHOLDER, Example, UnreadableExample
from othink_jax.data.images import open_image
from othink_jax.errors import UserError, quoted, writable
from othink_jax.rewards import ANSWER_TAGS, AnswerFormat, extract_answer, ground_truth

_log = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Column names by role; the first one that a data set has is taken.

    The defaults are the names in R1-V's training sets and test files.
    """

    question: tuple[str, ...] = ("problem", "question")
    answer: tuple[str, ...] = ("solution", "ground_truth", "answer")
    image: tuple[str, ...] = ("images", "image", "image_path")
    # optional reasoning to put before the solution, in data sets for supervised fine-tuning
    thinking: tuple[str, ...] = ("thinking",)

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of all roles but the image."""
        return (*self.question, *self.answer, *self.thinking)

    @property
    def used(self) -> tuple[str, ...]:
        """Names of all roles."""
        return (*self.texts, *self.image)

    def check(self, there: Iterable[str], where: str) -> None:
        """Raise UserError if there is no question, no answer or no image among the columns."""
        there = list(there)
        for names in (self.question, self.answer, self.image):
            if _column(there, names) is None:
                raise UserError(
                    f"{where} has no column {' or '.join(names)}; it has {quoted(', '.join(there))}"
                )


USUAL = Columns()


class ColumnChoice:
    """Column names from the user; each applies to the data sets that have it."""

    def __init__(self, given: Mapping[str, str]) -> None:
        """Args:
        given: column names by field of `Columns`.
        """
        self._given = dict(given)
        self._unseen = dict(given)
        self._there: dict[str, None] = {}  # in order

    def among(self, there: Iterable[str]) -> Columns:
        """The `Columns` of a data set with these column names."""
        there = list(there)
        self._there |= dict.fromkeys(there)
        self._unseen = {r: name for r, name in self._unseen.items() if name not in there}
        # An absent name goes before the usual ones, so that an error lists it too.
        found = {
            role: (name,) if name in there else (name, *getattr(USUAL, role))
            for role, name in self._given.items()
        }
        return dataclasses.replace(USUAL, **found)

    def check(self) -> None:
        """Raise UserError if a given name was in no data set."""
        for role, name in self._unseen.items():
            columns = quoted(", ".join(self._there)) or "none that could be named"
            raise UserError(
                f"--columns {role}={name}: there is no such column; there are {columns}"
            )


# Image placeholders: that of EasyR1, verl, LLaVA and ms-swift, and that of Qwen2-VL.
_PLACE = rf"(?:{PLACEHOLDER}|<\|vision_start\|><\|image_pad\|><\|vision_end\|>)"
_EDGES = re.compile(rf"^(?:\s*{_PLACE})+\s*|\s*(?:{_PLACE}\s*)+$")
_OTHER_MEDIA = ("<video>", "<audio>")
# First bytes of image files: a text that decodes to one of them is base64, not a path.
_BEGINNINGS = (
    *(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*"),
    *(b"P5\n", b"P6\n", b"\0\0\0\x0cjP  "),
)
_DEEPEST = 20  # nesting depth of lists and dicts in a further column
_SHORTEST = 32  # bytes; an image file is longer, and a short path may be base64 by chance
_FROM_URL = str.maketrans("-_", "+/")  # from the alphabet of URL-safe base64


class RowReader:
    """Makes examples of the rows of one data set.

    If all image placeholders stand at the edges of a question, they are removed: prompts show the
    images before the text. If one stands between words, all are kept as `<image>`, and the images
    go there.
    """

    placeholders: int  # number of rows read so far whose questions had placeholders

    def __init__(
        self,
        name: str,
        folder: Path | None,
        *,
        columns: Columns = USUAL,
        further: bool = False,
        answers: AnswerFormat = ANSWER_TAGS,
    ) -> None:
        """Args:
        name: of the data set, for messages.
        folder: base of relative image paths; None if there is none.
        columns: names of the columns by role.
        further: whether examples hold the further columns of their rows, for reward functions.
        answers: a solution may also mark its answer in this format.
        """
        self.columns = columns
        self._further = further
        self._answers = answers
        self._name = name
        self._folder = folder
        self.placeholders = 0

    def example(self, row: Row, identifier: str) -> Example:
        """The example of a row; raises UnreadableExample if the row cannot be used."""
        read = Example(id=writable(identifier), images=(), question="", answer="", solution="")
        try:
            read = dataclasses.replace(read, question=_question(row, self.columns))
            answer, solution = _solution(row, self.columns, self._answers)
            read = dataclasses.replace(read, answer=answer, solution=solution)
            images = tuple(_image(part, self._folder) for part in _image_parts(row, self.columns))
            question = self._placed(read.question, len(images), read.id)
            columns = self.further(row)
            return dataclasses.replace(read, images=images, question=question, columns=columns)
        except UserError as error:
            raise UnreadableExample(f"{read.id}: {error}", read) from error

    def further(self, row: Row) -> dict[str, Any]:
        """Columns of a row that have no role and hold plain data; empty unless `further` is set.

        None is left out: in a stream it also stands for data that are not plain.
        """
        if not self._further:
            return {}
        roles = dataclasses.astuple(self.columns)
        taken = {_column(row, names) for names in roles}
        return {
            name: value
            for name, value in row.items()
            if name not in taken and value is not None and _is_plain(value, _DEEPEST)
        }

    def _placed(self, question: str, images: int, identifier: str) -> str:
        """The question without placeholders, or with one `<image>` per image."""
        found = len(re.findall(_PLACE, question))
        if found:
            if found != images:
                raise UserError(
                    f"its question has {found} {PLACEHOLDER} placeholder(s), but there are"
                    f" {images} image(s)"
                )
            self._say_placeholders(identifier)
            bare = _EDGES.sub("", question)
            question = re.sub(_PLACE, PLACEHOLDER, question if re.search(_PLACE, bare) else bare)
        if not question:
            raise UserError("its question is empty but for placeholders of images")
        for other in _OTHER_MEDIA:
            if other in question:
                raise UserError(f"its question is about a {other}, and only images are read")
        return question

    def _say_placeholders(self, identifier: str) -> None:
        self.placeholders += 1
        if self.placeholders == 1:
            _log.warning(
                "questions of %s have placeholders of their images (the first: %s): they are taken"
                " out; the images stand before the text, or where a placeholder is between words",
                writable(self._name),
                identifier,
            )


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value consists of booleans, finite numbers, texts, None, lists and dicts."""
    if isinstance(value, float):
        return math.isfinite(value)
    if value is None or isinstance(value, bool | int | str):
        return True
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return isinstance(value, list) and depth > 0 and all(_is_plain(x, depth - 1) for x in value)


def _column(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in columns), None)


def _entry(row: Row, names: tuple[str, ...]) -> tuple[str, Any]:
    """Name and value of the first of these columns that the row has."""
    name = _column(row, names)
    held = None if name is None else row[name]
    blank = isinstance(held, str | bytes) and not held.strip()
    if held is None or blank or (isinstance(held, Sequence | Mapping) and not len(held)):
        raise UserError(f"its {name} is empty")
    return str(name), held


def _text(held: Any, name: str) -> str:
    """A value as text; bytes are decoded as UTF-8."""
    if isinstance(held, bytes):
        try:
            return held.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"its {name} is not UTF-8 text: {quoted(repr(held[:100]))}") from error
    if not isinstance(held, str):
        raise UserError(f"its {name} is no text but {type(held).__name__}")
    return held


def _question(row: Row, columns: Columns) -> str:
    name, held = _entry(row, columns.question)
    return _text(held, name)


def _solution(row: Row, columns: Columns, answers: AnswerFormat) -> tuple[str, str]:
    """The ground truth, and the solution with the ground truth in its answer tag."""
    name, held = _entry(row, columns.answer)
    solution = answers.in_usual_tags(_truth(held, name))
    answer = extract_answer(solution)
    if answer is None:
        if "<answer>" in solution or "</answer>" in solution:
            raise UserError(f"its {name} has an answer tag that is not opened and closed")
        answer = solution.strip()  # a bare ground truth
        solution = f"<answer>{answer}</answer>"
    if not answer:
        raise UserError(f"its {name} has an empty answer tag")
    thinking = _column(row, columns.thinking)
    if thinking and row[thinking]:
        solution = f"{_text(row[thinking], thinking)}\n\n{solution}"
    return answer, solution


def _truth(held: Any, name: str) -> str:
    """A ground truth as text; a number in the fewest digits that round-trip in its own type."""
    if isinstance(held, bytes):
        held = _text(held, name)
    elif isinstance(held, np.floating):
        held = float(str(held))  # not float(held): a 32-bit 3.14 would be 3.140000104904175
    elif isinstance(held, np.generic):
        held = held.item()
    elif isinstance(held, Decimal) and held.is_finite():
        digits = f"{held:f}"
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    elif type(held) is datetime.date:  # no datetime: nobody could guess its spelling
        return held.isoformat()
    elif isinstance(held, list | tuple | Mapping):  # may be nested deeper than Python can print
        kind = type(held).__name__
        raise UserError(f"its {name} must be a non-empty text or a finite number, not a {kind}")
    try:
        return ground_truth(held)
    except ValueError as error:
        raise UserError(f"its {name} {quoted(str(error))}") from error


def _image_parts(row: Row, columns: Columns) -> Sequence[Any]:
    _, held = _entry(row, columns.image)
    return held if isinstance(held, list | tuple) else [held]


def _image(held: Any, folder: Path | None) -> Image.Image:
    """The image of a cell: bytes, a text, or a struct with `bytes` or `path`.

    A text is a path, a data URI or base64. The `bytes` of a struct may be one of the latter two.
    """
    if isinstance(held, Mapping):
        content = held.get("bytes")
        if isinstance(content, str) and content:
            decoded = _decoded(content)
            if decoded is None:
                raise UserError("the bytes of its image are a text, and not base64 of an image")
            content = decoded
        held = content or held.get("path")
        if isinstance(held, bytes) and held is not content:
            raise UserError(f"the path of its image is not UTF-8 text: {quoted(repr(held[:100]))}")
    if isinstance(held, str) and held.strip():
        content = _decoded(held)
        return _image_file(held, folder) if content is None else open_image(io.BytesIO(content))
    if isinstance(held, bytes | bytearray) and held:
        return open_image(io.BytesIO(held))
    raise UserError("its image is neither bytes nor the path of a file")


def _decoded(text: str) -> bytes | None:
    """Image bytes of a data URI or of base64 (also URL-safe); None if the text is neither."""
    head, _, digits = text.partition(",") if text[:5].lower() == "data:" else ("", "", text)
    digits = "".join(digits.split()).translate(_FROM_URL).rstrip("=")
    try:
        content = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        content = b""
    if head:
        if not content or not head.lower().endswith(";base64"):
            raise UserError(f"its image is a data URI, {quoted(head, 50)}, but no base64 of one")
        return content
    begins = content.startswith(_BEGINNINGS) or content[4:8] == b"ftyp"
    return content if begins and len(content) > _SHORTEST else None


def _image_file(path: str, folder: Path | None) -> Image.Image:
    if "://" in path:
        raise UserError(f"its image is an address, {quoted(path)}: only files are read")
    if folder is None and not Path(path).is_absolute():
        raise UserError(
            f"its image is the path {quoted(path)}, and nothing says which folder that is relative"
            " to: give --images"
        )
    return open_image(path if folder is None else folder / path)
