"""What a model's own generation_config.json makes of `generate`."""

import json

import pytest

from othink_jax.errors import UserError
from othink_jax.presets import generation_defaults


@pytest.fixture
def defaults(tmp_path):
    """The options that a generation_config.json of these settings gives."""

    def defaults(**settings):
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
        return generation_defaults(str(tmp_path))

    return defaults


def test_settings_that_are_not_followed_are_named(defaults, capsys):
    made = defaults(
        do_sample=True,
        top_k=20,
        num_beams=4,
        min_p=0.1,
        bad_words_ids=[[5]],
        repetition_penalty=1.1,
    )
    assert made == {"--top-k": "20", "--repetition-penalty": "1.1"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("not followed: num_beams 4, min_p 0.1, bad_words_ids [[5]]")
    assert "generation_config.json" in line


def test_settings_that_change_nothing_are_not_named(defaults, capsys):
    defaults(num_beams=1, min_p=None, typical_p=1.0, no_repeat_ngram_size=0, max_length=20)
    defaults(pad_token_id=3, bos_token_id=1, transformers_version="5.23", _from_model_config=True)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "hot"}, "temperature is 'hot', not a number$"),
        ({"top_p": [0.9]}, r"top_p is \[0.9\], not a number$"),
        ({"top_k": 50.5}, "top_k is 50.5, not a whole number$"),
        ({"max_new_tokens": True}, "max_new_tokens is True, not a whole number$"),
        ({"do_sample": "yes"}, "do_sample is 'yes', not a truth value$"),
        ({"temperature": float("inf")}, "temperature is inf, not a number$"),
    ],
)
def test_settings_of_a_wrong_kind_are_refused(defaults, settings, message):
    with pytest.raises(UserError, match=message):
        defaults(**settings)
