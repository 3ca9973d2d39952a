"""CLEVR and SuperCLEVR folders: their scenes as counting questions.

FOLDER/scenes/CLEVR_train_scenes.json   {"scenes": [{"image_filename": ..., "objects": [...]}, ...]}
FOLDER/images/train/CLEVR_train_000000.png

SuperCLEVR has one file of scenes, no splits, and its images in images/ itself.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from othink_jax.data.example import Example, UnreadableExample, solution_text
from othink_jax.data.images import open_image
from othink_jax.errors import UserError, quoted
from othink_jax.files import read_json

# As in R1-V's questions about SuperCLEVR.
QUESTION = "How many different items are there in the image?"
_SCENES = "scenes/*_scenes.json"
_TRAITS = ("size", "color", "material", "shape")


def is_clevr(folder: Path) -> bool:
    """Whether a folder holds scene files in CLEVR's layout."""
    return any(folder.glob(_SCENES))


class ClevrScenes:
    """Every scene with its image and the question how many objects are in it.

    The solution lists the objects, then gives their number.
    """

    def __init__(self, folder: Path, split: str) -> None:
        """Raises UserError if the folder lacks scenes of this split or a scene lacks an entry."""
        files = {_split_of(file): file for file in sorted(folder.glob(_SCENES))}
        file = files.get(split, files.get(None))
        if file is None:
            names = ", ".join(name for name in files if name)
            raise UserError(f"{folder} has no scenes of the split {split!r}; it has {names}")
        scenes = read_json(file).get("scenes")
        if not isinstance(scenes, list):
            raise UserError(f"{file} has no list of scenes")
        self._scenes = [_described(scene, f"{file}, scene {i}") for i, scene in enumerate(scenes)]
        self._name = file.name
        within = folder / "images" / split
        self._images = within if within.is_dir() else folder / "images"

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Example:
        name, objects = self._scenes[index]
        identifier = quoted(name) if isinstance(name, str) else f"{self._name}:{index}"
        read = Example(id=identifier, images=(), question=QUESTION, answer="", solution="")
        try:
            count = str(len(objects))
            things = [f"{number} {_words(thing)}" for number, thing in enumerate(objects, start=1)]
            solution = solution_text(" ".join(things), count)
            read = dataclasses.replace(read, answer=count, solution=solution)
            if not isinstance(name, str):
                raise UserError(f"its image_filename is no text but {type(name).__name__}")
            return dataclasses.replace(read, images=(open_image(self._images / name),))
        except UserError as error:
            raise UnreadableExample(f"{read.id}: {error}", read) from error

    def texts(self) -> Iterator[str]:
        """See `data.sources.Source`."""
        return map(repr, self._scenes)

    def further(self, index: int) -> Mapping[str, Any]:
        """Empty: a scene has no row."""
        return {}


def _split_of(file: Path) -> str | None:
    """The split in a name such as CLEVR_train_scenes.json; None in superCLEVR_scenes.json."""
    parts = file.stem.removesuffix("_scenes").split("_")
    return parts[-1] if len(parts) > 1 else None


def _described(scene: Any, where: str) -> tuple[Any, list[list[Any]]]:
    """File name of the image, and traits of each object in it; types are not yet checked."""
    if not isinstance(scene, Mapping):
        raise UserError(f"{where} is not a JSON object")
    absent = [name for name in ("image_filename", "objects") if name not in scene]
    if absent:
        raise UserError(f"{where} has no {' and no '.join(absent)}")
    objects = scene["objects"]
    if not (isinstance(objects, list) and all(isinstance(thing, Mapping) for thing in objects)):
        raise UserError(f"{where} has objects that are no list of JSON objects")
    traits = [[thing[trait] for trait in _TRAITS if trait in thing] for thing in objects]
    return scene["image_filename"], traits


def _words(traits: list[Any]) -> str:
    """An object in words, such as `large red metal cube`."""
    for trait in traits:
        if not isinstance(trait, str):
            raise UserError(f"a trait of an object is no text but {type(trait).__name__}")
    return " ".join(traits)
