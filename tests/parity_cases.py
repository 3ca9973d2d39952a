"""Chats of every kind, and a model directory with random weights that transformers wrote."""

from pathlib import Path

from transformers import PreTrainedModel

from tests.model_cases import make_config
from tests.peers import make_peer
from tests.tiny_processor import fitted, noise, write_directory


def turn(*parts, role="user"):
    """A turn of a chat: text, images and videos (lists of frames)."""
    kinds = {str: "text", list: "video"}
    content = [{"type": (kind := kinds.get(type(part), "image")), kind: part} for part in parts]
    return {"role": role, "content": content}


def film(width, height, frames):
    return [noise(width, height, seed=100 + number) for number in range(frames)]


CHATS = {
    "text alone": [turn("How many?")],
    "one image": [turn(noise(112, 56), "How many?")],
    "several images": [
        turn(noise(56, 56), noise(112, 84, seed=1), "or", noise(70, 90, seed=2), "Which is larger?")
    ],
    "a wide image": [turn(noise(1400, 7), "How many?")],
    "a tall image": [turn(noise(6, 1100), "How many?")],
    "a video of one frame": [turn(film(84, 56, 1), "How many?")],
    "a video of an odd number of frames": [turn("See", film(56, 84, 5), "How many?")],
    "more steps than rows and columns": [turn(film(56, 56, 8), "How many?")],
    "videos and images": [
        turn(noise(56, 56, seed=3), film(84, 56, 4), noise(84, 84, seed=4), film(56, 56, 2), "3?")
    ],
    "several turns": [
        {"role": "system", "content": "Think, then answer."},
        turn("I see", noise(56, 84, seed=5), "and", film(56, 56, 4)),
        turn("3", role="assistant"),
        turn(noise(100, 60, seed=6), "Which is larger?", noise(56, 56, seed=7)),
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "How many red circles are there?"},
    ],
}  # fmt: skip


def write_random_model(
    directory: Path, *, family: str = "qwen2_vl", tied: bool = True, seed: int = 0
) -> Path:
    """A model for the tokenizer of a few words; its logits are of order one."""
    write_directory(directory)
    config = make_config(family=family, tied=tied, vision={"patch_size": 14})
    config = fitted(config, directory)
    save_peer(make_peer(config, seed=seed), directory)
    return directory


def save_peer(peer: PreTrainedModel, directory: Path) -> None:
    """Write weights and config; the end tokens stay the tokenizer's, not transformers' defaults."""
    settings = directory / "generation_config.json"
    own = settings.read_text()
    peer.save_pretrained(directory)
    settings.write_text(own)
