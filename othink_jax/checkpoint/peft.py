"""Adapter directories in the layout of PEFT (https://github.com/huggingface/peft)."""

import json
from pathlib import Path

from othink_jax.checkpoint import safetensors_file
from othink_jax.checkpoint.tensors import Tensors
from othink_jax.config import LoRAConfig
from othink_jax.files import write_atomically

# Linear layers of the text tower only: in Qwen2.5-VL, some of the vision tower have equal names.
_TARGETS = r".*\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


def save(directory: Path, adapters: Tensors, lora: LoRAConfig, *, base: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json.

    Args:
      directory: an existing directory.
      adapters: of all linear layers of the text tower's blocks; their dtypes are kept.
      lora: their rank and scale.
      base: the base model, by the name under which PEFT finds it.
    """
    safetensors_file.write(directory / "adapter_model.safetensors", list(adapters.dtypes), adapters)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.lora_rank,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _TARGETS,
        "inference_mode": True,
    }
    write_atomically(directory / "adapter_config.json", json.dumps(config, indent=2) + "\n")
