"""The instrument for the ratios, on a run of its own: against record_ratios, by hand, and its refusals."""

import csv
import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from commands import succeed
from conftest import CLASSES, PER_CLASS
from PIL import Image
from torch import nn

from en.build import build_to_device
from en.commands.ratios import main
from en.config.reading import load_config
from en.data import Batch
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source
from en.data.to_device import ToDevice
from en.distributed.ranks import Ranks
from en.errors import RunError
from en.evaluation.ratios import collect_ratios, describe, measure_ratios, read_pictures
from en.evaluation.trained import Trained, open_trained
from en.norm import ExemplarNorm2d, record_ratios
from en.reports.figures import spans
from en.reports.files import write_report
from en.reports.ratios.figures import left_out, none_leans
from en.reports.ratios.files import leanings, read_facts, write_ratios
from en.reports.ratios.tables import EXTREMES, class_means, extremes, samples_table, spreads
from en.runs import checkpoint
from en.runs.position import Position
from en.runs.ratios import EpochRatios, Layer, Ratios, read_epochs
from en.training.run import TrainingRun
from en.training.signals import StopRequest

VAL = PER_CLASS["val"] * CLASSES
ALONE = Ranks(0, 1, 0, 1)
TO_CPU = ToDevice([0, 0, 0], [255, 255, 255], False, torch.device("cpu"))
RECIPE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}}
norm: {name: en}
data: {root: unset, resolution: 48, workers: 1}
train: {epochs: 2, batch_size: 24, ema_decay: 0.5}
optim: {lr: 0.05}
device: cpu
"""


@pytest.fixture(scope="module")
def train(betons, tmp_path_factory):
    """Trains the recipe in this process and returns the run's folder."""
    home = tmp_path_factory.mktemp("ratios")
    (home / "recipe.yaml").write_text(RECIPE)

    def run(name: str, *overrides: str) -> Path:
        options = [f"data.root={betons}", f"run_dir={home / name}", *overrides]
        TrainingRun(
            load_config(str(home / "recipe.yaml"), options), "recipe.yaml", StopRequest(), drop_later=True
        ).train()
        return home / name

    return run


@pytest.fixture(scope="module")
def finished(train) -> Path:
    return train("finished")


@pytest.fixture(scope="module")
def trained(finished) -> Trained:
    return open_trained(str(finished), [], ALONE, ["val"])


@pytest.fixture(scope="module")
def ratios(trained) -> Ratios:
    return measure_ratios(trained, "val")


def rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "ratios.jsonl").read_text().splitlines()]


def test_the_ratios_of_a_set_are_those_that_record_ratios_sees(finished, trained, ratios):
    fresh = open_trained(str(finished), ["train.batch_size=8"], ALONE, ["val"])
    to_device = build_to_device(fresh.config, torch.device("cpu"))
    batches = list(fresh.loaders["val"].eval_epoch((48, 48)))
    samples = torch.cat([batch.samples for batch in batches])
    assert sorted(samples.tolist()) == list(range(VAL))
    with torch.inference_mode(), record_ratios(fresh.model.eval()) as record:
        for batch in batches:
            fresh.model(to_device(batch.images, batch.targets)[0])
    assert record.keys() == ratios.layers.keys() and len(record) == 14
    for name, (normalizers, found) in ratios.layers.items():
        assert normalizers == ("bn", "in", "ln") and found.shape == (VAL, 3) and found.dtype == np.float32
        np.testing.assert_allclose(found[samples.numpy()], record[name], atol=1e-6)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    targets = torch.cat([batch.targets for batch in batches]).numpy()
    np.testing.assert_array_equal(ratios.targets[samples.numpy()], targets)
    assert max(np.ptp(found, axis=0).max() for _, found in ratios.layers.values()) > 1e-4  # samples differ at all


def test_the_averaged_weights_are_looked_at_where_the_run_kept_them(finished, trained, ratios):
    saved = checkpoint.load(finished / "last.pt")
    assert saved.ema is not None and not torch.equal(saved.ema["fc.weight"], saved.model["fc.weight"])
    assert all(torch.equal(value, saved.ema[name]) for name, value in trained.model.state_dict().items())
    logged = read_epochs(finished)
    assert [row.epoch for row in logged] == [1, 2]
    for name, (normalizers, found) in ratios.layers.items():
        means = dict(zip(normalizers, found.mean(0, dtype=np.float64).tolist(), strict=True))
        assert logged[-1].ratios[name] == pytest.approx(means, abs=1e-6)


