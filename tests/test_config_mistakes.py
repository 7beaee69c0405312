"""Mistakes in a configuration, its file or the environment: refused in one line."""

import json
import os
from pathlib import Path

import pytest
import torch
from commands import command, refused
from conftest import GOOD

from en.build import build_network
from en.config.reading import dump, known_keys, load_config
from en.distributed.environment import SIZES
from en.distributed.group import process_group
from en.distributed.ranks import Ranks
from en.errors import UserError, exit_on_error, is_reporter

MISTAKES = {
    "optim.lrr=1": ["optim.lrr", "did you mean 'optim.lr'"],
    "epochs=3": ["epochs", "did you mean 'train.epochs'"],
    "norm.reducton=3": ["reducton", "did you mean 'reduction'"],
    "norm.name=enn": ["enn", "did you mean 'en'"],
    "norm.name=gn norm.hidden=3": ["hidden", "gn", "groups"],
    "norm.hidden=no": ["hidden='no'", "whole number"],
    "norm.normalizers=[bn,xx]": ["xx", "bn, in, ln, gn"],
    "norm=en": ["norm='en'", "section"],
    "train.epochs=ten": ["train.epochs='ten'", "an integer"],
    "train.epochs=0": ["train.epochs=0", "1"],
    "train.epochs=1.5": ["train.epochs=1.5", "an integer"],
    "train.epochs=true": ["train.epochs=True", "an integer"],
    "train.batch_size=": ["train.batch_size=None", "an integer"],
    "train.accumulation=5": ["train.batch_size=32", "accumulation=5"],
    "train.precision=fp16": ["train.precision='fp16'", "'float16'"],
    "train.compile=yes": ["train.compile='yes'", "true or false"],
    "task.label_smoothing=1.0": ["task.label_smoothing=1.0", "less than 1"],
    "task.mixup=.nan": ["task.mixup=nan", "finite"],
    "train.mixup=0.2": ["unknown key 'train.mixup'", "expected task.mixup"],
    "data.flip=0.2": ["unknown key 'data.flip'", "expected task.flip"],
    "task.mixpu=0.2": ["unknown key 'task.mixpu'", "did you mean 'task.mixup'"],
    "task.name=clasification": ["task.name='clasification'", "did you mean 'classification'"],
    "task=classification": ["task='classification'", "expected a section"],
    "train.ema_decay=1": ["train.ema_decay=1", "less than 1"],
    "train.progressive={start_resolution: 300, until_epoch: 2}": ["train.progressive.start_resolution=300", "224"],
    "data.loader=dali": ["data.loader='dali'", "'ffcv' or 'folder'"],
    "data.mean=[1,2]": ["data.mean=[1, 2]", "3 items"],
    "data.std=[1,2,0]": ["data.std.2=0", "at least 0.001"],
    "data.std=[0.229,0.224,0.225]": ["data.std=[0.229, 0.224, 0.225]", "[58.395, 57.12, 57.375]", "0 to 255"],
    "data.mean=[0.5,0.5,0]": ["data.mean=[0.5, 0.5, 0]", "[127.5, 127.5, 0.0]", "0 to 255"],
    "task.crop_scale=[0.5,0.1]": ["task.crop_scale=[0.5, 0.1]", "smaller"],
    "task.crop_scale=[0.5,1.1]": ["task.crop_scale.1=1.1", "at most 1"],
    "data.resolution=0": ["data.resolution=0", "1"],
    "data.workers=-1": ["data.workers=-1", "0"],
    "optim.lr=1e-3x": ["optim.lr='1e-3x'", "expected a number"],
    "optim.lr=-1": ["optim.lr=-1", "a number greater than 0"],
    "optim.momentum=0.0": ["nesterov=true", "momentum above 0"],
    "schedule.name=exp": ["schedule.name='exp'", "'cosine'"],
    "schedule.warmup_epochs=4": ["schedule.warmup_epochs=4.0", "train.epochs=3"],
    "schedule.steps=[3,2]": ["schedule.steps", "ascending"],
    "schedule.final_lr=1": ["schedule.final_lr=1.0", "optim.lr=0.1"],
    "seed=-1": ["seed=-1", "0"],
    "seed": ["'seed'", "key=value"],
    "a-b=3": ["a-b=3", "key=value"],
    "train.batch_size=[": ["train.batch_size=[", "YAML"],
    "data.rootx=3": ["unknown key 'data.rootx'", "did you mean 'data.root'"],
    "data.root=3": ["data.root=3", "expected a string"],
    "data.root=": ["data.root=None", "expected a string"],
    "data.root=''": ["data.root=''", "not empty"],
    'data.root="a\\0b"': ["data.root='a\\x00b'", "printable"],
    "model.name=[resnet18]": ["model.name=['resnet18']", "expected a string"],
    "model.options=3": ["model.options=3", "expected a section"],
    "model.options=[output_stride]": ["model.options=['output_stride']", "expected a section"],
    "model.options.output_stride=": ["model.options.output_stride=None", "finite number"],
    "model.options.drop_path_rate=.nan": ["model.options.drop_path_rate=nan", "finite number"],
    "model.options.channels=[64,~]": ["model.options.channels=[64, None]", "finite number"],
    'model.options={"output stride": 8}': ["model.options", "names of arguments", "'output stride'"],
    "model.option.output_stride=8": ["model.option", "did you mean 'model.options'"],
    "schedule.steps=3": ["schedule.steps=3", "expected a list"],
    "train.progressive=3": ["train.progressive=3", "expected a section"],
    "train.epochs=1000001": ["train.epochs=1000001", "at most 1000000"],
    "data.workers=100000": ["data.workers=100000", "at most 256"],
    "data.timeout_s=1e300": ["data.timeout_s=1e+300", "at most 1000000"],
    "data.mean=[.nan,0,0]": ["data.mean.0=nan", "finite"],
    "norm.hidden=1000000000": ["norm.hidden=1000000000", "65536"],
    "norm.num_features=3": ["num_features", "expected one of"],
    "norm.groups=0": ["norm.groups=0", "whole number"],
    "norm.name=[en]": ["norm.name=['en']", "expected a string"],
    "base=other.yaml": ["base=other.yaml", "configuration files only"],
    "resume=auto": ["resume=auto", "run_dir=null"],
    "seed=&a [*a]": ["seed=&a [*a]", "aliases"],
    "seed=1_000": ["seed='1_000'", "an integer"],
    "seed=1:30": ["seed='1:30'", "an integer"],
    "seed={<<: {a: 1}}": ["seed=a section", "an integer"],
    "seed=!!python/object:os.system x": ["seed=", "the tag", "expected a value without it"],
    "seed=!!int x": ["seed=", "expected int"],
    "seed={[a]: 1}": ["seed=", "expected a string as key"],
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_refused_in_one_line_that_names_key_value_and_what_was_expected(overrides, good):
    words = overrides.split() if overrides.startswith("norm.name=gn") else [overrides]
    with pytest.raises(UserError) as refusal:
        load_config(good, words)
    assert "\n" not in str(refusal.value)
    for word in [*MISTAKES[overrides], "expected" if "unknown key" not in str(refusal.value) else "unknown key"]:
        assert word in str(refusal.value)


LAUGHS = (
    "seed: {"
    + ", ".join([f"k0: &a0 {'x' * 9}", *(f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])
    + "}"
)


FILES = {
    "": "expected `key: value`",
    "- a\n- b\n": "found ['a', 'b']",
    "model: [": "expected YAML",
    "seed: 1\nseed: 2\n": "duplicate key 'seed': expected each key once (line 2",
    "base: missing.yaml\n": "missing.yaml: No such file",
    "base: [a]\n": "base=['a']",
    GOOD.replace("data: {root: images}", "data: {}"): "data.root: missing",
    GOOD.replace("norm: {name: en}", ""): "norm: missing",
    "base: second.yaml\n": "expected no base",
    "base: bad.yaml\n": "expected no base",
    "base: .\n": "a folder: expected a YAML",
    'base: "a\\0b"\n': "not a file name: expected a YAML",
    GOOD.replace("root: images", "rootx: images"): "unknown key 'data.rootx' (did you mean 'data.root'?)",
    f"{GOOD}optim.lr: 3\n": "unknown key 'optim.lr': expected lr in the section optim",
    LAUGHS: "aliases (*name) are not supported",
    f"{GOOD}seed: {'[' * 10_000}": "at most 20 nested lists and sections",
    f"{GOOD}seed: {'9' * 5_000}": "an integer of at most 64 bits (line 7",
    f"{GOOD}seed: 0x{'f' * 5_000}": "an integer of at most 64 bits (line 7",
    f"{GOOD}run_dir: {'x' * 5_000}": "at most 1000 characters",
    f"{GOOD}run_dir: {'x' * 300}": "parts have at most 255 bytes",
    f"{GOOD}{'x' * 900}: 3": "unknown key",
    f"{GOOD}3: 3": "a string as key",
    f"{GOOD}seed: \x1b[31m": "not allowed",
    GOOD + "# x\n" * 30_000: "more than 100,000 bytes",
}


@pytest.mark.parametrize("content", FILES, ids=[f"{number}: {words}" for number, words in enumerate(FILES.values())])
def test_a_file_that_is_no_config_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "bad.yaml").write_text(content)
    (tmp_path / "second.yaml").write_text("base: third.yaml\n")
    with pytest.raises(UserError) as refusal:
        load_config(str(tmp_path / "bad.yaml"), [])
    assert FILES[content] in str(refusal.value) and str(refusal.value).isprintable() and len(str(refusal.value)) <= 1000


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "utf16", "nul", "long", "control"])
def test_what_is_no_file_of_text_is_refused_in_one_line_and_never_waited_for(kind, tmp_path, good):
    path = tmp_path / kind
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "utf16":
            path.write_text(GOOD, encoding="utf-16")
        case "nul" | "long" | "control":
            path = tmp_path / {"nul": "a\0b", "long": "x" * 5_000, "control": "\x1b[31m\n"}[kind]
    (tmp_path / "child.yaml").write_text(f"base: {json.dumps(str(path))}\n")
    for config in (path, tmp_path / "child.yaml"):
        with pytest.raises(UserError, match="expected a YAML configuration file") as refusal:
            load_config(str(config), [])
        assert str(refusal.value).isprintable() and len(str(refusal.value)) < 1000


