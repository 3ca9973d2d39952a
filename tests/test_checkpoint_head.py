"""The output head is the one of the file, whatever config.json says of it."""

import json

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration as Peer

from othink_jax.checkpoint.convert import to_hf, to_orbax
from othink_jax.checkpoint.load import load, save_hf
from othink_jax.checkpoint.orbax_model import save_model
from othink_jax.checkpoint.tensors import in_memory
from othink_jax.model.vlm import merge
from tests.model_cases import Case, make_config, random_params, save_hub, to_prompts
from tests.tiny_processor import fitted, write_directory

WEIGHTS, EMBEDDING, HEAD = "model.safetensors", "model.embed_tokens.weight", "lm_head.weight"
TOKENS = np.arange(3, 12, dtype=np.int32)


def nest(config):
    """As transformers 4 wrote it: the flag with the text is true, the one at the top is not."""
    text = dict(config, tie_word_embeddings=True)
    del text["vision_config"], text["model_type"]
    return config | {"text_config": text, "tie_word_embeddings": False}


@pytest.fixture(params=["flat", "nested"])
def tied(request, tmp_path):
    """A model whose config says that the head is tied, without a head in the file."""
    directory = write_directory(tmp_path / "model")
    shape = make_config(vision={"patch_size": 14}, depth=1, vision_depth=1, tied=True)
    config = fitted(shape, directory)
    save_hub(directory, config, random_params(config)[1])
    if request.param == "nested":
        content = nest(json.loads((directory / "config.json").read_text()))
        (directory / "config.json").write_text(json.dumps(content))
    return directory


def add_head(directory, change):
    tensors = load_file(directory / WEIGHTS)
    tensors[HEAD] = change(tensors[EMBEDDING].clone())
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return tensors


def other(embedding):
    return embedding.flip(0)


def our_logits(model):
    checkpoint = load(model)
    prompts = to_prompts(checkpoint.config, [Case(tokens=TOKENS, grids=(), pixels=())])

    @jax.jit
    def compute(params):
        model = merge(checkpoint.graphdef, params)
        return model.logits(model.prefill(prompts)[0])[0]

    return np.asarray(compute(checkpoint.params))


def their_logits(directory):
    peer, info = Peer.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        return peer.eval()(input_ids=torch.tensor(TOKENS[None]).long()).logits[0].numpy()


def tensors_of(directory):
    return load_file(directory / WEIGHTS)


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_head_that_is_not_the_embedding_is_kept_and_told_of(tied, tmp_path, caplog):
    without = our_logits(tied)
    tensors = add_head(tied, other)
    expected = their_logits(tied)
    assert np.abs(expected - without).max() > 0.1
    caplog.clear()
    np.testing.assert_allclose(our_logits(tied), expected, rtol=0, atol=1e-4)
    (message,) = [record.message for record in caplog.records if "othink" in record.name]
    assert "lm_head.weight is another matrix" in message
    assert not load(tied).config.tie_word_embeddings

    to_orbax(tied, tmp_path / "orbax")
    to_hf(tmp_path / "orbax", tmp_path / "converted")
    to_hf(tied, tmp_path / "exported")
    save_hf(load(tied), tmp_path / "saved")
    caplog.clear()
    for name in ("converted", "exported", "saved"):
        assert_same(tensors_of(tmp_path / name), tensors)
        np.testing.assert_array_equal(their_logits(tmp_path / name), expected)
    np.testing.assert_array_equal(our_logits(tmp_path / "orbax"), our_logits(tmp_path / "saved"))
    assert not [record for record in caplog.records if "othink" in record.name]


def test_the_reference_of_a_run_says_that_its_head_is_not_tied(tied, tmp_path):
    add_head(tied, other)
    begun = load(tied)
    parameters = in_memory(begun.config, begun.params)
    save_model(tmp_path / "reference", parameters, companions=begun.directory)
    assert load(tmp_path / "reference").config == begun.config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_equal_head_comes_back_and_the_model_stays_tied(tied, tmp_path, dtype):
    tensors = add_head(tied, lambda embedding: embedding.to(dtype))
    if dtype == torch.bfloat16:  # the same numbers in another dtype
        tensors[EMBEDDING] = tensors[HEAD].float()
        save_file(tensors, tied / WEIGHTS, metadata={"format": "pt"})
    to_orbax(tied, tmp_path / "orbax")
    to_orbax(tmp_path / "orbax", tmp_path / "again")
    to_hf(tmp_path / "again", tmp_path / "last")
    assert_same(tensors_of(tmp_path / "last"), tensors)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "last" / name).read_bytes() == (tied / name).read_bytes()
    for model in (tied, tmp_path / "orbax"):
        made = load(model)
        assert made.config.tie_word_embeddings
        assert "head" not in made.params["text"]
        assert made.params.keys() == {"text", "visual"}
