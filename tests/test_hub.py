"""A hub that does not answer, or not as a hub does."""

import socket
import time

import pytest
from huggingface_hub import constants, get_session
from huggingface_hub.utils import close_session

from experiments.soak.hub import outcomes
from experiments.soak.hub_server import SHA, serving
from othink_jax.checkpoint import hf
from othink_jax.data.tables import open_table
from othink_jax.errors import UserError
from othink_jax.hub import limit_waiting


@pytest.fixture
def impatient(monkeypatch):
    """Online, with a fifth of a second for each answer; and no client that another test made."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    limit_waiting()
    close_session()
    yield
    close_session()


def test_a_request_without_a_time_limit_gets_one(impatient):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.perf_counter()
        with pytest.raises(Exception, match="timed out"):
            get_session().get(address, timeout=None)
        assert time.perf_counter() - start < 5


def test_a_limit_of_a_request_is_kept(impatient):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.perf_counter()
        with pytest.raises(Exception, match="timed out"):
            get_session().get(address, timeout=0.6)
        assert time.perf_counter() - start > 0.5


def test_an_answer_in_time_is_taken(impatient, tmp_path):
    with serving(tmp_path, "someone/set") as address:
        assert get_session().get(f"{address}/api/datasets/someone/set").json()["sha"] == SHA


@pytest.mark.parametrize("error", [AssertionError("a\nb"), ValueError("no JSON"), KeyError()])
def test_whatever_the_hub_comes_up_with_is_one_line(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hf, "snapshot_download", fail)
    monkeypatch.setattr("othink_jax.data.tables.snapshot_download", fail)
    with pytest.raises(UserError, match=r"^there is no directory someone/model, .*$"):
        hf.resolve("someone/model")
    with pytest.raises(UserError, match=r"^the data set someone/set cannot be read: .*$"):
        open_table("someone/set", "train")


def test_a_file_of_a_model_that_came_empty_is_refused(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").touch()
    monkeypatch.setattr(hf, "snapshot_download", lambda *_, **__: tmp_path)
    with pytest.raises(UserError, match=r"chat_template\.jinja of someone/model without a content"):
        hf.resolve("someone/model")


@pytest.mark.slow
def test_a_failing_hub_ends_in_a_result_or_a_line():
    """The campaign of experiments/soak/hub.py, in small."""
    assert [outcome for outcome, _ in outcomes(seed=7, count=6) if not outcome.good] == []
