"""The demo from end to end, in small."""

import json
import sys
from pathlib import Path

from PIL import Image

from experiments import demo
from othink_jax.checkpoint import hf
from tests.shallow import shallow


def test_demo_evaluates_trains_evaluates_again_and_shows_what_came_of_it(
    tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    words = ("--steps", "1", "--count", "8", "--out", str(run))
    monkeypatch.setattr(sys, "argv", ["demo", *words])
    monkeypatch.setenv("OTHINK_JAX_COMPILATION_CACHE", "off")
    monkeypatch.setitem(hf.EMBEDDED, "tiny", Path(shallow()))  # the same commands, of fewer layers
    demo.main()
    said = capsys.readouterr().out
    for stage in ("before", "after"):
        for task in ("counting", "geometry"):
            result = json.loads((run / "evaluations" / f"{stage}-{task}/result.json").read_text())
            assert (result["n"], result["split"]) == (8, "test")
            assert f"{result['accuracy']:.1%} ({result['interval'][0]:.1%} to" in said
    assert "cross task" in said
    assert "went from" in (run / "report.html").read_text()
    assert Image.open(run / "figure.png").width == 1500
