"""The hub does not answer for ever: how long it is waited for."""

import functools
from typing import Any

from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import _http

# Reads of a stream that fail in a row before it is given up; `datasets` waits 5 s between them, and
# asks each time six times.
_READS = 5


@functools.cache
def limit_waiting() -> None:
    """Give every request to the hub a time limit: huggingface_hub gives most of them none.

    An answer, or its next bytes, are waited for 10 seconds, or what HF_HUB_DOWNLOAD_TIMEOUT says.
    Requests are repeated, so a hub that never answers is given up after ten minutes at the latest,
    and most of the time after one or two. A wait that the hub itself asks for (`Retry-After`) is
    kept.
    """
    # No public name says who makes the clients, and a user may have said so.
    make_client = _http._GLOBAL_CLIENT_FACTORY

    def make_impatient_client() -> Any:
        client = make_client()
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks["request"], _limit]}
        return client

    set_client_factory(make_impatient_client)


def limit_reading() -> None:
    """The same for a stream, of which each read is repeated: half an hour would be too long."""
    import datasets

    limit_waiting()
    datasets.config.STREAMING_READ_MAX_RETRIES = _READS


def _limit(request: Any) -> None:
    """Put a limit where the request has none."""
    limits = request.extensions.get("timeout", {})
    most = constants.HF_HUB_DOWNLOAD_TIMEOUT
    parts = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {part: limits.get(part) or most for part in parts}
