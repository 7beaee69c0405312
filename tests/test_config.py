"""What a configuration may say, and how each mistake in one is refused."""

from pathlib import Path

import pytest
import yaml
from commands import ROOT, command, refused

from en.assembly import build_network
from en.configuring import dump, load_config
from en.errors import UserError
from en.norm import NORMALIZERS
from en.report import published_figures

CONFIGS = sorted(ROOT.glob("configs/*/*.yaml"))
GOOD = """
model: {name: resnet18}
norm: {name: en}
data: {root: images}
train: {epochs: 3, batch_size: 32}
optim: {lr: 1e-1}
"""


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return str(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_builds_and_is_headed_by_its_command_and_published_figures(path):
    config = load_config(str(path), [])
    build_network(config, 10)
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"train.py {path.relative_to(ROOT)}" in header
    for row in published_figures() if path.parent.name == "imagenet" else []:
        if (row["model"], row["norm"]) == (config.model.name, config.norm.name):
            line = next(line for line in header.splitlines() if row["source"] in line and f"top-1 {row['top1']} %" in line)
            assert ("nverified" in line) == (row["status"] == "unverified")


def test_imagenet_has_a_recipe_for_every_network_and_normalizer():
    names = {path.stem for path in CONFIGS if path.parent.name == "imagenet"}
    assert names == {f"{m}_{n}" for m in ("resnet50", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0") for n in NORMALIZERS}


def test_the_normalizers_of_a_network_share_one_recipe():
    for network in ("resnet50", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"):
        configs = [load_config(str(ROOT / f"configs/imagenet/{network}_{n}.yaml"), []) for n in NORMALIZERS]
        assert len({config.model_copy(update={"norm": None}).model_dump_json() for config in configs}) == 1


def test_overrides_and_the_base_are_laid_over_each_other(tmp_path, good):
    child = tmp_path / "child.yaml"
    child.write_text("base: good.yaml\nnorm: {name: gn, groups: 4}\ntrain: {epochs: 7}\n")
    config = load_config(str(child), ["optim.lr=2e-3", "train.progressive={start_resolution: 64, until_epoch: 2}", "seed=5"])
    assert (config.norm.name, config.norm.options) == ("gn", {"groups": 4})
    assert (config.train.epochs, config.train.batch_size, config.optim.lr, config.seed) == (7, 32, 0.002, 5)
    assert config.train.progressive is not None and config.train.progressive.start_resolution == 64


def test_numbers_are_read_as_people_write_them(good):
    for text, value in [("1e-4", 1e-4), ("1E3", 1000.0), ("3", 3), (".5", 0.5), ("1.", 1.0), ("2.5e+1", 25.0)]:
        assert load_config(good, [f"optim.lr={text}"]).optim.lr == value
    assert load_config(good, ["data.root=on"]).data.root == "on"


def test_a_printed_config_reads_back_to_itself(tmp_path, good):
    config = load_config(good, ["norm.hidden=7", "norm.normalizers=[ln,bn]", "optim.weight_decay=5e-7", "train.mixup=0.2"])
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load_config(str(again), []) == config


MISTAKES = {
    "optim.lrr=1": ["optim.lrr", "did you mean 'optim.lr'"],
    "epochs=3": ["epochs", "did you mean 'train.epochs'"],
    "norm.reducton=3": ["reducton", "did you mean 'reduction'"],
    "norm.name=enn": ["enn", "did you mean 'en'"],
    "norm.name=gn norm.hidden=3": ["hidden", "gn", "groups"],
    "norm.hidden=no": ["hidden='no'", "whole number"],
    "norm.normalizers=[bn,xx]": ["xx", "bn, in, ln, gn"],
    "norm=en": ["norm='en'", "section"],
    "train.epochs=ten": ["train.epochs='ten'", "integer"],
    "train.epochs=0": ["train.epochs=0", "1"],
    "train.epochs=1.5": ["train.epochs=1.5", "integer"],
    "train.epochs=true": ["train.epochs=True", "integer"],
    "train.batch_size=": ["train.batch_size=None", "integer"],
    "train.accumulation=5": ["train.batch_size=32", "accumulation=5"],
    "train.precision=fp16": ["train.precision='fp16'", "'float16'"],
    "train.compile=yes": ["train.compile='yes'", "boolean"],
    "train.label_smoothing=1.0": ["train.label_smoothing=1.0", "less than 1"],
    "train.mixup=.nan": ["train.mixup=nan", "finite"],
    "train.ema_decay=1": ["train.ema_decay=1", "less than 1"],
    "train.progressive={start_resolution: 300, until_epoch: 2}": ["train.progressive.start_resolution=300", "224"],
    "data.loader=dali": ["data.loader='dali'", "'ffcv' or 'folder'"],
    "data.mean=[1,2]": ["data.mean=[1, 2]", "3 items"],
    "data.std=[1,2,0]": ["data.std.2=0", "greater than 0"],
    "data.crop_scale=[0.5,0.1]": ["data.crop_scale=[0.5, 0.1]", "smaller"],
    "data.crop_scale=[0.5,1.1]": ["data.crop_scale=[0.5, 1.1]", "at most 1"],
    "data.resolution=0": ["data.resolution=0", "1"],
    "data.workers=-1": ["data.workers=-1", "0"],
    "optim.lr=1e-3x": ["optim.lr='1e-3x'", "number"],
    "optim.lr=-1": ["optim.lr=-1", "0"],
    "optim.momentum=0.0": ["nesterov=true", "momentum above 0"],
    "schedule.name=exp": ["schedule.name='exp'", "'cosine'"],
    "schedule.warmup_epochs=4": ["schedule.warmup_epochs=4.0", "train.epochs=3"],
    "schedule.steps=[3,2]": ["schedule.steps", "ascending"],
    "schedule.final_lr=1": ["schedule.final_lr=1.0", "optim.lr=0.1"],
    "seed=-1": ["seed=-1", "0"],
    "seed": ["'seed'", "key=value"],
    "a-b=3": ["a-b=3", "key=value"],
    "train.batch_size=[": ["train.batch_size=[", "YAML"],
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_refused_in_one_line_that_names_key_value_and_what_was_expected(overrides, good):
    words = overrides.split() if overrides.startswith("norm.name=gn") else [overrides]
    with pytest.raises(UserError) as refusal:
        load_config(good, words)
    assert "\n" not in str(refusal.value)
    for word in [*MISTAKES[overrides], "expected" if "unknown key" not in str(refusal.value) else "unknown key"]:
        assert word in str(refusal.value)


FILES = {
    "": "expected `key: value`",
    "- a\n- b\n": "found list",
    "model: [": "expected YAML",
    "seed: 1\nseed: 2\n": "a second time (line 2",
    "base: missing.yaml\n": "missing.yaml: No such file",
    "base: [a]\n": "base=['a']",
    GOOD.replace("data: {root: images}", "data: {}"): "data.root: missing",
    GOOD.replace("norm: {name: en}", ""): "norm: missing",
    "base: second.yaml\n": "expected no base",
}


@pytest.mark.parametrize("content", FILES, ids=FILES.values())
def test_a_file_that_is_no_config_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "bad.yaml").write_text(content)
    (tmp_path / "second.yaml").write_text("base: third.yaml\n")
    with pytest.raises(UserError) as refusal:
        load_config(str(tmp_path / "bad.yaml"), [])
    assert FILES[content] in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_command_ends_with_code_2_and_one_line(good, tmp_path):
    assert "optim.lrr" in refused(command("train.py", good, "optim.lrr=1"))
    assert "missing.yaml" in refused(command("train.py", tmp_path / "missing.yaml"))
    assert "images" in refused(command("train.py", good))
    assert "network" in refused(command("eval.py", tmp_path)).replace("last.pt", "network")


def test_print_config_shows_the_resolved_configuration(good):
    done = command("train.py", good, "--print-config", "norm.hidden=9")
    assert done.returncode == 0 and yaml.safe_load(done.stdout)["norm"] == {"name": "en", "hidden": 9}