NASTY = [LAUGHS.removeprefix("seed: "), "&a [*a]", "!!set {a}", "!!float x", "!!binary aGk=", "{" * 50, "{? [a] : 1}",
         "9" * 5000, "-1", "1e400", ".nan", "-0.0", "{}", "[]", "[[]]", "[.nan]", "''", "~", "true", '"\\0"',
         '"\\ud800"', '"\\UFFFFFFFF"', "\ud800", "\0", "x" * 5000, "é" * 150, "a\nb: c", "18446744073709551615",
         "[" + "1," * 2000 + "]"]  # fmt: skip


@pytest.mark.parametrize("key", known_keys({"norm": {"name": "en"}}))
def test_no_value_of_any_key_is_answered_with_more_than_one_line(key, good, tmp_path):
    for value in NASTY:
        try:
            config = load_config(good, [f"{key}={value}"])
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) <= 1000 and "expected" in str(error), value
        else:
            (tmp_path / "again.yaml").write_text(dump(config))
            assert load_config(str(tmp_path / "again.yaml"), []) == config, value


def test_of_a_mistake_that_all_ranks_find_the_first_of_each_node_tells(monkeypatch):
    for case in ["0 0 tells", "1 1 is silent", "2 0 tells", "x 1 tells", "5 1 tells", "1 7 tells"]:
        rank, local_rank, *does = case.split()
        for name, value in {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        assert is_reporter() == (does == ["tells"]), case


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "abc", "LOCAL_RANK": "0"}, "RANK='abc' in the environment: expected a whole number from 0 to 0"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK='5' in the environment: expected a whole number from 0 to 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"RANK": "0", "WORLD_SIZE": "1\n2"}, r"WORLD_SIZE='1\n2'"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE='999"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK='3'"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "x", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK='x'"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "abc", "MASTER_ADDR": "localhost"}, "MASTER_PORT='abc'"),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "99999", "MASTER_ADDR": "localhost"},
            "expected a whole number from 1 to 65535",
        ),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
    ],
)
def test_an_environment_that_does_not_say_who_this_is_is_refused_in_one_line(environment, words, monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def join() -> None:
        with process_group(Ranks.from_environment(), torch.device("cpu"), 5):
            raise AssertionError("joined")

    with pytest.raises(SystemExit) as end:
        exit_on_error(join)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("error: ") and words in line and len(line) < 1000


@pytest.mark.parametrize("name", SIZES)
def test_one_of_several_tasks_without_torchrun_is_refused_with_the_command_that_makes_them_ranks(name, good):
    line = refused(command("train.py", good, **{name: "4"}))
    assert line.startswith(f"error: {name}=4 in the environment") and "expected torchrun in one task a node" in line


def test_commands_of_several_tasks_are_refused_or_served_by_what_they_do(good, tmp_path):
    four = {"SLURM_STEP_NUM_TASKS": "4"}
    assert "srun --ntasks-per-node 1 torchrun" in refused(command("eval.py", tmp_path, **four))
    assert "expected one process, without srun" in refused(command("scripts/ratios.py", tmp_path, **four))
    assert "expected one process, without srun" in refused(
        command("experiments/diagnose.py", good, "--out", tmp_path, **four)
    )
    assert command("train.py", good, "--print-config", **four).returncode == 0
    as_ranks = {**four, "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    for served in ({"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_NTASKS": "4"}, {"PMI_SIZE": "many"}, as_ranks):
        assert "images: no such folder" in refused(command("train.py", good, **served)), served


def test_groups_that_do_not_divide_are_refused_by_their_key_layer_and_channels(good):
    config = load_config(good, ["norm.name=gn", "norm.groups=11"])
    with pytest.raises(
        UserError, match=r"norm\.groups=11: bn1: groups=11: expected a divisor of the layer's 64 channels"
    ):
        build_network(config, 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{output_strid: 8}", "model.options.output_strid=8 for timm/resnet18: expected one of"),
        ("{drop_rate: 0.5}", "model.options.drop_rate=0.5 for timm/resnet18: expected the key model.dropout instead"),
        ("{global_pool: ''}", "model.options={'global_pool': ''}, data.resolution=224: 224 pixels in training"),
    ],
)
def test_an_option_that_the_network_does_not_take_is_refused_by_its_key(options, words, good):
    config = load_config(good, ["model.name=timm/resnet18", f"model.options={options}"])
    with pytest.raises(UserError) as refusal:
        build_network(config, 10)
    assert words in str(refusal.value) and str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.name=inception_v3", "data.eval_resolution=32"], "32 pixels in evaluation: expected a size"),
        (
            ["model.name=inception_v3", "train.progressive={start_resolution: 32, until_epoch: 2}"],
            "data.resolution=224: 32 pixels in training",
        ),
    ],
)
def test_a_size_that_the_network_does_not_take_is_refused_before_anything_runs(overrides, words, good):
    with pytest.raises(UserError) as refusal:
        build_network(load_config(good, overrides), 10)
    assert words in str(refusal.value) and str(refusal.value).isprintable()


def test_the_command_ends_with_code_2_and_one_line(good, tmp_path):
    assert "optim.lrr" in refused(command("train.py", good, "optim.lrr=1"))
    assert "missing.yaml" in refused(command("train.py", tmp_path / "missing.yaml"))
    assert "images" in refused(command("train.py", good))
    assert "network" in refused(command("eval.py", tmp_path)).replace("last.pt", "network")
    assert "expected a whole number from 0" in refused(command("eval.py", tmp_path, "--recalibrate", "9" * 5_000))
    assert "expected a whole number from 1" in refused(command("scripts/benchmark.py", "norm", "--threads", 10**10))
    assert "--norms enn: expected some of bn" in refused(command("scripts/benchmark.py", "norm", "--norms", "enn"))
    assert "--json" in refused(command("scripts/benchmark.py", "norm", "--json", tmp_path))
    assert "File name too long" in refused(command("scripts/benchmark.py", "norm", "--json", "x" * 5_000))


def test_a_data_set_of_one_class_is_refused(good):
    with pytest.raises(UserError, match=r"^task\.name=classification: expected images of at least 2 classes, found 1$"):
        build_network(load_config(good, []), 1)
