"""Holds docs/configuration.md against what resuming, suites, reports, ranks and evaluation do with each key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from kill_loop import CASES
from report_runs import CONFIG, run

from en.build import build_network
from en.config.meaning import changes, marker, meaning, same_pixels, sections_of
from en.config.reading import dump, load_config
from en.config.schema import Config
from en.config.strict_yaml import Tree
from en.errors import UserError
from en.means import Means
from en.norm import norm_options
from en.reports.measured import remarks
from en.reports.runs import read_run
from en.reports.variants import find_variants
from en.runs import checkpoint
from en.runs.contents import Checkpoint
from en.runs.provenance import ranks_facts
from en.runs.resume import check_resumable, rebuild_as_begun
from en.suites.plan import Planned
from en.suites.state import refuse_another
from en.suites.suite import OF_EACH_RUN
from en.tasks import TASKS

OTHER = {  # by key: a value that the recipe below has not, and what else it asks for
    "seed": "1",
    "device": "auto",
    "deterministic": "true",
    "init": "elsewhere",
    "run_dir": "elsewhere",
    "resume": "elsewhere",
    "model.name": "resnet18",
    "model.dropout": "0.7",
    "model.zero_init_last_gamma": "false",
    "model.options": "{stem_width: 16}",
    "norm.name": "bn",
    "norm.normalizers": "[bn, ln]",
    "norm.reduction": "4",
    "norm.hidden": "7",
    "norm.convolution": "false",
    "norm.activation": "relu",
    "norm.shared_affine": "true",
    "norm.ratios": "static",
    "norm.mix": "statistics",
    "norm.groups": "2",
    "norm.eps": "0.5",
    "norm.momentum": "0.5",
    "norm.sync": "true",
    "norm.min_pixels": "1",
    "norm.gate_pixels": "1",
    "norm.start": "bn",
    "task.name": "stripes",
    "task.crop_scale": "[0.5, 1.0]",
    "task.crop_ratio": "[0.9, 1.1]",
    "task.flip": "0.1",
    "task.evaluation": "resize_crop",
    "task.centre_share": "0.5",
    "task.label_smoothing": "0.1",
    "task.mixup": "0.7",
    "task.cutmix": "0.7",
    "task.rand_augment": "3",
    "task.rand_magnitude": "7.0",
    "task.rand_deviation": "0.5",
    "task.rand_probability": "0.5",
    "task.erasing": "0.25",
    "task.scale": "[0.7, 1.5]",
    "task.base_size": "[64, 128]",
    "task.most_of_class": "0.5",
    "task.aux_weight": "0.1",
    "task.protocol": "ours_ms",
    "task.data_set": "ade20k",
    "data.root": "elsewhere",
    "data.loader": "folder",
    "data.decode": "ffcv",
    "data.verify": "never",
    "data.resolution": "64",
    "data.eval_resolution": "96",
    "data.mean": "[100.0, 100.0, 100.0]",
    "data.std": "[50.0, 50.0, 50.0]",
    "data.workers": "3",
    "data.timeout_s": "7",
    "data.on_error": "skip",
    "data.labels": "elsewhere",
    "train.epochs": "9",
    "train.steps": "900",
    "train.batch_size": "48",
    "train.accumulation": "3",
    "train.precision": "bfloat16",
    "train.channels_last": "false",
    "train.compile": "true",
    "train.clip_norm": "1.0",
    "train.ema_decay": "0.5",
    "train.progressive.start_resolution": "40",
    "train.progressive.until_epoch": "3.0",
    "train.progressive.multiple": "8",
    "train.freeze": "[conv1]",
    "train.freeze_statistics": "[bn1]",
    "train.check_every": "7",
    "train.on_nonfinite": "skip",
    "train.nonfinite_limit": "7",
    "optim.lr": "0.03",
    "optim.momentum": "0.5",
    "optim.nesterov": "false",
    "optim.weight_decay": "0.1",
    "optim.head_lr_factor": "2.0",
    "optim.decay_on": "all",
    "schedule.name": "linear",
    "schedule.warmup_epochs": "0.25",
    "schedule.steps": "[1, 2]",
    "schedule.gamma": "0.5",
    "schedule.power": "3.0",
    "schedule.final_lr": "0.001",
    "evaluation.every_steps": "2",
    "checkpoint.every_steps": "7",
    "checkpoint.keep": "7",
    "distributed.timeout_s": "7",
}
PROGRESSIVE = "train.progressive={start_resolution: 32, until_epoch: 2, multiple: 16}"


def documented() -> dict[str, tuple[str, str]]:
    """By dotted key: what docs/configuration.md says, at a resume and of another recipe."""
    found, prefix = {}, ""
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
        if title := re.fullmatch(r"##+ (?:The run|`([\w.]+)(?:: \w+)?`)", line):
            prefix = f"{title[1].removesuffix('.name')}." if title[1] else ""
        elif row := re.fullmatch(r"\| `(\w+)` \|.*\| ([a-z ]+) \| (yes|no) \|[^|]*\|", line):
            found[prefix + row[1]] = (row[2], row[3])
        elif said := re.search(r"At a resume: ([a-z ]+); another recipe: (yes|no)\.$", line):
            options = ["name", *norm_options("en")] if prefix == "norm." else ["name"]
            found |= {prefix + name: (said[1], said[2]) for name in options}
    return found


SAID = documented()
OPTIONS = {f"norm.{name}" for name in norm_options("en")}
every_key = pytest.mark.parametrize("key", SAID)


class Stripes(TASKS["classification"]):  # type: ignore[misc]
    """Another task of the same fields."""

    name: str = "stripes"


@pytest.fixture(autouse=True)
def _another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "stripes", Stripes)


def with_another(key: str) -> list[str]:
    return [f"{key}={OTHER[key]}", *(["train.epochs=null"] if key == "train.steps" else [])]


def two_configs(recipe: str, key: str, *overrides: str) -> tuple[Config, Config]:
    """A configuration, and one that differs in a key alone."""
    below = [*overrides, *([PROGRESSIVE] if "progressive" in key else [])]
    if key.startswith("task.") and key.removeprefix("task.") not in TASKS["classification"].model_fields:
        below.append("task.name=segmentation")
    first, other = load_config(recipe, below), load_config(recipe, [*below, *with_another(key)])
    assert key in {
        ".".join(each.split(".")[: key.count(".") + 1]) for each in changes(*map(Config.complete, (first, other)))
    }
    return first, other


def fields_of(section: type[Any], prefix: str = "", otherwise: Any = None) -> dict[str, Means | None]:
    """Every field of the schema by its dotted key, sections too, with its marker or that of its section."""
    found: dict[str, Means | None] = {}
    for name, field in section.model_fields.items():
        own = marker(field, otherwise)
        inner = sections_of(field)
        if not inner:
            found[prefix + name] = own
        for each in inner:
            found |= fields_of(each, f"{prefix}{name}.", own)
    return found


def test_every_field_of_the_schema_has_a_meaning_and_a_row_that_says_so():
    fields = fields_of(Config)
    assert [key for key, means in fields.items() if means is None] == []
    assert set(fields) | OPTIONS == set(SAID) == set(OTHER)
    assert {key for key, means in fields.items() if means and Means.OWN in means} == set(OF_EACH_RUN)


@pytest.fixture(scope="module")
def finished(untouched) -> dict[Path, Checkpoint]:
    """The checkpoints after the last epoch of a run and within it."""
    return {path: checkpoint.load(path) for path in checkpoint.step_paths(untouched(CASES[0]))[:2]}


def resumes(saved: Checkpoint, config: Config, origin: Path) -> bool:
    try:
        check_resumable(saved, config, saved.data, saved.classes, origin)
    except UserError as refusal:
        assert ": expected" in str(refusal) and "\n" not in str(refusal)
        return False
    return True


@every_key
def test_a_resumed_run_may_change_a_key_as_the_table_says(place, finished, key):
    words = SAID[key][0]
    then, now = two_configs(str(place.recipe), key, f"data.root={place.data['ffcv']}")
    for origin, whole in finished.items():
        saved = whole.model_copy(update={"config": then.model_dump()})
        between = saved.position.step == 0
        may = {"yes": True, "no": False, "between epochs": between, "not below what is done": key != "train.steps"}
        assert resumes(saved, then, origin)
        if key in OPTIONS:
            assert words == "no"
            with pytest.raises(UserError, match=f"{key}=.*: expected what .* began with"):
                rebuild_as_begun(build_network(now, len(saved.classes)), saved, now, origin)
        else:
            assert resumes(saved, now, origin) == may[words]


@pytest.mark.parametrize(("unit", "more", "fewer"), [("epochs", 5, 3), ("steps", 20, 2)])
def test_a_resumed_run_may_be_longer_and_not_be_over_before_its_checkpoint(place, finished, unit, more, fewer):
    origin, saved = next(iter(finished.items()))
    other = {"epochs": "steps", "steps": "epochs"}[unit]

    def length(number: int) -> Config:
        root = f"data.root={place.data['ffcv']}"
        return load_config(str(place.recipe), [root, f"train.{unit}={number}", f"train.{other}=null"])

    saved = saved.model_copy(update={"config": length(more - 1).model_dump()})
    assert resumes(saved, length(more), origin) and not resumes(saved, length(fewer), origin)


@every_key
def test_a_suite_refuses_a_folder_of_another_recipe_normalizer_or_seed_alone(place, tmp_path, key):
    then, now = two_configs(str(place.recipe), key)
    (tmp_path / "config.yaml").write_text(dump(then))
    planned = Planned("a", tmp_path, place.recipe, (), now)
    if SAID[key][1] == "no" and key != "seed" and not key.startswith("norm."):
        refuse_another(planned)
        return
    if key in ("norm.eps", "norm.momentum", "norm.sync"):
        (tmp_path / "config.yaml").write_text(
            dump(load_config(str(place.recipe), ["norm.eps=0.1", "norm.momentum=0.2"]))
        )
    with pytest.raises(
        UserError, match=rf"holds a run with (norm|train.epochs|{key}).*: expected .*, as the suite says"
    ):
        refuse_another(planned)


@every_key
def test_a_report_tells_of_another_recipe_in_two_runs_and_in_one_that_was_resumed(place, tmp_path, key):
    then, now = two_configs(str(place.recipe), key)
    paths = [Path(run(tmp_path / name, CONFIG)) for name in ("then", "now")]
    for path, config in zip(paths, (then, now), strict=True):
        (path / "config.yaml").write_text(dump(config))
    changed = changes(then.complete(), now.complete())
    (paths[0] / "provenance.json").write_text(json.dumps({"starts": [{}, {"changed": changed}]}))
    runs = [read_run(path) for path in paths]
    notes = {note.lead: note.text for note in remarks(runs, find_variants(runs))}
    if key == "train.steps":  # and epochs, which are null with it
        changed.pop("train.epochs")
    (shown,) = changed if len(changed) == 1 else [key]
    expected = SAID[key][1] == "yes"
    assert (shown in notes.get("Not one recipe", "")) == (f"{shown}=" in notes.get("Two recipes", "")) == expected


@every_key
def test_ranks_may_differ_in_what_is_of_one_machine_alone(place, key):
    facts: list[Tree] = [ranks_facts(config, {}, {}) for config in two_configs(str(place.recipe), key)]
    assert (facts[0] == facts[1]) == (key in ("run_dir", "resume", "data.root", "data.workers"))


@every_key
def test_scores_begin_anew_with_other_pixels_alone(place, key):
    """A task's field decides them where the crop of evaluation is another one with it."""
    then, now = two_configs(str(place.recipe), key)
    data = [[getattr(c.data, name) for name in ("decode", "mean", "std")] for c in (then, now)]
    pixels = [(*each, c.shown_size, c.task.crop(False), c.task.manner)
              for each, c in zip(data, (then, now), strict=True)]  # fmt: skip
    assert same_pixels(then, now) == (pixels[0] == pixels[1]) or key == "task.name"


def test_a_field_of_a_task_without_a_marker_and_a_key_that_nobody_knows_are_taken_for_part_of_the_recipe():
    class Bare(TASKS["classification"]):  # type: ignore[misc]
        shade: float = 0.5

    TASKS["bare"] = Bare
    try:
        assert meaning("task.shade") == Means.RECIPE | Means.PIXELS
    finally:
        del TASKS["bare"]
    assert meaning("train.of_another_day") == meaning("nonsense.of_another_day") == Means.RECIPE