def test_layers_come_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top, self.unused, self.bottom = ExemplarNorm2d(3), ExemplarNorm2d(3), ExemplarNorm2d(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.top(self.bottom(images))
            return result

    found = collect_ratios(Backwards(), Noise(10, 4), (4, 4), TO_CPU)
    assert [*found.layers] == ["bottom", "top"] and found.places == {"bottom": "bottom", "top": "top"}


@pytest.mark.parametrize("override", ["train.batch_size=1", "train.batch_size=7", "train.batch_size=96"])
def test_the_batch_size_changes_nothing(finished, ratios, override):
    other = open_trained(str(finished), [override], ALONE, ["val"])
    same(measure_ratios(other, "val"), ratios)


def test_both_loaders_show_the_same_ratios_where_the_pixels_are_the_same(finished, folders, tmp_path):
    """Crops of the network's own size are not resized, which the two do with other filters."""
    for split in ("train", "val"):
        for path in (folders / split).rglob("*.jpg"):
            place = tmp_path / "in" / path.relative_to(folders)
            place.parent.mkdir(parents=True, exist_ok=True)
            square(path, place.with_suffix(".png"))
    prepare(read_source(str(tmp_path / "in")), tmp_path / "out", Storage("raw"), 2, False)
    ways = {"ffcv": tmp_path / "out", "folder": tmp_path / "in"}
    found = []
    for loader, root in ways.items():
        options = [f"data.loader={loader}", f"data.root={root}", "task.centre_share=1.0", "data.workers=1"]
        with_loader = open_trained(str(finished), options, ALONE, ["val"])
        found.append(measure_ratios(with_loader, "val"))
        with_loader.close()
    same(*found, atol=0)


def square(path: Path, out: Path) -> None:
    Image.open(path).convert("RGB").resize((48, 48)).save(out)


def same(ours: Ratios, theirs: Ratios, atol: float = 2e-6) -> None:
    assert ours.classes == theirs.classes and [*ours.layers] == [*theirs.layers]
    np.testing.assert_array_equal(ours.targets, theirs.targets)
    for name, layer in ours.layers.items():
        np.testing.assert_allclose(layer.ratios, theirs.layers[name].ratios, atol=atol, rtol=0)


def differing_columns(ratios: Ratios) -> int:
    """Normalizers whose ratios are not the same for all samples, of the bottom, the middle and the top layer."""
    layers = [ratios.layers[name] for name in ratios.places.values()]
    return sum(len({float(share) for share in column}) > 1 for layer in layers for column in layer.ratios.T)


def test_spreads_and_class_means_are_those_of_the_samples_taken_one_by_one(ratios):
    for row in spreads(ratios):
        column = [float(shares[("bn", "in", "ln").index(row.normalizer)]) for shares in ratios.layers[row.layer].ratios]
        mean = sum(column) / len(column)
        assert row.mean == pytest.approx(mean)
        assert row.sd == pytest.approx(
            (sum((share - mean) ** 2 for share in column) / (len(column) - 1)) ** 0.5, rel=1e-4
        )
        assert (row.minimum, row.maximum) == (min(column), max(column))
        assert row.minimum <= row.q05 <= row.q25 <= row.median <= row.q75 <= row.q95 <= row.maximum
    means = class_means(ratios)
    assert len(means) == differing_columns(ratios) * CLASSES
    assert {row.place for row in means} == {"bottom", "middle", "top"}
    for row in means:
        layer = ratios.layers[row.layer]
        column = layer.ratios[:, layer.normalizers.index(row.normalizer)]
        own = [float(share) for share, target in zip(column, ratios.targets, strict=True) if target == row.target]
        assert row.images == len(own) == PER_CLASS["val"] and row.name == ratios.classes[row.target]
        assert row.mean == pytest.approx(sum(own) / len(own))
        assert row.difference == pytest.approx(row.mean - sum(map(float, column)) / len(column), abs=1e-9)


def test_extremes_are_those_of_sorting_and_their_pictures_what_the_network_saw(trained, ratios):
    found = extremes(ratios)
    assert len(found) == differing_columns(ratios) * 2 * EXTREMES
    for row in found:
        layer = ratios.layers[row.layer]
        column = layer.ratios[:, layer.normalizers.index(row.normalizer)].tolist()
        assert row.ratio == column[row.sample] == sorted(column, reverse=row.end == "highest")[row.rank - 1]
        assert row.target == ratios.targets[row.sample] and row.name == ratios.classes[row.target]
    pictures = read_pictures(trained.loaders["val"], [row.sample for row in found], (48, 48))
    assert pictures.keys() == {row.sample for row in found}
    for batch in trained.loaders["val"].eval_epoch((48, 48)):
        for sample, image in zip(batch.samples.tolist(), batch.images, strict=True):
            if sample in pictures:
                np.testing.assert_array_equal(pictures[sample], image.permute(1, 2, 0))


def test_what_is_the_same_for_all_samples_and_classes_without_images_are_left_out():
    shares = np.asfortranarray(np.float32([[0.25, 0.1, 0.65], [0.25, 0.3, 0.45], [0.25, 0.5, 0.25], [0.25, 0.7, 0.05]]))
    ratios = Ratios(["a", "b", "c"], np.array([0, 0, 2, 2]), {"layer": Layer(("bn", "in", "ln"), shares)})
    found = [(row.normalizer, row.name, row.images, round(row.mean, 6)) for row in class_means(ratios)]
    assert found == [("in", "a", 2, 0.2), ("in", "c", 2, 0.6), ("ln", "a", 2, 0.55), ("ln", "c", 2, 0.15)]
    assert {row.normalizer for row in extremes(ratios)} == {"in", "ln"}
    assert [row.sample for row in extremes(ratios) if (row.normalizer, row.end) == ("in", "highest")] == [3, 2, 1, 0]
    assert class_means(Ratios(["a"], np.full(4, -1), ratios.layers)) == []


def test_the_table_of_samples_holds_the_ratios_themselves_not_a_copy_of_them(ratios):
    table = samples_table(ratios)
    for name, layer in ratios.layers.items():
        for kind, column in zip(layer.normalizers, layer.ratios.T, strict=True):
            assert np.shares_memory(table[f"{name}/{kind}"], column)


@pytest.fixture(scope="module")
def told(finished, betons) -> str:
    """Returns what en-ratios printed of the finished run, in whose folder it left files."""
    return succeed("scripts/ratios.py", finished, "data.workers=1", "--data", betons).stdout


def test_the_command_leaves_tables_figures_and_a_part_of_a_page(finished, ratios, told):
    out = finished / "ratios"
    assert told == f"{out}: ratios of {VAL} images in 14 layers\n"
    figures = ["layers", "classes", "epochs", "samples_bottom", "samples_middle", "samples_top"]
    names = {f"{name}.{kind}" for name in figures for kind in ("svg", "pdf", "txt")} | {"ratios.html", "facts.json"}
    tables = ["samples", "layers", "classes", "epochs", "extremes"]
    assert {path.name for path in out.iterdir()} == names | {f"{n}.{k}" for n in tables for k in ("parquet", "csv")}
    samples = pyarrow.parquet.read_table(out / "samples.parquet")
    assert samples["sample"].to_pylist() == list(range(VAL))
    assert samples["class"].to_pylist() == [ratios.classes[target] for target in ratios.targets]
    for name, layer in ratios.layers.items():
        for kind, column in zip(layer.normalizers, layer.ratios.T, strict=True):
            np.testing.assert_allclose(samples[f"{name}/{kind}"].to_numpy(), column, atol=2e-6)
    digest = checkpoint.load(finished / "last.pt").digest
    assert samples.schema.metadata[b"sha256"].decode() == digest == read_facts(out)["sha256"]
    for name in tables:
        table, text = pyarrow.parquet.read_table(out / f"{name}.parquet"), pyarrow.csv.read_csv(out / f"{name}.csv")
        assert table.column_names == text.column_names and table.num_rows == text.num_rows > 0
    epochs = pyarrow.parquet.read_table(out / "epochs.parquet").to_pylist()
    logged = {(row["epoch"], layer, kind): share for row in rows(finished) for layer, means in row["ratios"].items()
              for kind, share in means.items()}  # fmt: skip
    assert {(row["epoch"], row["layer"], row["normalizer"]): row["mean"] for row in epochs} == logged
    page = (out / "ratios.html").read_text(encoding="ascii")
    assert page.count('<img src="data:image/svg+xml;base64,') == len(figures) == page.count("<figcaption>")
    assert digest in page and "http" not in page.replace("http://www.w3.org", "")


def test_a_normalizer_that_a_layer_leaves_out_is_a_gap_and_in_no_mean(tmp_path):
    """As min_pixels leaves `in` out: its ratio is 0 for every sample."""
    draws, layers = np.random.default_rng(0), {}
    for name, absent in (("stem", False), ("block.1", True), ("block.2", True), ("top", False)):
        shares = draws.dirichlet([2] * 3, 30)
        shares[:, 1] = 0 if absent else shares[:, 1]
        layers[name] = Layer(("bn", "in", "ln"), np.asfortranarray(shares / shares.sum(1, keepdims=True)))
    ratios = Ratios(["a", "b"], np.arange(30) % 2, layers)
    assert left_out(spreads(ratios)) == {"in": [2, 3]}
    of_kind = {name: {"bn": 0.5, "in": 0.0 if name[0] == "b" else 0.3, "ln": 0.4} for name in layers}
    epochs = [EpochRatios(epoch=epoch, ratios=of_kind) for epoch in (1, 2)]
    write_ratios(tmp_path, ratios, [], {}, epochs, {})
    assert "2 layers leave in out." in (tmp_path / "layers.txt").read_text()
    assert "in left out" in (tmp_path / "layers.svg").read_text()
    assert "mean of layers that mix it, in: 0.3 to 0.3" in (tmp_path / "epochs.txt").read_text()
    assert (tmp_path / "ratios.html").read_text(encoding="ascii").count(">left out<") == 2


def test_places_that_touch_are_hatched_as_one():
    assert spans([]) == [] and spans([3]) == [(2.5, 3.5)]
    assert spans([1, 2, 4, 5, 6]) == [(0.5, 2.5), (3.5, 6.5)]


def test_a_class_leans_only_where_its_interval_says_so(tmp_path):
    draws, targets = np.random.default_rng(1), np.arange(60) % 5
    column = np.float32(0.5) + draws.normal(0, 0.01, 60).astype(np.float32)
    shares = np.stack([column, 1 - column], 1)
    rows = class_means(Ratios([*"abcde"], targets, {"layer": Layer(("bn", "ln"), shares)}))
    for row in rows:
        own = column[targets == row.target].astype(np.float64)
        t = {1: 2.20099, 5: 3.10581}  # Student's t with 11 degrees of freedom, of 97.5 and of 99.5 %, from a table
        assert row.sd == pytest.approx(statistics.stdev(own.tolist()), rel=1e-4)
        for comparisons, value in t.items():
            assert row.half(comparisons) == pytest.approx(value * row.sd / math.sqrt(12), rel=1e-5)
    assert not any(row.leans(5) for row in rows)
    assert none_leans(rows[:5]).startswith("no class is shown to lean, none differs by more than 0.00")
    shares[targets == 3] += np.float32([0.05, -0.05])
    ratios = Ratios([*"abcde"], targets, {"layer": Layer(("bn", "ln"), shares)})
    assert {row.name for row in class_means(ratios) if row.leans(5)} >= {"d"}
    (most,) = [row.most for row in leanings(class_means(ratios)) if row.normalizer == "bn"]
    assert most.startswith("d +0.04") and "(n 12)" in most and "a" not in most.split(" (n")[0][1:]
    assert class_means(Ratios(["a"], np.array([0, -1]), {"layer": Layer(("bn",), column[:2, None])}))[0].sd is None


def test_many_classes_of_any_name_and_a_single_sample_are_shown_letter_for_letter(tmp_path):
    odd = ["<script>&", 'quote", $\\frac{1}{0}$', "虎\n猫", "x" * 300]
    targets = np.arange(3000) % 1000
    shares = np.asfortranarray(np.random.default_rng(0).dirichlet([1] * 4, 3000).astype(np.float32))
    shares[targets < 4] = np.float32(0.01) + np.eye(4, dtype=np.float32)[targets[targets < 4]] * np.float32(0.96)
    layer, names = Layer(("bn", "in", "ln", "gn"), shares), odd + [f"class {i}" for i in range(996)]
    many = Ratios(names, targets, {"layer": layer})
    few = Ratios(odd[:1], np.array([0]), {"layer": Layer(("bn",), np.ones((1, 1), np.float32))})
    for ratios, shown in ((many, many.classes), (few, [])):
        found = extremes(ratios)
        write_ratios(tmp_path, ratios, found, {row.sample: np.zeros((8, 8, 3), np.uint8) for row in found}, [], {})
        options = pyarrow.csv.ParseOptions(newlines_in_values=True)
        classes = pyarrow.csv.read_csv(tmp_path / "classes.csv", parse_options=options)
        assert classes.num_rows == 4 * len(shown) and set(classes["name"].to_pylist()) == set(shown)
        assert (tmp_path / "samples_bottom.svg").exists() == (len(found) > 0), "a picture of the ratios before"
        assert [row.sd is None for row in spreads(ratios)] == [len(ratios.targets) == 1] * len(spreads(ratios))
        assert pyarrow.csv.read_csv(tmp_path / "epochs.csv").num_rows == 0
        page = (tmp_path / "ratios.html").read_text(encoding="ascii")
        assert "<script>" not in page
        for name in ("&lt;script&gt;&amp; +0", "quote&#34;, $\\frac{1}{0}$ +0", "&#34382;\\n&#29483; +0"):
            assert page.count(name) == (2 if shown else 0)  # in the table, and in the words of the figure


class Noise:
    """A data set of seeded noise of any size, that notes how much memory this process holds before each batch."""

    name, classes, digest = "noise", ["one", "two"], ""

    def __init__(self, samples: int, batch: int) -> None:
        self.samples, self.batch, self.held = samples, batch, [0]

    def eval_epoch(self, size):
        generator = torch.Generator().manual_seed(0)
        for start in range(0, self.samples, self.batch):
            self.held.append(psutil.Process().memory_info().rss)
            samples = torch.arange(start, min(self.samples, start + self.batch))
            images = torch.randint(256, (len(samples), 3, *size), generator=generator)
            yield Batch(images.to(torch.uint8), samples % 2, samples, [])


def test_memory_grows_with_the_ratios_alone():
    """It grows by some 15 MB besides, whatever their number; were records or images kept, by as much again and more."""
    depth, samples = 30, 100_000
    model = nn.Sequential(*(ExemplarNorm2d(3, hidden=2) for _ in range(depth)))
    collect_ratios(model, Noise(5_000, 500), (10, 10), TO_CPU)
    noise = Noise(samples, 500)
    before = psutil.Process().memory_info().rss
    found = collect_ratios(model, noise, (10, 10), TO_CPU)
    noise.held.append(psutil.Process().memory_info().rss)
    size = sum(layer.ratios.nbytes for layer in found.layers.values())
    assert size == 4 * samples * depth * 3
    assert max(noise.held) - before < 2 * size


def test_ratios_that_would_mislead_end_the_pass():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = ExemplarNorm2d(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.norm(self.norm(images))
            return result

    with pytest.raises(RunError, match="norm ran 2 times in a pass"):
        collect_ratios(Twice(), Noise(4, 2), (4, 4), TO_CPU)
    broken = nn.Sequential(ExemplarNorm2d(3))
    with torch.no_grad():
        broken[0].gate[2].bias.fill_(torch.nan)
    with pytest.raises(RunError, match="the ratios of 0 are not finite"):
        collect_ratios(broken, Noise(4, 2), (4, 4), TO_CPU)
    with pytest.raises(RunError, match="ratios of 4 images, expected the 5 of the set"):
        collect_ratios(nn.Sequential(ExemplarNorm2d(3)), Short(5, 2), (4, 4), TO_CPU)


class Short(Noise):
    """Noise that ends one image early."""

    def eval_epoch(self, size):
        self.samples -= 1
        yield from super().eval_epoch(size)
        self.samples += 1


def test_a_resumed_run_logs_the_ratios_of_each_epoch_once(train, finished):
    run = shutil.copytree(finished, finished.with_name("resumed"))
    with (run / "ratios.jsonl").open("a") as log:
        log.write('{"epoch": 2, "rat')
    train("resumed", f"resume={checkpoint.step_path(run, Position(epoch=1))}")
    assert [row["epoch"] for row in rows(run)] == [1, 2] and rows(run) == rows(finished)


def test_a_report_shows_the_ratios_of_a_run_as_it_is_now_alone(train, finished, told, tmp_path, capsys):
    run = shutil.copytree(finished, finished.with_name("shown"))
    section = ratios_section(run, tmp_path)
    assert "after epoch 2 by layer" in section and f"over the {VAL} images of val of clothes" in section
    assert section.count("after epoch 2: ") == 6 and "warning" not in capsys.readouterr().err
    train("shown", f"resume={run}", "train.epochs=3")
    assert ratios_section(run, tmp_path) == ""
    assert f"{run / 'ratios'}: ratios after epoch 2, of the checkpoint " in capsys.readouterr().err
    first = checkpoint.step_path(run, Position(epoch=1))
    train("shown", f"resume={first}", "task.flip=0.0")  # another epoch 2
    assert ratios_section(run, tmp_path) == ""
    assert f"{run / 'ratios'}: ratios after epoch 2, of the checkpoint " in capsys.readouterr().err


def ratios_section(run: Path, out: Path) -> str:
    """Returns what a report of a run says of its ratios, besides those of its log."""
    write_report([str(run)], out)
    text = (out / "report.md").read_text().partition("## Ratios")[2].partition("\n## ")[0]
    assert text.count("(figures/ratios_by_") == 2
    own = [line for line in text.splitlines() if "(figures/ratios_by_" not in line]
    return "\n".join(own).replace("&#95;", "_").strip()


def test_ratios_that_were_not_written_to_the_end_are_none(finished, trained, ratios, tmp_path):
    def write(out: Path) -> None:
        write_ratios(out, ratios, [], {}, [], describe(trained, "val"))

    write(tmp_path)
    assert read_facts(tmp_path)["sha256"] == trained.saved.digest
    (tmp_path / "classes.csv.partial").mkdir()  # stands where a file is written first
    with pytest.raises(RunError, match=r"classes.csv.partial: .*: not written"):
        write(tmp_path)
    assert read_facts(tmp_path) == {} and (tmp_path / "layers.csv").exists()


def test_without_pyarrow_the_tables_are_csv_alone_and_the_same(tmp_path, monkeypatch):
    shares = np.asfortranarray(np.random.default_rng(0).dirichlet([1] * 3, 20).astype(np.float32))
    ratios = Ratios(["a", 'b, "c"'], np.arange(20) % 3 - 1, {"layer": Layer(("bn", "in", "ln"), shares)})
    with_it, without = tmp_path / "with", tmp_path / "without"
    for folder in (with_it, without):
        folder.mkdir()
        write_ratios(folder, ratios, [], {}, [], {"a": "b"})
        assert (folder / "samples.parquet").exists()
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as Python marks what cannot be imported
    write_ratios(without, ratios, [], {}, [], {"a": "b"})
    assert not [*without.glob("*.parquet")] and read_facts(without) == {"a": "b"}
    for table in with_it.glob("*.csv"):
        assert (without / table.name).read_bytes() == table.read_bytes()
    with (without / "samples.csv").open(newline="") as file:
        samples = [*csv.DictReader(file)]
    assert [(row["target"], row["class"]) for row in samples[:3]] == [("", ""), ("0", "a"), ("1", 'b, "c"')]
    assert [np.float32(row["layer/in"]) for row in samples] == shares[:, 1].tolist()


def test_a_run_without_en_logs_no_ratios_and_is_refused(train, look):
    run = train("bn", "norm.name=bn", "train.epochs=1")
    assert rows(run) == [] and read_epochs(run) == []
    assert "norm.name=bn: expected a network with layers of exemplar normalization" in look(run)
    assert not (run / "ratios" / "ratios.html").exists()


@pytest.fixture
def look(monkeypatch, capsys) -> Callable[..., str]:
    """The one line with which en-ratios, run in this process, refuses its arguments."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ratios.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and line.startswith("error: ")
        return str(line)

    return run


def test_mistakes_are_refused_in_one_line(finished, betons, look, tmp_path, monkeypatch):
    assert f"{tmp_path / 'nothing'}: no such file" in look(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "last.pt: no such file" in look(tmp_path / "empty")
    assert f"{tmp_path / 'empty'}" in look(finished, "--data", tmp_path / "empty")
    assert "nowhere" in look(finished, "--data", "nowhere")
    other = shutil.copytree(betons, tmp_path / "other")
    (other / "classes.json").write_text(json.dumps(["a", "b", "c", "d"]))
    assert f"data.root={other}: expected the classes that {finished / 'last.pt'} was trained on" in look(
        finished, "--data", other
    )
    (tmp_path / "file").write_text("")
    assert f"--out {tmp_path / 'file'}" in look(finished, "--out", tmp_path / "file")
    assert "--split" in look(finished, "--split", "test")
    assert "optim.lrr" in look(finished, "optim.lrr=3")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2: expected one process" in look(finished)
