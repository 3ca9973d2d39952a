r"""Rewards for boxes and points in images.

A box is `[x1, y1, x2, y2]`, `(x1,y1),(x2,y2)` as Qwen2-VL writes it, or the `bbox_2d` of a JSON
object as Qwen2.5-VL does: left, top, right, bottom. It is read from the answer tag. The truth is
the example's answer, in the same forms.

Each reward has three variants, by the coordinates that a model answers in:

- no suffix: answer and truth have the same coordinates, whatever they are;
- `..._qwen2_vl`: the answer is in thousandths of the image's width and height (arXiv
  2409.12191), the truth in pixels of the stored image;
- `..._qwen2_5_vl`: the answer is in pixels of the image after resizing for the model (arXiv
  2502.13923), the truth in pixels of the stored image.

The latter two need an example with one image.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from othink_jax.rewards.functions import RewardExample

Box = tuple[float, float, float, float]  # left, top, right, bottom
Scale = tuple[float, float]  # factors for x and y of an answer
_Scaling = Callable[[RewardExample], Scale]

_THRESHOLDS = np.arange(10, 20) / 20  # COCO's IoU thresholds: 0.5, 0.55, ..., 0.95
LEAST_IOU = 0.5  # IoU from which a box counts as right
_RECALLS = np.arange(101) / 100  # COCO's recalls at which precision is read
_N = r"\s*(-?\d{1,7}(?:\.\d{1,9})?)\s*"
_BOX = re.compile(rf"[\[(]{_N},{_N}(?:[\])]\s*,\s*[\[(]|,){_N},{_N}[\])]")
_POINT = re.compile(rf"[\[(]{_N},{_N}[\])]")


def same(example: RewardExample) -> Scale:
    """Scale of an answer in the truth's own coordinates."""
    return 1.0, 1.0


def thousandths(example: RewardExample) -> Scale:
    """Scale of an answer in thousandths of the image."""
    width, height = _only(example.image_sizes)
    return width / 1000, height / 1000


def shown_pixels(example: RewardExample) -> Scale:
    """Scale of an answer in pixels of the image after resizing for the model."""
    width, height = _only(example.image_sizes)
    shown_width, shown_height = _only(example.shown_sizes)
    return width / shown_width, height / shown_height


def _only(sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    if len(sizes) != 1:
        raise ValueError(f"the size of one image is needed, and {len(sizes)} are known")
    return sizes[0]


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, from 0 to 1; 0 if a box has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (a, b)]
    return width * height / (sum(areas) - width * height)


def iou(text: str, example: RewardExample, scaling: _Scaling = same) -> float:
    """Intersection over union of the answer's box and the truth's, 0 to 1; 0 unless it is one box.

    VLM-R1's reward for referring expressions (arXiv 2504.07615), which however takes the first of
    several boxes.
    """
    found = _BOX.findall(example.answer_in(text) or "")
    if len(found) != 1:
        return 0.0
    return box_iou(_scaled(found[0], scaling(example)), _true_box(example))


def box_accuracy(text: str, example: RewardExample, scaling: _Scaling = same) -> float:
    """1.0 if the `iou` is at least 0.5, else 0.0: the metric of grounding (Acc@0.5).

    VLM-R1's evaluation (arXiv 2504.07615) requires more than 0.5.
    """
    return float(iou(text, example, scaling) >= LEAST_IOU)


def box_verdict(answer: str | None, truth: str) -> bool | None:
    """Whether an answer is one box with an IoU of at least 0.5 with the truth's, without scaling.

    None if the truth holds no box, or several.
    """
    found, true = (_BOX.findall(text or "") for text in (answer, truth))
    if len(true) != 1:
        return None
    if len(found) != 1:
        return False
    return box_iou(*(_scaled(numbers[0], (1.0, 1.0)) for numbers in (found, true))) >= LEAST_IOU


def point_in_box(text: str, example: RewardExample, scaling: _Scaling = same) -> float:
    """1.0 if the answer is one point that lies in the truth's box or on its edge, else 0.0.

    The metric of GUI grounding (SeeClick, arXiv 2401.10935).
    """
    answer = example.answer_in(text) or ""
    found = _POINT.findall(answer)
    if len(found) != 1 or _BOX.search(answer):
        return 0.0
    (x, y), (scale_x, scale_y) = map(float, found[0]), scaling(example)
    left, top, right, bottom = _true_box(example)
    return float(left <= x * scale_x <= right and top <= y * scale_y <= bottom)


