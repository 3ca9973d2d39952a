"""Questions, chats and batches: what the model reads, token by token."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer

from othink_jax.data.images import patchify, patchify_video
from othink_jax.data.processing import PadTo, Processor
from othink_jax.errors import UserError
from tests.tiny_processor import noise, write_directory

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_directory(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def processor(directory):
    return Processor.from_pretrained(directory)


@pytest.fixture(scope="module")
def text_of(directory):
    """Token ids -> text with special tokens, by the tokenizers library alone."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


def placeholders(count):
    return "<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>"


def test_a_prompt_is_one_user_turn_with_the_images_first(processor, text_of):
    # 112 x 56 pixels are 8 x 4 patches, 4 x 2 merge windows; 56 x 56 are 2 x 2.
    prompt = processor.encode("How many?", [noise(112, 56), noise(56, 56)])
    assert text_of(prompt.tokens) == (
        SYSTEM
        + f"<|im_start|>user\n{placeholders(8)}{placeholders(4)}How many?<|im_end|>\n"
        + "<|im_start|>assistant\n"
    )
    assert prompt.tokens.dtype == prompt.positions.dtype == np.int32
    assert [image.shape for image in prompt.patches] == [(32, 1176), (16, 1176)]


def test_an_image_free_prompt_counts_its_positions(processor, text_of):
    prompt = processor.encode("How many?", [])
    expected = SYSTEM + "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(prompt.tokens) == expected
    np.testing.assert_array_equal(prompt.positions, [np.arange(len(prompt.tokens))] * 3)
    assert prompt.patches == ()


