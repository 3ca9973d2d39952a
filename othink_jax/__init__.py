"""Vision-language reinforcement learning in JAX: Qwen-VL models post-trained with GRPO-D.

Public API: `load`, `save_hf`, `Checkpoint`, and the pure functions of `othink_jax.rl`. The command
line and the other subpackages (`model`, `data`, `rewards`, `training`, ...) are imported by their
own names.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from othink_jax import rl
    from othink_jax.checkpoint.load import Checkpoint, load, save_hf

__all__ = ["Checkpoint", "load", "rl", "save_hf"]


def __getattr__(name: str) -> Any:
    # Imported on first use: JAX and the tokenizer library take seconds to import, which a command
    # that only reads files should not pay.
    import importlib

    if name == "rl":
        return importlib.import_module("othink_jax.rl")
    if name in __all__:
        return getattr(importlib.import_module("othink_jax.checkpoint.load"), name)
    raise AttributeError(f"module 'othink_jax' has no attribute {name!r}")
