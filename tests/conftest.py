"""Settings of the test session: simulated devices, no network, no user caches."""

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Compiling is most of what the tests cost. Unoptimised and without MLIR emitters an update compiles
# in a small part of the time, here and in the processes that tests start. The numbers differ by
# rounding, and programs hold the same buffers.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Many tests train the same small model: what one of them compiled, the others take from here.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache/jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# From here on, arrays in calls of these rooms have the shapes and dtypes that their signatures say.
_CHECKED = ("attention", "log_probs", "qwen2_vl", "rope", "text", "vision")
install_import_hook(
    ["othink_jax.rl", *(f"othink_jax.model.{name}" for name in _CHECKED)], "beartype.beartype"
)


# Tracing makes many small objects that live on; looking through them for cycles every 700 new ones,
# as Python does, is a tenth of all the time.
gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_of_a_module_go_with_it():
    """They take memory, gigabytes over a whole session, and other modules have other shapes."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Float64, for what is exact but for rounding."""
    with jax.enable_x64(True):
        yield