def test_a_chat_takes_several_turns_with_images_anywhere(processor, text_of):
    small, wide = noise(56, 56), noise(112, 56)
    prompt = processor.encode_chat(
        [
            {"role": "system", "content": "Think."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "I see it"},
                    {"type": "image", "image": small},
                    {"type": "text", "text": "How many"},
                    {"type": "image", "image": wide},
                ],
            },
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "Which is larger?"},
        ]
    )
    assert text_of(prompt.tokens) == (
        "<|im_start|>system\nThink.<|im_end|>\n"
        f"<|im_start|>user\nI see it{placeholders(4)}How many{placeholders(8)}<|im_end|>\n"
        "<|im_start|>assistant\n3<|im_end|>\n"
        "<|im_start|>user\nWhich is larger?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    for image, patches in zip((small, wide), prompt.patches, strict=True):
        np.testing.assert_array_equal(patches, patchify(image, processor.image_settings)[0])


def test_an_image_occupies_the_positions_of_its_grid(processor):
    prompt = processor.encode("How many?", [noise(112, 56)])
    shown = prompt.tokens == processor.image_token_id
    first = int(np.argmax(shown))
    np.testing.assert_array_equal(
        prompt.positions[:, shown] - first,
        [[0] * 8, [0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 3, 0, 1, 2, 3]],
    )
    after = first + 8
    np.testing.assert_array_equal(prompt.positions[:, after], [first + 4] * 3)


def test_the_size_of_an_image_as_it_is_shown_is_that_of_its_patches(processor):
    """112 x 84 are 8 columns and 6 rows of patches of 14 pixels, and stay as they are."""
    prompt = processor.encode("?", [noise(112, 84), noise(60, 100)])
    assert [len(patches) for patches in prompt.patches] == [48, 32]
    assert processor.shown_sizes(prompt) == ((112, 84), (56, 112))


def test_a_video_takes_a_slot_for_each_two_frames(processor, text_of):
    frames = [noise(84, 56, seed=number) for number in range(3)]  # 3 x 2 merge windows
    content = [
        {"type": "image", "image": noise(56, 56)},
        {"type": "video", "video": frames},
        {"type": "text", "text": "How many?"},
    ]
    prompt = processor.encode_chat([{"role": "user", "content": content}])
    video = f"<|vision_start|>{'<|video_pad|>' * 12}<|vision_end|>"
    assert f"<|im_start|>user\n{placeholders(4)}{video}How many?" in text_of(prompt.tokens)
    assert [len(patches) for patches in prompt.patches] == [16, 24, 24]
    steps, where = patchify_video(frames, processor.image_settings)
    np.testing.assert_array_equal(prompt.patches[1:], steps)
    np.testing.assert_array_equal(prompt.patch_positions[1:], [where, where])
    shown = prompt.tokens == processor.video_token_id
    first = int(np.argmax(shown))
    np.testing.assert_array_equal(  # the image before it takes 2 positions for 4 tokens
        prompt.positions[:, shown] - (first - 2),
        [[0] * 6 + [1] * 6, [0, 0, 0, 1, 1, 1] * 2, [0, 1, 2] * 4],
    )


def test_a_video_takes_the_time_it_lasts_where_the_model_tells_time(processor, tmp_path):
    timed = Processor.from_pretrained(write_directory(tmp_path / "timed"), tokens_per_second=2)
    video = {"type": "video", "video": [noise(56, 56, seed=i) for i in range(6)]}  # three steps

    def times(processor, **more):
        encoded = processor.encode_chat([{"role": "user", "content": [video | more]}])
        here = encoded.tokens == processor.video_token_id
        return np.unique(encoded.positions[0, here] - encoded.positions[0, here].min()).tolist()

    assert times(processor, fps=0.5) == [0, 1, 2]
    assert times(timed) == [0, 2, 4]  # two frames a second: a step lasts one
    assert times(timed, fps=0.5) == [0, 8, 16]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_question_with_a_placeholder_of_its_own_is_refused(processor, kind):
    frame = noise(56, 56)
    text = {"type": "text", "text": f"How many <|{kind}_pad|>?"}
    shown = {"type": kind, kind: frame if kind == "image" else [frame]}
    for parts, count in (([text], 0), ([shown, text], 1)):
        message = rf"{count + 1} {kind} placeholder\(s\), but there are {count}"
        with pytest.raises(UserError, match=message):
            processor.encode_chat([{"role": "user", "content": parts}])


def test_a_prompt_is_not_cut_by_limits_saved_with_the_tokenizer(tmp_path):
    write_directory(tmp_path)
    whole = Processor.from_pretrained(tmp_path).encode("How many red circles?", [])
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(max_length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    limited = Processor.from_pretrained(tmp_path).encode("How many red circles?", [])
    np.testing.assert_array_equal(limited.tokens, whole.tokens)


# Batches


def test_a_batch_is_padded_on_the_right_to_multiples(processor):
    short = processor.encode("How many?", [noise(56, 56)])
    long = processor.encode(
        "How many red circles are there? " * 3, [noise(112, 112), noise(56, 56)]
    )
    batch = processor.batch([short, long])
    assert batch.tokens.shape == (2, 32 * -(-len(long.tokens) // 32))
    assert batch.patches.shape == (2, 2, 64, 1176)
    for row, prompt in enumerate((short, long)):
        length = len(prompt.tokens)
        np.testing.assert_array_equal(batch.tokens[row, :length], prompt.tokens)
        np.testing.assert_array_equal(batch.positions[row, :, :length], prompt.positions)
        assert batch.mask[row, :length].all()
        assert not batch.mask[row, length:].any()
        assert (batch.tokens[row, length:] == processor.pad_token_id).all()
        assert (batch.image_index[row, length:] == -1).all()
    np.testing.assert_array_equal(batch.patch_mask.sum(axis=-1), [[16, 0], [64, 16]])
    assert (batch.patches[~batch.patch_mask] == 0).all()


def test_every_placeholder_points_to_its_own_merged_patch(processor):
    prompts = [
        processor.encode("How many?", [noise(112, 56, seed=1), noise(56, 56, seed=2)]),
        processor.encode("How many?", []),
        processor.encode("How many?", [noise(112, 112, seed=3)]),
    ]
    batch = processor.batch(prompts)
    assert (batch.image_index[1] == -1).all()
    for row, prompt in enumerate(prompts):
        shown = batch.tokens[row] == processor.image_token_id
        np.testing.assert_array_equal(batch.image_index[row] >= 0, shown)
        merged = batch.patches[row].reshape(-1, 4 * 1176)  # [I * K / 4, four patches of a window]
        pointed = merged[batch.image_index[row, shown]].reshape(-1, 1176)
        expected = np.concatenate([np.zeros((0, 1176), np.float32), *prompt.patches])
        np.testing.assert_array_equal(pointed, expected)


def test_a_batch_without_images_has_no_image_slots(processor):
    batch = processor.batch([processor.encode("How many?", [])])
    assert batch.patches.shape == (1, 0, 0, 1176)
    assert (batch.image_index == -1).all()


def test_completions_go_on_one_past_the_largest_position(processor):
    prompts = [processor.encode("How many?", [noise(112, 112)]), processor.encode("Which?", [])]
    batch = processor.batch(prompts)
    expected = [prompt.positions.max() + 1 for prompt in prompts]
    np.testing.assert_array_equal(batch.next_position, expected)
    assert expected[0] < len(prompts[0].tokens)  # 16 image tokens take 4 positions


def test_shapes_can_be_forced(processor):
    pad = PadTo(prompt_tokens=100, image_slots=3, patches=20)
    batch = processor.batch([processor.encode("How many?", [noise(56, 56)])], pad=pad)
    assert batch.tokens.shape == (1, 100)
    assert batch.patches.shape == (1, 3, 20, 1176)


@pytest.mark.parametrize(
    ("pad", "message"),
    [
        (PadTo(prompt_tokens=8, image_slots=1, patches=16), "does not fit"),
        (PadTo(prompt_tokens=64, image_slots=0, patches=16), "does not fit"),
        (PadTo(prompt_tokens=64, image_slots=1, patches=12), "does not fit"),
        (PadTo(prompt_tokens=64, image_slots=1, patches=18), "multiple of a merge window"),
    ],
)
def test_a_prompt_is_never_cut_to_fit(processor, pad, message):
    with pytest.raises(UserError, match=message):
        processor.batch([processor.encode("How many?", [noise(56, 56)])], pad=pad)


# Completions


def test_decoding_leaves_out_special_tokens_and_what_the_mask_hides(processor):
    text = "<think>I see 3</think> <answer>3</answer>"
    tokens = processor.tokenizer.backend_tokenizer.encode(text).ids
    completion = np.array([*tokens, *processor.eos_token_ids, tokens[0]], np.int32)
    mask = np.arange(len(completion)) < len(completion) - 1
    assert processor.decode(completion, mask) == text


def test_ids_without_a_token_decode_to_nothing(processor):
    # The real model has more logits than its tokenizer has tokens.
    assert processor.decode(np.array([151_900], np.int32)) == ""


# Model directories


def change(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_tokens_that_are_never_sampled(processor):
    names = ["im_start", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"]
    ids = processor.tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])
    assert processor.never_sampled == tuple(sorted(ids))
    assert not set(processor.never_sampled) & set(processor.eos_token_ids)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["<|im_end|>", "<|endoftext|>"], ["<|im_end|>", "<|endoftext|>"]),
        ("<|endoftext|>", ["<|im_end|>", "<|endoftext|>"]),  # the tokenizer's own is added
        (None, ["<|im_end|>"]),
    ],
)
def test_every_end_of_sequence_token_is_known(tmp_path, processor, named, expected):
    write_directory(tmp_path)
    id_of = processor.tokenizer.convert_tokens_to_ids
    change(tmp_path / "generation_config.json", eos_token_id=named and id_of(named))
    found = Processor.from_pretrained(tmp_path).eos_token_ids
    assert found == tuple(sorted(id_of(expected)))


def test_a_directory_without_generation_settings_ends_at_the_tokenizers_token(tmp_path, processor):
    write_directory(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    found = Processor.from_pretrained(tmp_path).eos_token_ids
    assert found == (processor.tokenizer.convert_tokens_to_ids("<|im_end|>"),)


@pytest.mark.parametrize(
    "spelling",
    [
        {"min_pixels": 3136, "max_pixels": 12544, "size": None},
        {"min_pixels": None, "max_pixels": None}
        | {"size": {"shortest_edge": 3136, "longest_edge": 12544}},
    ],
)
def test_both_spellings_of_the_pixel_bounds_are_read(tmp_path, spelling):
    write_directory(tmp_path)
    change(tmp_path / "preprocessor_config.json", **spelling)
    own = Processor.from_pretrained(tmp_path).image_settings
    assert (own.min_pixels, own.max_pixels) == (3136, 12544)
    own = Processor.from_pretrained(tmp_path, min_pixels=784, max_pixels=50_000).image_settings
    assert (own.min_pixels, own.max_pixels) == (784, 50_000)


def test_image_settings_nested_as_transformers_5_saves_them_are_read(tmp_path):
    write_directory(tmp_path)
    nested = json.loads((tmp_path / "preprocessor_config.json").read_text()) | {"max_pixels": 6272}
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    assert Processor.from_pretrained(tmp_path).image_settings.max_pixels == 6272


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config"])
def test_a_chat_template_is_found_in_any_of_its_places(tmp_path, processor, place):
    write_directory(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    if place == "chat_template.json":
        (tmp_path / place).write_text(json.dumps({"chat_template": template}))
    if place == "tokenizer_config":
        change(tmp_path / "tokenizer_config.json", chat_template=template)
    if place != "chat_template.jinja":
        (tmp_path / "chat_template.jinja").unlink()
    found = Processor.from_pretrained(tmp_path).encode("How many?", [])
    np.testing.assert_array_equal(found.tokens, processor.encode("How many?", []).tokens)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokenizer.json", "has no tokenizer.json"),
        ("preprocessor_config.json", "has no preprocessor_config.json"),
        ("chat_template.jinja", "has no chat template"),
    ],
)
def test_a_missing_file_is_named(tmp_path, name, message):
    write_directory(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=message):
        Processor.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_broken_file_is_the_users_to_mend(tmp_path, name, content):
    write_directory(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        Processor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": None, "image_std": None}, "lacks patch_size, image_std"),
        ({"min_pixels": None}, "lacks min_pixels"),
        ({"max_pixels": 100}, "min_pixels must be > 0 and at most max_pixels"),
        ({"resample": 2}, "resample is 2, but only 3 is supported"),
        ({"do_normalize": False}, "do_normalize is False, but only True is supported"),
    ],
)
def test_image_settings_that_cannot_be_followed_are_refused(tmp_path, changes, message):
    write_directory(tmp_path)
    change(tmp_path / "preprocessor_config.json", **changes)
    with pytest.raises(UserError, match=message):
        Processor.from_pretrained(tmp_path)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|im_start|>"])
def test_a_tokenizer_without_a_vision_token_is_refused(tmp_path, token):
    write_directory(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace(token, "<|other|>"))
    with pytest.raises(UserError, match=f"lacks {token}".replace("|", r"\|")):
        Processor.from_pretrained(tmp_path)


def test_a_tokenizer_without_padding_token_is_refused(tmp_path):
    write_directory(tmp_path)
    change(tmp_path / "tokenizer_config.json", pad_token=None)
    with pytest.raises(UserError, match="names no pad_token"):
        Processor.from_pretrained(tmp_path)


def test_processing_never_imports_torch(directory):
    code = (
        "import sys; from pathlib import Path; from PIL import Image\n"
        "from othink_jax.data.processing import Processor\n"
        f"processor = Processor.from_pretrained(Path({str(directory)!r}))\n"
        "prompt = processor.encode('How many?', [Image.new('RGB', (56, 56))])\n"
        "processor.batch([prompt]); processor.decode(prompt.tokens)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
