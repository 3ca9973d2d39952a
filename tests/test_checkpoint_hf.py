"""Hugging Face directories: every layout is read, nothing wrong is, and transformers reads ours."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file

from othink_jax.checkpoint import hf
from othink_jax.checkpoint.convert import to_orbax
from othink_jax.checkpoint.load import load, save_hf
from othink_jax.config import ComputeConfig
from othink_jax.errors import UserError
from othink_jax.families import from_hf, to_hf
from othink_jax.model.config import WindowsConfig
from tests.model_cases import load_hub, make_config, random_params, save_hub
from tests.peers import KINDS
from tests.tiny_processor import fitted, write_directory

CONFIG = make_config(heads=2, kv_heads=1, section=(1, 2, 1), tied=False)
_, PARAMS = random_params(CONFIG)
WEIGHTS = "model.safetensors"


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def read(directory, config=CONFIG):
    assert hf.load_config(directory) == config
    return load_hub(directory, config)


@pytest.fixture
def directory(tmp_path):
    save_hub(tmp_path / "model", CONFIG, PARAMS)
    return tmp_path / "model"


@pytest.fixture
def edit(directory):
    """Change the tensors of the directory in place."""

    def edit(change):
        tensors = load_file(directory / WEIGHTS)
        save_file(change(tensors) or tensors, directory / WEIGHTS)
        return directory

    return edit


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Layouts


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, tied, family):
    config = make_config(tied=tied, depth=3, family=family)
    _, params = random_params(config)
    save_hub(tmp_path, config, params)
    equal(read(tmp_path, config), params)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", WEIGHTS]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_transformers_loads_what_is_saved(tmp_path, tied, family):
    """Its logits for what we save are compared, by way of what it saves, in test_model_parity."""
    config = make_config(tied=tied, family=family)
    _, params = random_params(config)
    save_hub(tmp_path / "ours", config, params)
    peer, info = KINDS[family][0].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert peer.lm_head.weight.dtype == torch.float32
    peer.save_pretrained(tmp_path / "theirs")  # the nested config
    assert "text_config" in json.loads((tmp_path / "theirs" / "config.json").read_text())
    equal(read(tmp_path / "theirs", config), params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_values_that_are_not_finite_are_warned_of(edit, caplog, dtype, value):
    def spoil(tensors):
        tensors["model.norm.weight"][0] = float(value)
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)
        largest = torch.finfo(dtype).max
        tensors["visual.merger.ln_q.bias"][:2] = torch.tensor([largest, -largest])

    read(edit(spoil))
    (message,) = caplog.messages
    assert "model.norm.weight holds values that are not finite" in message


def test_names_as_in_memory_are_read(edit):
    def rename(name):
        if name.startswith("visual."):
            return f"model.{name}"
        return name.replace("model.", "model.language_model.", 1)

    directory = edit(lambda tensors: {rename(name): value for name, value in tensors.items()})
    assert "model.language_model.layers.0.mlp.up_proj.weight" in load_numpy(directory / WEIGHTS)
    equal(read(directory), PARAMS)


def test_the_hubs_config_of_2024_is_read(directory):
    """The entries of Qwen2-VL-2B-Instruct's config.json as it was published, and its sizes."""
    published = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": 1536,
        "initializer_range": 0.02,
        "intermediate_size": 8960,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": "qwen2_vl",
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "in_chans": 3,
            "hidden_size": 1536,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 151936,
    }
    (directory / "config.json").write_text(json.dumps(published))
    config = hf.load_config(directory)
    assert config.text.head_dim == 128
    assert config.text.rope_theta == 1e6
    assert config.text.mrope_section == (16, 24, 24)
    assert config.vision.patch_dim == 1176
    assert config.tie_word_embeddings


def test_the_hubs_config_of_qwen2_5_is_read_and_written(directory):
    published = {
        "model_type": "qwen2_5_vl",
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 2048,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 151936,
    }
    (directory / "config.json").write_text(json.dumps(published))
    config = hf.load_config(directory)
    assert (config.vision.embed_dim, config.vision.hidden_size) == (1280, 2048)
    assert config.vision.windows.full_layers == (7, 15, 23, 31)
    # Ours holds what theirs says, whatever more there is in it.
    written = to_hf(config)
    theirs = published | published["vision_config"]
    ours = written | written["vision_config"]
    for name in ("sliding_window", "vision_config", "spatial_patch_size"):
        del theirs[name]
    assert {name: ours.get(name) for name in theirs} == theirs


