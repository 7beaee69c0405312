"""What a configuration may say, and how it is put together."""

import json
import math
from functools import reduce

import pytest
import torch
import yaml
from commands import ROOT, command
from regression import Regression

from en.build import build_network
from en.config.reading import dump, flatten, load_config, overridden
from en.config.schema import Config
from en.config.strict_yaml import read_yaml, to_yaml
from en.errors import UserError
from en.norm import AS_PUBLISHED, NORMALIZERS
from en.reports.published import published
from en.tasks import TASKS

CONFIGS = [path for path in sorted(ROOT.glob("configs/*/*.yaml")) if path.parent.name != "ablations"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_builds_and_is_headed_by_its_command_and_published_figures(path):
    config = load_config(str(path), [])
    with torch.device("meta"):
        build_network(config, 10)
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"train.py {path.relative_to(ROOT)}" in header
    of_papers = path.parent.name == "imagenet" and not path.stem.endswith(("_modern", "smoke"))
    for row in published().figures if of_papers else []:
        if (row["model"], row["norm"]) == (config.model.name, config.norm.name) and is_published(config):
            line = next(
                line for line in header.splitlines() if row["source"] in line and f"top-1 {row['top1']} %" in line
            )
            assert ("nverified" in line) == (row["status"] == "unverified")


@pytest.mark.parametrize("data", ["ade20k", "cityscapes"])
def test_a_recipe_that_labels_pixels_is_headed_by_the_figures_of_its_network_and_normalizer(data):
    paths = [path for path in CONFIGS if path.parent.name == data]
    assert {path.stem for path in paths} == {f"fcn_resnet50_{norm}" for norm in ("bn", "gn", "sn", "en")}
    for path in paths:
        config, header = load_config(str(path), []), path.read_text().partition("\nbase:")[0]
        assert config.task.name == "segmentation" and config.norm.options.get("sync", False) == (
            config.norm.name in ("bn", "en")
        )
        rows = published(data).figures
        own = [row for row in rows if (row.get("model"), row["norm"]) == (config.model.name, config.norm.name)]
        assert all(f"{row['miou']:.2f} %" in header for row in own)
        assert own or "no figure of this normalizer" in header
        assert "GPU hours: not on file" in header


def is_published(config: Config) -> bool:
    """Whether the normalizer's options are those of the published figures."""
    return AS_PUBLISHED.get(config.norm.name, {}).items() <= config.norm.all_options.items()


NORMS = ("bn", "in", "ln", "gn", "sn", "en", "sn_paper", "en_paper")  # those of the papers, and as they have them
NETWORKS = {
    "resnet50": (*NORMS, "ssn"),
    "shufflenet_v2_x0_5": NORMS,
    "shufflenet_v2_x1_0": NORMS,
    "seresnet50": ("bn", "en"),
}


MODERN = ("bn", "gn", "sn", "en")


def test_imagenet_has_a_recipe_for_every_network_and_normalizer():
    names = {path.stem for path in CONFIGS if path.parent.name == "imagenet"}
    papers = {f"{m}_{n}" for m, norms in NETWORKS.items() for n in norms}
    assert names == papers | {f"resnet50_{n}_modern" for n in MODERN} | {"smoke"}
    assert {name.removesuffix("_paper") for name in NORMS} <= NORMALIZERS.keys()


def test_the_normalizers_of_a_network_share_one_recipe():
    forms = {f"{network}_{{}}": norms for network, norms in NETWORKS.items()} | {"resnet50_{}_modern": MODERN}
    for form, norms in forms.items():
        configs = [load_config(str(ROOT / f"configs/imagenet/{form.format(n)}.yaml"), []) for n in norms]
        assert len({config.model_copy(update={"norm": None}).model_dump_json() for config in configs}) == 1


def test_overrides_and_the_base_are_laid_over_each_other(tmp_path, good):
    child = tmp_path / "child.yaml"
    child.write_text("base: good.yaml\nnorm: {name: gn, groups: 4}\ntrain: {epochs: 7}\n")
    config = load_config(
        str(child), ["optim.lr=2e-3", "train.progressive={start_resolution: 64, until_epoch: 2}", "seed=5"]
    )
    assert (config.norm.name, config.norm.options) == ("gn", {"groups": 4})
    assert (config.train.epochs, config.train.batch_size, config.optim.lr, config.seed) == (7, 32, 0.002, 5)
    assert config.train.progressive is not None and config.train.progressive.start_resolution == 64


OF_ANOTHER = [  # overrides, keys that are there then, and keys of the file that are not
    (["task.name=regression"], {"task.weight": 1.0}, ["task.flip", "task.centre_share"]),
    (["task.weight=2.0", "task.name=regression"], {"task.weight": 2.0}, ["task.flip"]),  # in whatever order
    (["task={name: regression}"], {"task.weight": 1.0}, ["task.flip"]),
    (["task.name=classification"], {"task.flip": 0.25, "task.centre_share": 1.0}, []),
    (["norm.name=bn"], {"norm.name": "bn"}, ["norm.hidden", "norm.sync"]),
    (["norm.eps=1e-3", "norm.name=sn"], {"norm.eps": 1e-3}, ["norm.hidden", "norm.sync"]),
    (["norm.name=en"], {"norm.hidden": 7, "norm.sync": True}, []),
    (["model.name=resnet18"], {"model.dropout": 0.5}, ["model.options.stem_type"]),
    (["model.name=resnet26", "model.options.x=8"], {"model.options.x": 8}, ["model.options.stem_type"]),
    (["schedule.name=linear"], {"schedule.warmup_epochs": 1.0, "schedule.final_lr": 0.001}, []),
]  # fmt: skip
ONE = """
model: {name: timm/resnet18, dropout: 0.5, options: {stem_type: deep}}
norm: {name: en, hidden: 7, sync: true}
task: {flip: 0.25, centre_share: 1.0}
data: {root: images}
train: {epochs: 3, batch_size: 32, progressive: {start_resolution: 64, until_epoch: 2}}
optim: {lr: 1e-1, momentum: 0.5}
schedule: {name: cosine, warmup_epochs: 1, final_lr: 1e-3}
"""


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "command"])
@pytest.mark.parametrize(("overrides", "there", "gone"), OF_ANOTHER, ids=lambda value: str(value)[:60])
def test_what_belongs_to_another_name_is_replaced_as_a_whole(overrides, there, gone, as_file, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "regression", Regression)
    (tmp_path / "one.yaml").write_text(ONE)
    path = tmp_path / ("child.yaml" if as_file else "one.yaml")
    if as_file:
        above = overridden({}, overrides, "nothing")
        path.write_text(to_yaml({"base": "one.yaml", **above}))
    found = flatten(load_config(str(path), [] if as_file else overrides).model_dump())
    assert there.items() <= found.items() and not found.keys() & {*gone}


