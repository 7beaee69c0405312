"""The job of a minute on a set in ImageNet's form, on one and on two processes, and the hours of the others."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, succeed
from PIL import Image

from en.config.reading import load_config
from en.runs import checkpoint
from scripts.document import measured_steps, row_of

SMOKE = ROOT / "configs/imagenet/smoke.yaml"
CLASSES = ["n01440764", "n01443537", "n01484850", "n01491361"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """64 + 4 JPEG files of several sizes in folders by WordNet ids, prepared."""
    root, random = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for number, wordnet_id in enumerate(CLASSES):
        for split, count in (("train", 16), ("val", 1)):
            folder = root / "source" / split / wordnet_id
            folder.mkdir(parents=True)
            for image in range(count):
                height, width = random.integers(60, 120, 2)
                pixels = random.integers(0, 60 * (number + 1), (height, width, 3), dtype=np.uint8)
                name = f"{wordnet_id}_{image}.JPEG" if split == "train" else f"ILSVRC2012_val_{number + 1:08}.JPEG"
                Image.fromarray(pixels).save(folder / name, "JPEG")
    succeed("scripts/prepare_data.py", root / "source", root / "set", "--workers", 1)
    return root / "set"


@pytest.mark.parametrize("ranks", [0, 2])
def test_the_job_of_a_minute_goes_through_every_part(ranks, prepared, tmp_path):
    run = tmp_path / "run"
    options = [f"data.root={prepared}", "data.workers=1", "checkpoint.every_steps=1"]
    succeed("train.py", SMOKE, *options, f"run_dir={run}", ranks=ranks)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and all(row["images"] == len(CLASSES) for row in rows)
    assert json.loads((run / "summary.json").read_text())["epochs_done"] == 2
    last = checkpoint.load(run / "last.pt")
    task, train = last.config["task"], last.config["train"]
    assert last.ema is not None and (task["rand_augment"], task["erasing"], train["accumulation"]) == (2, 0.1, 2)
    assert len(checkpoint.step_paths(run)) > 1


def test_hours_are_the_measured_step_times_the_steps():
    """By hand: 100 epochs of 5,004 steps of 62.6 ms of work, 64.2 eager, on one GPU; an eighth of it on eight."""
    row = row_of("bn", load_config(str(ROOT / "configs/imagenet/resnet50_bn.yaml"), []), measured_steps())
    assert measured_steps()["en"] == (57.2, 90.6)
    assert row[3:] == ["1.00", "8.7", "8.9", "1.1", "8.9", "29", "4,089", "32,716", "27"]


@pytest.mark.parametrize("norm", ["bn", "gn", "sn", "en"])
def test_a_modern_recipe_is_headed_by_its_hours(norm):
    path = ROOT / f"configs/imagenet/resnet50_{norm}_modern.yaml"
    low, high = row_of(norm, load_config(str(path), []), measured_steps())[4:6]
    assert f"# GPU hours: {low} to {high} of one H100, computed" in path.read_text()
