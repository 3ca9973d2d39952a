"""Tensors that are no model parameters: adapters, and the stored copy of a tied head."""

import re

from othink_jax.families import Entry, entries
from othink_jax.model.config import VLMConfig

TIED_HEAD = ("tied_head",)  # path of a stored copy of the embedding


def tied_head(config: VLMConfig) -> Entry:
    """A copy of the embedding that some files hold under the name of the head.

    It is no parameter of the model; it is kept with the tensors so that nothing is lost.
    """
    shape = (config.text.vocab_size, config.text.hidden_size)
    return Entry("lm_head.weight", TIED_HEAD, False, shape)


def adapter_entries(config: VLMConfig, rank: int) -> list[Entry]:
    """All tensors of a LoRA adapter, in PEFT's layout: two for each matrix of a text block.

    PEFT uses the module names that transformers has in memory.
    """
    made = []
    for entry in entries(config):
        if entry.path[:2] != ("text", "layers") or entry.path[-1] != "kernel":
            continue
        outputs, inputs = entry.hub_shape
        layer = plain_name(entry.name).removeprefix("model.").removesuffix(".weight")
        module, path = f"base_model.model.model.language_model.{layer}", entry.path[:-1]
        made += [
            Entry(f"{module}.lora_A.weight", (*path, "lora_a"), True, (rank, inputs)),
            Entry(f"{module}.lora_B.weight", (*path, "lora_b"), True, (outputs, rank)),
        ]
    return made


def plain_name(name: str) -> str:
    """A tensor's name without the prefix that only some versions of transformers add.

    Qwen2-VL's files on the hub lack the prefix; those of Qwen3-VL and of transformers 5 have it.
    """
    name = re.sub(r"^model\.visual\.", "visual.", name)
    return re.sub(r"^model\.language_model\.", "model.", name)
