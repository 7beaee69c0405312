"""What every task has to keep, and a new one, which needs no change elsewhere."""

import json
from pathlib import Path

import pytest
import torch
from commands import succeed
from regression import Regression
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection

from en.config.reading import load_config
from en.data.targets import ClassIndex, ClassMap
from en.reports.files import write_report
from en.runs import checkpoint
from en.runs.position import Position
from en.runs.row import NAMES
from en.tasks import TASKS, classification
from en.tasks.classification import Classification
from en.training.run import TrainingRun
from en.training.signals import StopRequest

CLASSES, IMAGES = 7, 30
RECIPE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}}
norm: {name: en}
task: {name: regression, weight: 0.5}
data: {root: unset, resolution: 48, workers: 1}
train: {epochs: 2, batch_size: 24, accumulation: 2}
optim: {lr: 0.01}
device: cpu
"""


@pytest.fixture(params=[*TASKS.values(), Regression], ids=[*TASKS, "regression"])
def task(request):
    return request.param()


@pytest.fixture
def batch():
    return batch_of(ClassIndex())


def batch_of(target):
    """Images and what a kind of target has of them."""
    torch.manual_seed(0)  # mixup and cutmix draw from torch's own generator, wherever other tests have left it
    generator = torch.Generator().manual_seed(0)
    shape = (IMAGES, *target.shape((32, 32)))
    return torch.rand(IMAGES, 3, 32, 32, generator=generator), torch.randint(CLASSES, shape, generator=generator)


def network_of(task):
    return task.network(CLASSES, name="timm/resnet10t" if task.target is ClassMap else "shufflenet_v2_x0_5", norm="bn")


def test_a_task_is_registered_by_its_name(task):
    assert {name: kind.model_fields["name"].default for name, kind in TASKS.items()} == {name: name for name in TASKS}
    assert task.score and set(task.labels) and type(task).model_validate(task.model_dump()) == task


def test_a_network_gives_what_its_task_takes(task):
    images, targets = batch_of(task.target())
    torch.manual_seed(0)
    network = network_of(task)
    task.check_output(network(images[:2]), CLASSES)
    with pytest.raises(ValueError, match="expected"):
        task.check_output((images, images), CLASSES)
    images, targets = task.augment(images, targets, CLASSES)
    total, count = task.loss(network(images), targets)
    (total / count).backward()
    assert total.isfinite() and 0 < count <= IMAGES
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_metrics_of_parts_are_those_of_the_whole_and_hold_the_score_and_the_labels(task):
    images, targets = batch_of(task.target())
    network = network_of(task).eval()
    with torch.inference_mode():
        predictions = task.predict(network, images)
    whole, parts = task.metrics(CLASSES), task.metrics(CLASSES)
    whole.set_dtype(torch.float64)
    parts.set_dtype(torch.float64)
    whole.update(predictions, targets)
    for part in range(0, IMAGES, 7):
        parts.update(predictions[part : part + 7], targets[part : part + 7])
    expected, found = whole.compute(), parts.compute()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, equal_nan=True)
    assert {task.score, *task.labels} <= expected.keys()


def test_the_loss_is_torchs_cross_entropy_with_smoothing_and_mixing(batch):
    images, targets = batch
    outputs = torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(1))
    for smoothing in (0.0, 0.1):
        task = Classification(label_smoothing=smoothing, mixup=0.3, cutmix=1.0)
        total, count = task.loss(outputs, targets)
        torch.testing.assert_close(total / count, F.cross_entropy(outputs, targets, label_smoothing=smoothing))
        mixed_images, mixed = task.augment(images, targets, CLASSES)
        assert not torch.equal(mixed_images, images) and mixed.shape == (IMAGES, CLASSES)
        torch.testing.assert_close(mixed.sum(1), torch.ones(IMAGES))
        total, count = task.loss(outputs, mixed)
        torch.testing.assert_close(total / count, F.cross_entropy(outputs, mixed, label_smoothing=smoothing))


def test_top_1_and_top_5_are_counted_as_by_sorting(batch):
    _, targets = batch
    outputs = torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(2))
    metrics = Classification().metrics(CLASSES)
    metrics.update(outputs, targets)
    ranks = (outputs > outputs.gather(1, targets[:, None])).sum(1)
    found = {name: float(value) for name, value in metrics.compute().items() if value.ndim == 0}
    assert found["top1"] == pytest.approx(100 * (ranks < 1).double().mean())
    assert found["top5"] == pytest.approx(100 * (ranks < 5).double().mean())
    assert found["loss"] == pytest.approx(float(F.cross_entropy(outputs, targets)), rel=1e-6)
    assert "top5" not in Classification().metrics(5)


def test_a_new_task_trains_resumes_and_is_reported_without_a_change_elsewhere(betons, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "regression", Regression)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def train(name: str, *overrides: str) -> Path:
        options = [f"data.root={betons}", f"run_dir={tmp_path / name}", *overrides]
        TrainingRun(load_config(str(tmp_path / "recipe.yaml"), options), "recipe.yaml", StopRequest()).train()
        return tmp_path / name

    whole = train("whole", "checkpoint.every_steps=3")
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["task"], summary["score"]) == ("regression", "closeness") and summary["scores"]["error"] > 0
    assert summary["best_score"] == max(row["closeness"] for row in rows(whole))
    state = checkpoint.load(whole / "last.pt")
    assert state.config["task"] == {"name": "regression", "weight": 0.5}
    (middle,) = [path for path in checkpoint.step_paths(whole) if path.name.endswith("00001_00000002.pt")]
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    for path in (middle, checkpoint.sum_path(middle)):
        (tmp_path / "again" / "checkpoints" / path.name).write_bytes(path.read_bytes())
    again = checkpoint.load(train("again", "checkpoint.every_steps=3", "resume=auto") / "last.pt")
    assert all(torch.equal(value, again.model[name]) for name, value in state.model.items())
    write_report([str(whole)], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| error px |" in text and "top-1" not in text.split("## Published")[0]


def test_what_counts_is_averaged_over_the_whole_step_on_any_number_of_ranks_and_micro_batches(betons, tmp_path):
    """Of a task whose network has two outputs, and which ignores every other class."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("{name: regression, weight: 0.5}", "{name: headed}"))
    ways = {"one": (0, 1), "micro": (0, 2), "ranks": (2, 1)}
    for name, (ranks, micro_batches) in ways.items():
        options = ["norm.name=gn", "train.epochs=1", f"train.accumulation={micro_batches}"]
        options += ["checkpoint.every_steps=1", "checkpoint.keep=9"]
        places = [f"data.root={betons}", f"run_dir={tmp_path / name}"]
        succeed("tests/headed.py", tmp_path / "recipe.yaml", *options, *places, ranks=ranks)
    # After the first step: at 48 pixels, rounding grows from step to step.
    first = Position(step=1)
    one, *others = (checkpoint.load(checkpoint.step_path(tmp_path / name, first)) for name in ways)
    for other in others:
        for key, value in one.model.items():
            torch.testing.assert_close(other.model[key], value, rtol=1e-4, atol=1e-5)
        losses = [rank["losses"]["sum"] for rank in other.ranks]
        assert sum(losses) / len(losses) == pytest.approx(one.ranks[0]["losses"]["sum"], rel=1e-5)


