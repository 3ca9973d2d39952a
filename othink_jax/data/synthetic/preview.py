"""Contact sheet of a task's examples."""

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from othink_jax.data.synthetic.source import Difficulty, generate
from othink_jax.errors import UserError

_COLUMNS, _ZOOM, _MARGIN, _CAPTION = 4, 2, 12, 76  # images, factor, pixels, pixels


def preview(
    task: str,
    split: str,
    count: int,
    path: Path,
    *,
    seed: int = 0,
    difficulty: Difficulty | None = None,
) -> None:
    """Write a PNG of the first `count` examples, each with its question and answer beneath.

    Raises:
      UserError: there is no such task or split, or `count` is below 1.
    """
    if count < 1:
        raise UserError(f"count must be >= 1, got {count}")
    examples = [
        generate(task, split, index, seed=seed, difficulty=difficulty) for index in range(count)
    ]
    side = _ZOOM * max(example.images[0].width for example in examples)
    rows = -(-count // _COLUMNS)
    sheet = Image.new(
        "RGB",
        (
            _COLUMNS * (side + _MARGIN) + _MARGIN,
            rows * (side + _CAPTION + _MARGIN) + _MARGIN,
        ),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, example in enumerate(examples):
        x = _MARGIN + number % _COLUMNS * (side + _MARGIN)
        y = _MARGIN + number // _COLUMNS * (side + _CAPTION + _MARGIN)
        sheet.paste(example.images[0].resize((side, side), Image.Resampling.NEAREST), (x, y))
        caption = [*textwrap.wrap(example.question, 34), f"answer: {example.answer}"]
        draw.text((x, y + side + 4), "\n".join(caption), fill="black", font=font)
    sheet.save(path, format="PNG")
