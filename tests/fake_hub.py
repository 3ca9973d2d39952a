"""The hub without a network: its cache, and a server that has one data set."""

from pathlib import Path

from experiments.soak.hub_server import SHA
from experiments.soak.hub_server import serving as serving


def in_hub_cache(root: Path, kind: str, identifier: str) -> Path:
    """Where the hub's cache under HF_HOME keeps the files of a model or a data set."""
    cached = root / "hub" / f"{kind}s--{identifier.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(SHA)
    return cached / "snapshots" / SHA