def test_the_hubs_config_of_qwen3_is_read_and_written(directory):
    published = {
        "model_type": "qwen3_vl",
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": True,
        "text_config": {
            "attention_bias": False,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
                "rope_type": "default",
            },
            "rope_theta": 5000000,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
        "vision_config": {
            "deepstack_visual_indexes": [5, 11, 17],
            "depth": 24,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 1024,
            "in_channels": 3,
            "intermediate_size": 4096,
            "model_type": "qwen3_vl",
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": 2560,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }
    (directory / "config.json").write_text(json.dumps(published))
    config = hf.load_config(directory)
    assert (config.vision.position_grid, config.vision.deepstack) == (48, (5, 11, 17))
    assert config.text.head_dim * config.text.num_attention_heads == 4096
    written = to_hf(config)
    assert written.pop("architectures") == ["Qwen3VLForConditionalGeneration"]
    assert written == published


def test_a_tied_flag_that_stands_with_the_text_counts(tmp_path):
    config = make_config()
    save_hub(tmp_path, config, random_params(config)[1])

    def nest(content):
        text = dict(content, tie_word_embeddings=True)
        del text["vision_config"], text["model_type"]
        content.update(text_config=text, tie_word_embeddings=False)

    rewrite(tmp_path / "config.json", nest)
    assert hf.load_config(tmp_path).tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tensors_are_read(edit, dtype):
    directory = edit(lambda tensors: {name: value.to(dtype) for name, value in tensors.items()})
    like = jnp.bfloat16 if dtype == torch.bfloat16 else jnp.float16
    equal(read(directory), jax.tree.map(lambda leaf: leaf.astype(like).astype(jnp.float32), PARAMS))
    halves = load_hub(directory, CONFIG, jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(halves)} == {"bfloat16"}


def test_bfloat16_parameters_stay_what_they_are(tmp_path):
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    save_hub(tmp_path, CONFIG, halves)
    assert {value.dtype for value in load_file(tmp_path / WEIGHTS).values()} == {torch.bfloat16}
    equal(load_hub(tmp_path, CONFIG, jnp.bfloat16), halves)


def test_a_second_copy_of_a_tied_head_is_left_out(tmp_path):
    config = make_config(tied=True)
    _, params = random_params(config)
    save_hub(tmp_path, config, params)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / WEIGHTS)
    equal(read(tmp_path, config), params)


# Shards


@pytest.fixture
def sharded(directory):
    tensors = load_file(directory / WEIGHTS)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, directory / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / WEIGHTS).unlink()
    return directory


def test_shards_are_read_by_their_index(sharded):
    equal(read(sharded), PARAMS)


def test_an_absent_shard_is_named(sharded):
    (sharded / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"files that are absent: b\.safetensors"):
        read(sharded)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(sharded, content):
    (sharded / f"{WEIGHTS}.index.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        read(sharded)


# What does not fit


def test_all_tensors_that_do_not_fit_are_listed_at_once(edit):
    def spoil(tensors):
        del tensors["model.norm.weight"], tensors["visual.blocks.1.mlp.fc1.bias"]
        tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(3, 2)
        # A layer more than the config has: to be said, not ignored.
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(2, 2)
        tensors["model.norm.weight.old"] = torch.zeros(1)

    with pytest.raises(UserError) as caught:
        read(edit(spoil))
    message = str(caught.value)
    for fault in (
        "missing model.norm.weight;",
        "missing visual.blocks.1.mlp.fc1.bias",
        "model.layers.0.self_attn.k_proj.weight is (3, 2), not (8, 16)",
        "unknown model.layers.2.mlp.up_proj.weight",
        "unknown model.norm.weight.old",
    ):
        assert fault in f"{message};"
    assert message.count("k_proj.weight") == 1
    assert "\n" not in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn])
def test_tensors_that_are_no_weights_of_ours_are_refused(edit, dtype):
    def spoil(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)

    with pytest.raises(UserError, match=r"norm\.weight is of type \w+, not of F32, F16, BF16$"):
        read(edit(spoil))


def test_an_untied_model_without_head_is_refused(edit):
    def spoil(tensors):
        del tensors["lm_head.weight"]

    with pytest.raises(UserError, match=r"missing lm_head\.weight$"):
        read(edit(spoil))


@pytest.mark.parametrize("kept", [0, 4, 200, -100])
def test_a_truncated_file_is_named(directory, kept):
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        read(directory)