TAKEN_AWAY = [
    ("train.progressive", {"train.progressive": None}),
    (["norm.hidden", "norm.sync"], {"norm": {"name": "en"}}),
    (["model.options", "optim.momentum"], {"model.options": {}, "optim.momentum": 0.9}),
    ("schedule", {"schedule.warmup_epochs": 0.0}),
    ([], {"norm.hidden": 7}),
]


@pytest.mark.parametrize(("keys", "expected"), TAKEN_AWAY, ids=str)
def test_any_key_or_section_of_a_base_can_be_taken_away_in_a_file_and_on_the_command_line(keys, expected, tmp_path):
    (tmp_path / "one.yaml").write_text(ONE)
    (tmp_path / "child.yaml").write_text(to_yaml({"base": "one.yaml", "without": keys}))
    child = load_config(str(tmp_path / "child.yaml"), [])
    assert load_config(str(tmp_path / "one.yaml"), [f"without={json.dumps(keys)}"]) == child
    tree = child.model_dump()
    for key, value in expected.items():
        assert reduce(lambda section, name: section[name], key.split("."), tree) == value
    separate = [f"without={key}" for key in keys] if isinstance(keys, list) else [f"without={keys}"]
    assert load_config(str(tmp_path / "one.yaml"), separate) == child


def test_what_is_taken_away_is_what_lies_below_and_not_what_is_laid_over_it(tmp_path):
    (tmp_path / "one.yaml").write_text(ONE)
    (tmp_path / "child.yaml").write_text("base: one.yaml\nwithout: norm\nnorm: {name: en, reduction: 4}\n")
    assert load_config(str(tmp_path / "child.yaml"), []).norm.options == {"reduction": 4}
    config = load_config(str(tmp_path / "child.yaml"), ["norm.hidden=3", "without=norm.reduction"])
    assert config.norm.options == {"hidden": 3}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("train.progresive", "'train.progresive': expected a key that {base} sets (did you mean 'train.progressive'?)"),
        ("norm.reduction", "without='norm.reduction': expected a key that {base} sets"),
        (["norm", "norm.hidden"], "without='norm.hidden': expected a key that {base} sets"),
        (3, "without=3: expected a dotted key, or a list of them"),
        (["norm", 3], "without=['norm', 3]: expected a dotted key, or a list of them"),
        ("norm", "norm: missing: expected a value"),
        ("", "without='': expected a key that {base} sets"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_there_cannot_be_taken_away(keys, words, tmp_path):
    base = tmp_path / "one.yaml"
    base.write_text(ONE)
    (tmp_path / "child.yaml").write_text(to_yaml({"base": "one.yaml", "without": keys}))
    for path, overrides in ((tmp_path / "child.yaml", []), (base, [f"without={json.dumps(keys)}"])):
        with pytest.raises(UserError) as refusal:
            load_config(str(path), overrides)
        assert words.format(base=base) in str(refusal.value)
    for text, words in (
        ("without: norm\n" + ONE, "lonely.yaml: without=['norm']: expected a base"),
        ("base: lonelier.yaml\n", "lonelier.yaml: expected no without: it is itself the base of"),
    ):
        (tmp_path / "lonely.yaml").write_text(text)
        (tmp_path / "lonelier.yaml").write_text("without: norm\n" + ONE)
        with pytest.raises(UserError) as refusal:
            load_config(str(tmp_path / "lonely.yaml"), [])
        assert words in str(refusal.value)


CORE = [  # YAML 1.2.2, section 10.3.2, and what YAML 1.1 reads otherwise
    (None, ["null", "Null", "NULL", "~", ""]),
    (True, ["true", "True", "TRUE"]),
    (False, ["false", "False", "FALSE"]),
    (10, ["010", "+10", "0xA", "0x00a", "0o12", "0010"]),
    (-19, ["-19", "-019"]),
    (0, ["0", "-0", "+0", "0o0", "00"]),
    (1e-4, ["1e-4", "1E-4", "0.0001", "+.1e-3", "01e-04"]),
    (12.0, ["12e0", "12.", "012.0"]),
    (float("inf"), [".inf", ".Inf", "+.INF"]),
    (float("-inf"), ["-.inf", "-.INF"]),
]
WORDS = ["on", "off", "yes", "No", "y", "nuLL", "tRUE", "1_000", "1:30", "190:20:30.15", "0b11", "-0xA", "+0o7",
         "0o8", "0xg", "1e", "e3", "+.nan", "-.NaN", ".nAn", ".", "+", "2001-01-01", "<<", "="]  # fmt: skip


def test_values_are_read_by_the_core_schema_of_yaml_1_2(good):
    for value, texts in CORE:
        for text in texts:
            assert (read_yaml(text), type(read_yaml(text))) == (value, type(value)), text
            assert read_yaml(f"'{text}'") == text == read_yaml(f"!!str {text}" if text else "''")
    assert all(math.isnan(read_yaml(text)) for text in (".nan", ".NaN", ".NAN"))
    for text in WORDS:
        assert read_yaml(text) == text
    for text in ("1e-4", "1E3", "3", ".5", "1.", "2.5e+1", "010"):
        assert load_config(good, [f"optim.lr={text}"]).optim.lr == float(text)
    assert load_config(good, ["data.root=on", "train.epochs=010"]).train.epochs == 10


def test_a_printed_config_reads_back_to_itself(tmp_path, good):
    config = load_config(
        good, ["norm.hidden=7", "norm.normalizers=[ln,bn]", "optim.weight_decay=5e-7", "task.mixup=0.2"]
    )
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load_config(str(again), []) == config
    for text in [*WORDS, *(text for _, texts in CORE for text in texts if text)]:
        worded = load_config(good, [f"data.root='{text}'"])
        again.write_text(dump(worded))
        assert load_config(str(again), []) == worded and yaml.safe_load(again.read_text())["data"]["root"] == text


def test_options_of_a_network_are_laid_over_each_other_key_by_key_and_read_back(tmp_path, good):
    child = tmp_path / "child.yaml"
    child.write_text("base: good.yaml\nmodel: {name: timm/resnet18, options: {output_stride: 16, stem_type: deep}}\n")
    config = load_config(str(child), ["model.options.output_stride=8", "model.options={block_args: {attn_layer: se}}"])
    assert config.model.options == {"output_stride": 8, "stem_type": "deep", "block_args": {"attn_layer": "se"}}
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load_config(str(tmp_path / "again.yaml"), []) == config
    network = build_network(config, 10)
    assert network.layer4[0].conv2.dilation == (4, 4) and len(network.conv1) == 7 and network.layer1[0].se is not None


def test_print_config_shows_the_resolved_configuration(good):
    done = command("train.py", good, "--print-config", "norm.hidden=9")
    assert done.returncode == 0 and yaml.safe_load(done.stdout)["norm"] == {"name": "en", "hidden": 9}
