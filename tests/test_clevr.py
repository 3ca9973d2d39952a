"""Folders of CLEVR and SuperCLEVR, as they come out of their archives."""

import json

import numpy as np
import pytest

from othink_jax.config import DataConfig, from_dict, to_dict
from othink_jax.data.example import UnreadableExample
from othink_jax.data.sources import open_source
from othink_jax.errors import UserError
from othink_jax.rewards import grade
from tests.tiny_processor import noise

CUBE = {"size": "large", "color": "red", "material": "rubber", "shape": "cube", "rotation": 12.5}
BUS = {"size": "small", "color": "cyan", "material": "metal", "shape": "school", "texture": "none"}


def write_scenes(folder, name, images, scenes):
    """`scenes` are the objects of each image."""
    (folder / "scenes").mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, objects in enumerate(scenes):
        file = f"{name}_{number:06d}.png"
        noise(12, 8, seed=len(objects)).save(images / file)
        rows.append({"image_index": number, "image_filename": file, "objects": objects})
    content = {"info": {"version": "1.0"}, "scenes": rows}
    (folder / "scenes" / f"{name}_scenes.json").write_text(json.dumps(content))


@pytest.fixture
def clevr(tmp_path):
    folder = tmp_path / "CLEVR_v1.0"
    write_scenes(folder, "CLEVR_train", folder / "images" / "train", [[CUBE], [CUBE, BUS, CUBE]])
    write_scenes(folder, "CLEVR_val", folder / "images" / "val", [[BUS, BUS]])
    return folder


def opened(folder, **settings):
    return open_source(DataConfig(dataset=str(folder), **settings))


def test_scenes_are_counting_questions_that_name_the_things_one_by_one(clevr):
    source = opened(clevr)
    assert len(source) == 2
    example = source[1]
    assert example.question == "How many different items are there in the image?"
    assert example.answer == "3"
    assert example.solution == (
        "<think>1 large red rubber cube 2 small cyan metal school 3 large red rubber cube</think>"
        " <answer>3</answer>"
    )
    np.testing.assert_array_equal(np.asarray(example.images[0]), np.asarray(noise(12, 8, seed=3)))


def test_a_solution_is_right_and_in_the_form_that_is_asked_for(clevr):
    example = opened(clevr)[1]
    verdict = grade(example.solution, example.answer, task="counting", grader="strict")
    assert (verdict.accuracy, verdict.format) == (1.0, 1.0)


def test_splits_are_those_in_the_names_of_the_files(clevr):
    assert [example.id for example in opened(clevr, split="val")] == ["CLEVR_val_000000.png"]
    with pytest.raises(UserError, match="has no scenes of the split 'test'; it has train, val"):
        opened(clevr, split="test")


def test_superclevr_has_one_file_and_its_images_in_one_folder(tmp_path):
    write_scenes(tmp_path, "superCLEVR", tmp_path / "images", [[BUS], [BUS, BUS]])
    assert [example.answer for example in opened(tmp_path, split="test")] == ["1", "2"]


def test_a_few_scenes_are_chosen_by_their_seed(tmp_path):
    write_scenes(tmp_path, "superCLEVR", tmp_path / "images", [[BUS] * n for n in range(1, 9)])
    chosen = [
        [example.answer for example in opened(tmp_path, limit=4, limit_seed=s)] for s in (0, 1)
    ]
    assert chosen[0] != chosen[1]
    assert len(set(chosen[0])) == 4


def test_a_missing_image_is_named_and_its_question_kept(clevr):
    (clevr / "images" / "train" / "CLEVR_train_000001.png").unlink()
    with pytest.raises(UnreadableExample, match="CLEVR_train_000001") as raised:
        opened(clevr)[1]
    assert raised.value.example.answer == "3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"info": {}}, "has no list of scenes"),
        ({"scenes": [{"objects": []}]}, "scene 0 has no image_filename"),
        ({"scenes": [{}]}, "scene 0 has no image_filename and no objects"),
        ({"scenes": []}, "holds no examples"),
        ({"scenes": [{"image_filename": "a.png", "objects": None}]}, "scene 0 has objects that"),
        ({"scenes": [{"image_filename": "a.png", "objects": {"a": 1}}]}, "scene 0 has objects"),
        ({"scenes": [{"image_filename": "a.png", "objects": [1]}]}, "scene 0 has objects that"),
    ],
)
def test_broken_scenes_are_named(clevr, content, message):
    (clevr / "scenes" / "CLEVR_train_scenes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        opened(clevr)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_filename": 3}, r"_scenes\.json:0: its image_filename is no text but int"),
        ({"image_filename": None}, "its image_filename is no text but NoneType"),
        ({"image_filename": "\ud83d.png"}, r"^\\ud83d\.png: "),
        ({"image_filename": "x" * 5000}, r"^x{200}\.\.\.: "),
        ({"objects": [{"color": None}]}, "a trait of an object is no text but NoneType"),
        ({"objects": [{"color": "\ud83d"}]}, r"its solution is not UTF-8 text: .*\\ud83d"),
    ],
)
def test_a_scene_that_cannot_be_used_is_named_and_costs_no_other(clevr, change, message):
    file = clevr / "scenes" / "CLEVR_train_scenes.json"
    content = json.loads(file.read_text())
    content["scenes"][0] |= change
    file.write_text(json.dumps(content))
    source = opened(clevr)
    with pytest.raises(UnreadableExample, match=message) as raised:
        source[0]
    raised.value.example.id.encode("utf-8")
    assert source[1].answer == "3"


def test_a_folder_of_images_is_not_given_to_clevr(clevr, tmp_path):
    with pytest.raises(UserError, match="--images goes with rows that name image files"):
        opened(clevr, images=tmp_path)


def test_jsonl_finds_its_images_in_a_folder_that_is_given(tmp_path):
    """R1-V's test files stand in another folder than their images."""
    images = tmp_path / "downloads"
    (images / "Geo170K").mkdir(parents=True)
    noise(8, 6, seed=0).save(images / "Geo170K" / "0.png")
    file = tmp_path / "prompts.jsonl"
    row = {"image_path": "./Geo170K/0.png", "question": "Angle?", "ground_truth": "50°"}
    file.write_text(json.dumps(row))
    config = DataConfig(dataset=str(file), images=images)
    assert from_dict(DataConfig, to_dict(config)) == config
    assert open_source(config)[0].images[0].size == (8, 6)
    with pytest.raises(UserError, match="--images goes with"):
        DataConfig(task="counting", images=images)
