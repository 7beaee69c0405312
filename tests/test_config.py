"""What a configuration may say, and how it is put together."""

import math

import pytest
import yaml
from commands import ROOT, command

from en.build import build_network
from en.config.reading import dump, load_config
from en.config.schema import Config
from en.config.strict_yaml import read_yaml
from en.norm import AS_PUBLISHED, NORMALIZERS
from en.reports.published import published

CONFIGS = [path for path in sorted(ROOT.glob("configs/*/*.yaml")) if path.parent.name != "ablations"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_builds_and_is_headed_by_its_command_and_published_figures(path):
    config = load_config(str(path), [])
    build_network(config, 10)
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"train.py {path.relative_to(ROOT)}" in header
    for row in published().figures if path.parent.name == "imagenet" else []:
        if (row["model"], row["norm"]) == (config.model.name, config.norm.name) and is_published(config):
            line = next(
                line for line in header.splitlines() if row["source"] in line and f"top-1 {row['top1']} %" in line
            )
            assert ("nverified" in line) == (row["status"] == "unverified")


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


def test_imagenet_has_a_recipe_for_every_network_and_normalizer():
    names = {path.stem for path in CONFIGS if path.parent.name == "imagenet"}
    assert names == {f"{m}_{n}" for m, norms in NETWORKS.items() for n in norms}
    assert {name.removesuffix("_paper") for name in NORMS} <= NORMALIZERS.keys()


def test_the_normalizers_of_a_network_share_one_recipe():
    for network, norms in NETWORKS.items():
        configs = [load_config(str(ROOT / f"configs/imagenet/{network}_{n}.yaml"), []) for n in norms]
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
