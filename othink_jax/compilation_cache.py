"""JAX's persistent compilation cache, on by default: small runs compile longer than they run."""

import os
from pathlib import Path

import jax

SETTING = "OTHINK_JAX_COMPILATION_CACHE"


def default_directory() -> Path:
    """A user-level cache directory (XDG)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "othink_jax" / "compilation"


def enable() -> Path | None:
    """Turn the cache on and return its directory, or None if it is off.

    `OTHINK_JAX_COMPILATION_CACHE` names another directory, or is `off` to disable the cache.
    Otherwise a directory that JAX has already (`JAX_COMPILATION_CACHE_DIR`) is kept.
    """
    setting = os.environ.get(SETTING, "")
    if setting.lower() == "off":
        return None
    given: str | None = jax.config.values["jax_compilation_cache_dir"]
    if given and not setting:
        return Path(given)
    directory = Path(setting) if setting else default_directory()
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # Cache every program: even those that compile fast add up to seconds per start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return directory