def test_pickled_weights_are_refused(directory):
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickles"):
        read(directory)
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        read(directory)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_broken_config_is_named(directory, content):
    (directory / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        hf.load_config(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="llava"), "model_type 'llava'; those that work are"),
        (lambda c: c.pop("model_type"), "model_type None"),
        (lambda c: c.pop("hidden_size"), "lacks an entry of qwen2_vl: 'hidden_size'"),
        (lambda c: c.pop("vision_config"), "lacks an entry"),
        (lambda c: c.pop("rope_scaling"), "lacks an entry of qwen2_vl: 'mrope_section'"),
        (lambda c: c.pop("image_token_id"), "lacks an entry of qwen2_vl: 'image_token_id'"),
        (lambda c: c.update(use_sliding_window=True), "sliding-window"),
        (lambda c: c.update(hidden_size="wide"), "whole number: hidden_size is 'wide'"),
        (lambda c: c.update(vocab_size=None), "whole number: vocab_size is None"),
        (lambda c: c["vision_config"].update(depth=0), "whole number: depth is 0"),
        (lambda c: c.update(hidden_act="gelu"), "hidden_act 'gelu' is not 'silu'"),
        (lambda c: c["vision_config"].update(hidden_act="gelu"), "is not 'quick_gelu'"),
        (lambda c: c["rope_scaling"].update(type="yarn"), "positions of type 'yarn'"),
        (lambda c: c["rope_scaling"].update(rope_type="linear"), "positions of type 'linear'"),
        (lambda c: c["rope_scaling"].update(mrope_section=[1, 1, 1]), "does not add up to half"),
        (lambda c: c.update(num_attention_heads=3), "not a multiple of num_attention_heads"),
        (lambda c: c.update(num_key_value_heads=3), "not a multiple of num_key_value_heads"),
        (lambda c: c["vision_config"].update(num_heads=3), "not a multiple of 4"),
        (lambda c: c["vision_config"].update(hidden_size=8), "is not the text's 16"),
        (lambda c: c.update(vision_config=[1]), "vision_config is no JSON object"),
        (lambda c: c["vision_config"].update(depth=True), "whole number: depth is True"),
        (
            lambda c: c.update(tie_word_embeddings="false"),
            "is 'false', neither true nor",
        ),
        (lambda c: c.update(rope_theta="1e4"), "rope_theta is '1e4', not a number"),
        (lambda c: c.update(rope_theta=-1.0), "rope_theta is -1.0, not a positive number"),
        (lambda c: c.update(rms_norm_eps=None), "rms_norm_eps is None, not a positive number"),
        (lambda c: c["rope_scaling"].update(mrope_section="121"), "mrope_section is no whole"),
        (lambda c: c["rope_scaling"].update(mrope_section=[2, 2]), "has not three numbers"),
        (lambda c: c.update(image_token_id="<image>"), "a token's id is no whole number"),
        (
            lambda c: c.update(text_config=dict(c, num_key_value_heads=2)),
            "config.json says several things of num_key_value_heads: 1, 2",
        ),
        (
            lambda c: c.update(rope_parameters={"rope_theta": 5, "mrope_section": [1, 2, 1]}),
            "config.json says several things of rope_theta",
        ),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(directory, change, message):
    rewrite(directory / "config.json", change)
    with pytest.raises(UserError, match=message):
        hf.load_config(directory)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text", {"attention_bias": True}, "attention_bias is true"),
        ("text", {"head_dim": 7}, "does not add up to half"),
        ("text", {"head_dim": None}, "whole number: head_dim is None"),
        ("text", {"num_hidden_layers": 1}, "more than there are text layers"),
        ("vision", {"hidden_act": "quick_gelu"}, "is not 'gelu_pytorch_tanh'"),
        ("vision", {"num_position_embeddings": 10}, "10 is not a square"),
        ("vision", {"num_position_embeddings": 9.0}, "9.0 is not a square"),
        ("vision", {"deepstack_visual_indexes": [1, 0]}, "in rising order"),
        ("vision", {"deepstack_visual_indexes": [0, 2]}, "not numbers of layers"),
        ("vision", {"deepstack_visual_indexes": [0, "1"]}, "deepstack_visual_indexes is no whole"),
    ],
)
def test_a_config_of_qwen3_that_cannot_be_followed_is_refused(tmp_path, part, change, message):
    config = make_config(family="qwen3_vl", vision={"deepstack": (0, 1)})
    written = to_hf(config)
    written[f"{part}_config"].update(change)
    with pytest.raises(UserError, match=message):
        from_hf(written)


