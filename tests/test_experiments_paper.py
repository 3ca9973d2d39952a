"""The experiments at the paper's scale, from end to end, with a tiny random model in its place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_hub import in_hub_cache
from tests.parity_cases import write_random_model
from tests.test_sources import png, write_jsonl, write_parquet


def rows(count: int) -> list[dict]:
    """As in R1-V's training sets."""
    return [
        {
            "image": {"bytes": png(number), "path": None},
            "problem": "How many red circles are there?",
            "solution": f"<answer> {number % 10} </answer>",
        }
        for number in range(count)
    ]


def questions(root: Path) -> list[str]:
    """As R1-V's evaluation reads them, and the options that name them."""
    options = ["--images", str(root)]
    for task, name in (("counting", "superclevr_test200"), ("geometry", "geoqa_test_prompts")):
        asked = []
        for number in range(3):
            image = Path("images") / task / f"{number}.png"
            (root / image).parent.mkdir(parents=True, exist_ok=True)
            (root / image).write_bytes(png(number))
            question = "Which is larger?"
            asked.append({"image_path": f"./{image}", "question": question, "ground_truth": "4"})
        options += [f"--{task}-test", write_jsonl(root / f"{name}.jsonl", asked)]
    return options


NOTHING = "0.0 (0.0 to 0.0)"


@pytest.mark.slow
def test_table_1_is_made_from_the_hubs_cache(tmp_path):
    """13 models: the base, three methods on two tasks from two seeds. Then all of it is free."""
    home = tmp_path / "huggingface"
    write_random_model(in_hub_cache(home, "model", "Qwen/Qwen2-VL-2B-Instruct"))
    for identifier, count in (("clevr_cogen_a_train", 120), ("GEOQA_R1V_Train_8K", 16)):
        place = in_hub_cache(home, "dataset", f"leonardPKU/{identifier}")
        write_parquet(place / "data" / "train-00000-of-00001.parquet", rows(count))
    options = ["--scale", "paper", "--seeds", "2", "--steps", "1", "--runs", str(tmp_path / "runs")]
    options += ["--out", str(tmp_path / "results"), *questions(tmp_path)]

    def run(experiment: str) -> dict:
        command = [sys.executable, "-m", f"experiments.{experiment}", *options]
        settings = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **settings}, check=False
        )
        logs = (tmp_path / "runs" / "paper" / "logs").glob("*.log")
        assert done.returncode == 0, done.stderr + "".join(log.read_text()[-2000:] for log in logs)
        return json.loads((tmp_path / "results" / experiment / "results.json").read_text())

    table = run("table1_same_task")["tables"][0]
    assert [row[0] for row in table["rows"]] == ["base", "SFT", "GRPO", "GRPO-D"]
    counting, geometry = ([NOTHING, NOTHING, paper, "0.0 0.0"] for paper in ("76.50", "34.35"))
    assert table["rows"][3] == ["GRPO-D", *counting, *geometry]
    cells = sorted(path.name for path in (tmp_path / "runs" / "paper").iterdir())
    assert len(cells) == 1 + 2 * 3 * 2 + 2  # and the logs and locks
    for experiment in ("figure5_training_curves", "figure7_cross_task", "figure8_case_study"):
        run(experiment)
        assert (tmp_path / "results" / experiment / "figure.svg").is_file()
    assert sorted(path.name for path in (tmp_path / "runs" / "paper").iterdir()) == cells