def box_map(text: str, example: RewardExample, scaling: _Scaling = same) -> float:
    """Mean average precision of the answer's boxes, 0 to 1, over labels and COCO's thresholds.

    Average precision is COCO's (arXiv 1405.0312): boxes rank in the order of the answer, the most
    confident first; precision is read at 101 recalls, at IoU 0.5 to 0.95. Boxes come from a JSON
    list of objects with `bbox_2d` and `label`; any other text is read as boxes without a label. A
    label of the answer that the truth lacks counts as 0; COCO leaves it out. If the truth holds no
    box, an answer without boxes scores 1.
    """
    answer = example.answer_in(text)
    if answer is None:
        return 0.0
    found, truth = _labelled(answer, scaling(example)), _labelled(example.answer, (1.0, 1.0))
    labels = found.keys() | truth.keys()
    if not labels:
        return 1.0
    precisions = [_average_precision(found.get(x, []), truth.get(x, [])) for x in sorted(labels)]
    return float(np.mean(precisions))


def _average_precision(found: list[Box], truth: list[Box]) -> float:
    if not found or not truth:
        return 0.0
    overlaps = np.array([[box_iou(one, other) for other in truth] for one in found])
    return float(np.mean([_at_threshold(overlaps, threshold) for threshold in _THRESHOLDS]))


def _at_threshold(overlaps: np.ndarray, threshold: float) -> float:
    """Average precision at one threshold; `overlaps`: IoU of each found box and each true one."""
    free = np.ones(overlaps.shape[1], bool)
    right = np.zeros(len(overlaps), bool)
    for number, row in enumerate(overlaps):
        best = int(np.argmax(np.where(free, row, -1.0)))
        right[number] = free[best] and row[best] >= threshold
        free[best] &= not right[number]
    recall = np.cumsum(right) / len(free)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    reached = [precision[recall >= at].max(initial=0.0) for at in _RECALLS]
    return float(np.mean(reached))


def _true_box(example: RewardExample) -> Box:
    found = _BOX.findall(example.answer)
    if len(found) != 1:
        raise ValueError(f"the truth must hold one box, and holds {len(found)}")
    return _scaled(found[0], (1.0, 1.0))


def _scaled(numbers: Any, scale: Scale) -> Box:
    left, top, right, bottom = map(float, numbers)
    return left * scale[0], top * scale[1], right * scale[0], bottom * scale[1]


def _labelled(text: str, scale: Scale) -> Mapping[str, list[Box]]:
    """Boxes by label; a missing label is empty."""
    found: dict[str, list[Box]] = {}
    for label, numbers in _of_json(text) or [("", numbers) for numbers in _BOX.findall(text)]:
        found.setdefault(label, []).append(_scaled(numbers, scale))
    return found


def _of_json(text: str) -> list[tuple[str, list[float]]]:
    """Labels and boxes of a JSON object or list of objects; empty if the text is neither."""
    fenced = re.fullmatch(r"\s*```(?:json)?(.*)```\s*", text, re.DOTALL)
    try:
        rows = json.loads(fenced[1] if fenced else text)
        boxes = [
            (str(row.get("label", "")).strip().lower(), [float(x) for x in row["bbox_2d"]])
            for row in ([rows] if isinstance(rows, dict) else rows)
        ]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return []
    return [(label, box) for label, box in boxes if len(box) == 4 and all(map(math.isfinite, box))]


def _with(function: Callable[..., float], scaling: _Scaling, words: str) -> Callable[..., float]:
    def reward(text: str, example: RewardExample) -> float:
        return function(text, example, scaling)

    reward.__doc__ = f"`{function.__name__}` of an answer in {words}."
    return reward


_COORDINATES = {
    "qwen2_vl": (thousandths, "thousandths of the image, as Qwen2-VL's"),
    "qwen2_5_vl": (shown_pixels, "pixels of the image as it is shown, as Qwen2.5-VL's"),
}
BOX_REWARDS: Mapping[str, Callable[..., float]] = {
    name: made
    for function in (iou, box_accuracy, point_in_box, box_map)
    for name, made in [
        (function.__name__, function),
        *(
            (f"{function.__name__}_{model}", _with(function, scaling, words))
            for model, (scaling, words) in _COORDINATES.items()
        ),
    ]
}
