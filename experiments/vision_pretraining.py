"""First phase of the pre-training: the vision tower learns to see, before any text.

A linear probe on the feature of each merge window (28x28 pixels, one token of the language model)
predicts which of `LABELS` hold in this window. Sixteen windows per image give a signal that the few
words of an answer do not: without this phase the language model learns to answer blindly, and still
does after 64 000 samples. Real Qwen2-VL starts from a trained tower too. The probe is discarded.
"""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.pretraining_corpus import draw_figure, draw_scene
from experiments.pretraining_loop import fit
from othink_jax.data.images import ImageSettings, patchify
from othink_jax.data.synthetic import diagrams, scenes, sprites
from othink_jax.data.synthetic.diagrams import Diagram
from othink_jax.data.synthetic.scenes import Scene
from othink_jax.model.vlm import merge

WINDOWS = 4  # along each side of an image
_MOST = 3  # largest count of things in a window
LABELS = (
    *(f"{colour} {shape}" for colour in sprites.COLOURS for shape in sprites.SHAPES),
    *sprites.SIZES,
    *(f"things >= {number}" for number in range(1, _MOST + 1)),
    *(f"digit {digit} at {place}" for place in range(3) for digit in range(10)),
    *("x", "A", "B", "C", "D", "O"),
)
_INDEX = {label: number for number, label in enumerate(LABELS)}


def _window(x: float, y: float) -> int:
    """Index of the merge window that contains a pixel, row by row."""
    column, row = (min(int(at * WINDOWS / scenes.IMAGE_SIDE), WINDOWS - 1) for at in (x, y))
    return row * WINDOWS + column


def _table(found: Iterable[tuple[int, str]]) -> Float[np.ndarray, "M labels"]:
    table = np.zeros((WINDOWS**2, len(LABELS)), np.float32)
    for window, label in found:
        table[window, _INDEX[label]] = 1
    return table


def scene_labels(scene: Scene) -> Float[np.ndarray, "M labels"]:
    """1 where a label holds: the things centred in a window, and their number."""
    found = []
    numbers = [0] * WINDOWS**2
    for item in scene.items:
        window = _window(item.x, item.y)
        numbers[window] = min(numbers[window] + 1, _MOST)
        found += [
            (window, f"{item.look.colour} {item.look.shape}"),
            (window, item.look.size),
            (window, f"things >= {numbers[window]}"),
        ]
    return _table(found)


def diagram_labels(diagram: Diagram) -> Float[np.ndarray, "M labels"]:
    """1 where a label holds: the texts centred in a window, numbers digit by digit."""
    found = []
    for text in diagram.texts:
        window = _window(*text.centre)
        if text.text.isdigit():
            digits = enumerate(reversed(text.text))
            found += [(window, f"digit {digit} at {place}") for place, digit in digits]
        else:
            found.append((window, text.text))
    return _table(found)


def make_batch(
    seed: int, step: int, size: int, settings: ImageSettings
) -> tuple[Float[np.ndarray, "N K C"], Int[np.ndarray, "N K 2"], Float[np.ndarray, "N M labels"]]:
    """Patches, their positions and their labels; scenes and diagrams alternate."""
    patches, labels = [], []
    for row in range(size):
        rng = np.random.default_rng([seed, step, row])
        if row % 2:
            scene = draw_scene(rng).scene
            image, table = scenes.render(scene), scene_labels(scene)
        else:
            diagram = draw_figure(rng).diagram
            image, table = diagrams.render(diagram), diagram_labels(diagram)
        cut, positions = patchify(image, settings)
        patches.append(cut)
        labels.append(table)
    return np.stack(patches), np.broadcast_to(positions, (size, *positions.shape)), np.stack(labels)


def pretrain_vision(
    graphdef: Any,
    params: dict[str, Any],
    settings: ImageSettings,
    *,
    seed: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> dict[str, Any]:
    """`params` with a trained vision tower."""
    width = merge(graphdef, params).config.vision.hidden_size
    probe = {"kernel": jnp.zeros((width, len(LABELS))), "bias": jnp.full(len(LABELS), -3.0)}
    text = params["text"]

    def loss_fn(
        trained: Any,
        patches: Float[Array, "N K C"],
        positions: Int[Array, "N K 2"],
        labels: Float[Array, "N M labels"],
    ) -> Float[Array, ""]:
        model = merge(graphdef, {"visual": trained["visual"], "text": text})
        features = model.visual(patches, positions, jnp.ones(patches.shape[:2], bool))
        features = features[..., :width]  # without DeepStack's features
        logits = features @ trained["probe"]["kernel"] + trained["probe"]["bias"]
        return optax.sigmoid_binary_cross_entropy(logits, labels).sum(axis=-1).mean()

    trained = fit(
        "vision",
        {"visual": params["visual"], "probe": probe},
        loss_fn,
        lambda step: make_batch(seed, step, batch_size, settings),
        steps=steps,
        learning_rate=learning_rate,
    )
    return {"visual": trained["visual"], "text": text}
