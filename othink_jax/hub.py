"""Time limits of requests to the Hugging Face hub."""

import functools
from typing import Any

from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import _http

# Consecutive failed reads of a stream before giving up. `datasets` waits 5 s between them, and
# sends the request of each up to six times.
_READS = 5


@functools.cache
def limit_waiting() -> None:
    """Give every request to the hub a time limit: huggingface_hub gives most of them none.

    The limit for an answer, or for its next bytes, is 10 seconds, or HF_HUB_DOWNLOAD_TIMEOUT.
    Requests are retried, so a hub that never answers is given up after ten minutes at the latest,
    and usually after one or two. A wait that the hub itself asks for (`Retry-After`) is honoured.
    """
    # No public name gives the current client factory, and a user may have set one.
    make_client = _http._GLOBAL_CLIENT_FACTORY

    def make_impatient_client() -> Any:
        client = make_client()
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks["request"], _limit]}
        return client

    set_client_factory(make_impatient_client)


def limit_reading() -> None:
    """As `limit_waiting`, for streams: their retried reads would add up to half an hour."""
    import datasets

    limit_waiting()
    datasets.config.STREAMING_READ_MAX_RETRIES = _READS


def _limit(request: Any) -> None:
    """Set the time limits that a request lacks."""
    limits = request.extensions.get("timeout", {})
    most = constants.HF_HUB_DOWNLOAD_TIMEOUT
    parts = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {part: limits.get(part) or most for part in parts}