def test_axes_that_do_not_take_turns_are_refused():
    written = to_hf(make_config(family="qwen3_vl"))
    written["text_config"]["rope_scaling"]["mrope_interleaved"] = False
    with pytest.raises(UserError, match="mrope_interleaved is false"):
        from_hf(written)


@pytest.mark.parametrize(
    ("family", "part", "change"),
    [
        ("qwen2_vl", "text", {"qk_norm": True}),
        ("qwen2_vl", "vision", {"deepstack": (0,)}),
        ("qwen2_vl", "vision", {"norm": "rms"}),
        ("qwen2_vl", "text", {"head_dim": 32, "mrope_section": (4, 6, 6)}),
        ("qwen2_vl", "vision", {"intermediate_size": 65}),
        ("qwen2_5_vl", "vision", {"windows": None}),
        ("qwen3_vl", "text", {"qkv_bias": True}),
        ("qwen3_vl", "vision", {"position_grid": None}),
    ],
)
def test_a_shape_that_its_family_has_not_is_not_written(family, part, change):
    windows = {"windows": WindowsConfig(window_size=8, full_layers=())}
    config = make_config(family=family, vision=windows if family == "qwen2_5_vl" else {})
    to_hf(config)
    changed = dataclasses.replace(getattr(config, part), **change)
    with pytest.raises(UserError):
        to_hf(dataclasses.replace(config, **{part: changed}))


# Whole models, wherever they lie


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model directory with tokenizer, and its config."""
    directory = write_directory(tmp_path_factory.mktemp("whole"))
    config = fitted(make_config(vision={"patch_size": 14}), directory)
    save_hub(directory, config, random_params(config)[1])
    return directory


def test_a_directory_is_loaded_as_one_object(whole):
    made = load(whole)
    assert made.config == hf.load_config(whole)
    assert made.processor.image_token_id == made.config.image_token_id
    assert made.directory == whole
    equal(made.params, load_hub(whole, made.config))


@pytest.mark.parametrize("kind", ["hub layout", "orbax"])
@pytest.mark.parametrize("scan", ["off", "on"], ids=["unrolled", "scanned"])
def test_any_model_is_loaded_and_exported_with_either_layout_of_layers(tmp_path, whole, kind, scan):
    source = whole
    if kind == "orbax":
        source = tmp_path / "converted"
        to_orbax(whole, source)
    made = load(source, compute=ComputeConfig(scan_layers=scan))
    _, like = random_params(made.config, scan_layers=scan)
    assert jax.tree.structure(made.params) == jax.tree.structure(like)
    target = save_hf(made, tmp_path / "exported")
    for file in whole.iterdir():
        if file.name not in (WEIGHTS, "config.json"):
            assert (target / file.name).read_bytes() == file.read_bytes()
    ours, theirs = (load_file(place / WEIGHTS) for place in (target, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("scan", ["off", "on"], ids=["unrolled", "scanned"])
def test_an_abstract_model_has_the_shapes_and_reads_no_weights(tmp_path, whole, scan):
    for file in whole.iterdir():
        if file.name != WEIGHTS:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    made = load(
        tmp_path,
        abstract=True,
        compute=ComputeConfig(scan_layers=scan, dtype="bfloat16", param_dtype="float32"),
    )
    like = load(whole, compute=ComputeConfig(scan_layers=scan))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made.params)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), like.params)
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(made.params))


def test_a_directory_that_is_in_use_is_not_written_over(tmp_path, whole):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        save_hf(load(whole), tmp_path)


def test_a_tokenizer_that_is_another_models_is_refused(tmp_path, whole):
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rewrite(tmp_path / "config.json", lambda c: c.update(image_token_id=0))
    message = r"<\|image_pad\|> is \d+, but image_token_id of config.json is 0$"
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_an_id_that_is_neither_here_nor_to_be_had_is_one_clear_line():
    for name in ("nobody/no-such-model", "./no/such/directory"):
        with pytest.raises(UserError, match=f"there is no directory {name}") as caught:
            load(name)
        assert "\n" not in str(caught.value)


def test_an_id_in_the_hubs_cache_is_loaded_offline(tmp_path, monkeypatch, whole):
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "models--someone--tiny-model"
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in whole.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert hf.resolve("someone/tiny-model") == snapshot
    equal(load("someone/tiny-model").params, load(whole).params)