@pytest.mark.parametrize(
    ("score", "metrics", "words"),
    [
        ("closenes", ["closeness"], "score='closenes': expected one of the metrics closeness"),
        ("closeness", ["closeness", "seconds"], "a metric named 'seconds': expected a name"),
    ],
)
def test_a_task_with_a_score_or_a_metric_that_cannot_be_is_refused_before_anything_runs(score, metrics, words):
    class Odd(Regression):
        def metrics(self, classes):
            return MetricCollection({name: MeanMetric() for name in metrics})

    Odd.score = score
    with pytest.raises(ValueError, match=words):
        Odd().check_metrics(CLASSES, NAMES)


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_equal_outputs_are_in_the_order_of_their_classes_for_top_1_and_top_5_alike():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randint(-1, 2, (500, 10), generator=generator) * 1.0  # three values: ties in every row
    outputs[0], outputs[1, 3:9] = 0, 2
    targets = torch.randint(10, (500,), generator=generator)
    places = [sorted(range(10), key=lambda c: (-row[c], c)).index(t) for row, t in zip(outputs, targets, strict=True)]
    metrics = Classification().metrics(10)
    metrics.update(outputs, targets)
    found = {name: float(value) for name, value in metrics.compute().items() if value.ndim == 0}
    assert found["top1"] == pytest.approx(100 * (outputs.argmax(1) == targets).double().mean().item())
    for top in (1, 5):
        assert found[f"top{top}"] == pytest.approx(100 * sum(place < top for place in places) / 500)


def test_an_output_that_is_not_a_number_is_never_a_hit():
    outputs = torch.zeros(3, 10)
    outputs[1], outputs[2, 4] = float("nan"), float("nan")
    assert classification.ranks(outputs, torch.tensor([0, 0, 0])).tolist() == [0, 10, 1]
