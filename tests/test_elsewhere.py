"""A network on sets that it was not trained on, matched by their classes, recomputed by hand."""

import json

import numpy as np
import pytest
import torch
from commands import command, refused, succeed
from other_sets import MATCHED, WNIDS, picture, write_corrupted, write_folders_of
from readers import reading

from en.build import build_to_device
from en.data import LOADERS
from en.data.crops import CentreCrop
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source
from en.data.sources.imagenet_c import MAIN
from en.distributed.ranks import Ranks
from en.evaluation.coverage import class_id, cover
from en.evaluation.groups import ALEXNET, mean_corruption_error
from en.evaluation.trained import open_trained

TRAINED = WNIDS[:12]
RECIPE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}}
norm: {name: gn}
data: {root: unset, resolution: 32, workers: 1, loader: folder}
train: {epochs: 5, batch_size: 24}
optim: {lr: 0.05}
schedule: {warmup_epochs: 1}
device: cpu
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a trained run and the set that it was trained on, of TRAINED classes."""
    place = tmp_path_factory.mktemp("home")
    for split, count in {"train": 8, "val": 3}.items():
        write_folders_of(place / "images" / split, TRAINED, count)
    (place / "recipe.yaml").write_text(RECIPE)
    succeed("train.py", place / "recipe.yaml", f"data.root={place / 'images'}", f"run_dir={place / 'run'}")
    return place


def outputs_of(run, root, split="test", share=0.875):
    """The outputs of the run's network for each sample of a set of image files, and the set's labels of them."""
    trained = open_trained(str(run), [], Ranks(0, 1, 0, 1), ())
    to_device, model = build_to_device(trained.config, torch.device("cpu")), trained.model.eval()
    loader = LOADERS["folder"](root, split, reading(24, workers=0))
    loader._reading = loader._loader.dataset._reading
    assert loader._reading.evaluation_crop == CentreCrop(share)
    with torch.inference_mode():
        found = [model(to_device(b.images, b.targets)[0]).numpy() for b in loader.eval_epoch((32, 32))]
    return np.concatenate(found), [loader.classes[label] for label in loader.labels()], loader.names()


def rows_of(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_runs_own_set_has_the_same_scores_among_others_prepared_or_not(home, tmp_path):
    prepare(read_source(str(home / "images")), tmp_path / "out", Storage("raw"), 1, False)
    plain = rows_of(succeed("eval.py", home / "run"))[0]
    done = succeed("eval.py", home / "run", "--on", home / "images", tmp_path / "out", home / "images" / "val")
    files, prepared, alone = rows_of(done)
    assert files == {
        "trained_on": "images", "on": "images", "split": "val", "classes": 12, "of_classes": 12, "images": 36,
        "of_images": 36, **plain,
    }  # fmt: skip
    assert prepared == files
    assert alone == files | {"on": "val", "split": "test"}
    heading, first, *_, last = [line for line in done.stderr.splitlines() if " of " in line or "trained on" in line]
    assert heading.split() == ["trained", "on", "on", "classes", "images", "top-1", "%", "top-5", "%"]
    assert "images (val)" in first and "12 of 12  36 of 36" in last


def test_a_set_that_shares_some_classes_is_scored_on_these_alone_on_any_number_of_ranks(home, tmp_path):
    names = [WNIDS[500], WNIDS[9], WNIDS[2], f"{WNIDS[4]}_mud turtle", WNIDS[11], WNIDS[0], WNIDS[600], WNIDS[7]]
    root = write_folders_of(tmp_path / "in" / "test", names, 3).parent
    outputs, labels, _ = outputs_of(home / "run", root)
    shared = [0, 2, 4, 7, 9, 11]
    rows = [row for row, label in enumerate(labels) if label[:9] in TRAINED]
    cut, targets = outputs[rows][:, shared], [shared.index(TRAINED.index(labels[row][:9])) for row in rows]
    order = (-cut).argsort(1)
    top1, top5 = (100 * np.mean([t in o[:k] for t, o in zip(targets, order, strict=True)]) for k in (1, 5))
    log_softmax = cut - np.log(np.exp(cut).sum(1, keepdims=True))
    loss = -np.mean([row[target] for row, target in zip(log_softmax, targets, strict=True)])
    found = [rows_of(succeed("eval.py", home / "run", "--on", root, ranks=ranks))[0] for ranks in (0, 2, 3)]
    assert (found[0]["classes"], found[0]["of_classes"]) == (6, 8)
    assert (found[0]["images"], found[0]["of_images"]) == (18, 24)
    assert (found[0]["top1"], found[0]["top5"]) == (pytest.approx(top1), pytest.approx(top5))
    assert found[0]["loss"] == pytest.approx(loss, rel=1e-4)
    for other in found[1:]:
        rounded = {"loss": 0, "ece": 0}  # sums of floats, in another order
        assert other | rounded == found[0] | rounded
        assert all(other[key] == pytest.approx(found[0][key], 1e-4) for key in rounded)


def test_cutting_before_top_k_is_another_figure_than_cutting_after(home, tmp_path):
    root = write_folders_of(tmp_path / "imagenet-r", TRAINED[:3], 8)
    outputs, labels, _ = outputs_of(home / "run", root)
    targets = [TRAINED.index(label) for label in labels]
    among_all = 100 * np.mean(outputs.argmax(1) == targets)
    among_three = 100 * np.mean(outputs[:, :3].argmax(1) == targets)
    row = rows_of(succeed("eval.py", home / "run", "--on", root))[0]
    assert row["top1"] == pytest.approx(among_three) and among_three > among_all


def test_imagenet_v2s_numbers_are_matched_by_what_they_stand_for(home, tmp_path):
    root = write_folders_of(tmp_path / MATCHED, [0, 1, 2, 3, 10, 11, 100], 2)
    outputs, labels, _ = outputs_of(home / "run", root)
    shared = [0, 1, 2, 3, 10, 11]
    rows = [row for row, label in enumerate(labels) if label in TRAINED]
    right = [shared[outputs[row, shared].argmax()] == TRAINED.index(labels[row]) for row in rows]
    row = rows_of(succeed("eval.py", home / "run", "--on", root))[0]
    assert (row["on"], row["classes"], row["images"]) == ("ImageNet-V2 matched-frequency", 6, 12)
    assert row["top1"] == pytest.approx(100 * np.mean(right))


def test_imagenet_cs_errors_and_mce_are_those_of_its_protocol(home, tmp_path):
    root = write_corrupted(tmp_path / "c", (*MAIN, "spatter"), range(1, 6), TRAINED[:3])
    outputs, labels, names = outputs_of(home / "run", root, share=1.0)
    wrong = outputs[:, :3].argmax(1) != [TRAINED.index(label) for label in labels]
    errors = {
        kind: [100 * np.mean(wrong[[name.startswith(f"{kind}/{level}/") for name in names]]) for level in range(1, 6)]
        for kind in (*MAIN, "spatter")
    }
    assert len({tuple(row) for row in errors.values()}) > 1
    found = [rows_of(succeed("eval.py", home / "run", "--on", root, ranks=ranks))[0] for ranks in (0, 3)]
    for each in found:
        assert each["errors"].keys() == errors.keys()
        assert all(each["errors"][kind] == pytest.approx(errors[kind]) for kind in errors)
    mce = np.mean([np.mean(errors[kind]) / ALEXNET[kind] for kind in MAIN])
    assert found[0]["mce"] == found[1]["mce"] == pytest.approx(mce)
    (root / "fog").rename(tmp_path / "fog")
    fewer = rows_of(succeed("eval.py", home / "run", "--on", root))[0]
    assert "mce" not in fewer and fewer["errors"].keys() == errors.keys() - {"fog"}


def test_mce_is_100_for_alexnets_own_errors_and_leaves_the_extra_corruptions_out():
    errors = {kind: [100 * error] * 5 for kind, error in ALEXNET.items()}
    assert mean_corruption_error(errors) == pytest.approx(100)
    assert mean_corruption_error({**errors, "spatter": [50.0] * 5}) == pytest.approx(100)
    assert mean_corruption_error({**errors, "fog": [1.0, None, 1.0, 1.0, 1.0]}) is None
    assert ALEXNET["elastic_transform"] == 0.646056 and len(ALEXNET) == 15


def test_reals_labels_are_joined_by_name_and_images_without_labels_left_out(home, tmp_path):
    numbers = [1, 2, 30, 4, 50_000, 6]
    root = tmp_path / "imagenet"
    for place, number in enumerate(numbers):
        picture(root / "val" / TRAINED[place % 3] / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    outputs, _, names = outputs_of(home / "run", root, "val")
    predicted = {
        name.split("/")[1]: TRAINED.index(TRAINED[row[:3].argmax()]) for name, row in zip(names, outputs, strict=True)
    }
    labels = [[]] * 50_000
    labels[0], labels[1], labels[29] = [999], [], [(predicted["ILSVRC2012_val_00000030.JPEG"] + 1) % 3, 999]
    labels[3] = [999, predicted["ILSVRC2012_val_00000004.JPEG"]]
    labels[49_999] = [predicted["ILSVRC2012_val_00050000.JPEG"]]
    (tmp_path / "real.json").write_text(json.dumps(labels))
    for ranks in (0, 2):
        done = succeed("eval.py", home / "run", "--on", root, "--real", tmp_path / "real.json", ranks=ranks)
        own, real = rows_of(done)
        assert (own["on"], own["images"], real["on"]) == ("imagenet", 6, "imagenet, ReaL")
        # Of six images three have a label that is covered: of these two are right.
        assert (real["images"], real["top1"]) == (3, pytest.approx(200 / 3))
    told = refused(command("eval.py", home / "run", "--on", home / "images", "--real", tmp_path / "real.json"))
    assert "--real: expected a set of files ILSVRC2012_val_*" in told


KINDS = ("none", "full:7", "batch:7", "partial:4:7")


@pytest.fixture(scope="module")
def adaptable(home):
    """A run as that of `home`, whose normalizers keep running averages."""
    keys = [f"data.root={home / 'images'}", f"run_dir={home / 'en'}", "norm.name=en", "train.epochs=2"]
    succeed("train.py", home / "recipe.yaml", *keys)
    return home / "en"


def test_statistics_of_the_runs_own_set_are_the_same_among_others(adaptable, home):
    expected = rows_of(succeed("eval.py", adaptable, "--statistics", *KINDS, "--seed", 3))
    done = succeed("eval.py", adaptable, "--on", home / "images", "--statistics", *KINDS, "--seed", 3)
    assert len({row["top1"] for row in expected}) > 1
    for own, other in zip(rows_of(done), expected, strict=True):
        assert {key: own[key] for key in other if key in own} == {key: other[key] for key in other if key in own}
    lines = [line for line in done.stderr.splitlines() if "images (val)" in line]
    assert [line.split()[3] for line in lines] == [*KINDS]


def test_statistics_are_of_the_covered_images_and_of_each_corruption_by_itself(adaptable, tmp_path):
    names = [*TRAINED[3:7], WNIDS[500]]
    whole = write_corrupted(tmp_path / "c", ("fog", "snow"), (1, 2), names)
    covered = write_corrupted(tmp_path / "few", ("fog", "snow"), (1, 2), names[:4])
    parts = [covered / place for place in ("snow/1", "snow/2", "fog/1", "fog/2")]
    alone = rows_of(succeed("eval.py", adaptable, "--on", *parts, "--statistics", "full:2", "batch:2"))
    for ranks in (0, 2, 3):
        done = succeed("eval.py", adaptable, "--on", whole, "--statistics", "full:2", "batch:2", ranks=ranks)
        for kind, row in zip(("full:2", "batch:2"), rows_of(done), strict=True):
            own = [each for each in alone if each["statistics"] == kind]
            assert (row["statistics"], row["images"], row["of_images"]) == (kind, 16, 20)
            for kind_of_noise, places in {"snow": own[:2], "fog": own[2:]}.items():
                each = [part["errors"][kind_of_noise][level] for level, part in enumerate(places)]
                assert row["errors"][kind_of_noise][:2] == each
            assert row["loss"] == pytest.approx(np.mean([each["loss"] for each in own]), rel=1e-5)


def test_sets_whose_names_are_numbers_are_refused_even_where_they_look_equal(home, tmp_path):
    numbers = write_folders_of(tmp_path / "numbers" / "val", range(30)).parent
    told = refused(command("eval.py", home / "run", "--on", numbers))
    assert f"--on {numbers}: its classes are called '0'; '1'; '10'; and 27 more, numbers that do not say" in told
    other = write_folders_of(tmp_path / "other" / "val", reversed(range(12))).parent
    for split, count in {"train": 2, "val": 1}.items():
        write_folders_of(tmp_path / "mine" / split, range(12), count)
    keys = [f"data.root={tmp_path / 'mine'}", f"run_dir={tmp_path / 'run'}"]
    succeed("train.py", home / "recipe.yaml", *keys)
    told = refused(command("eval.py", tmp_path / "run", "--on", other))
    assert f"--on {other}: the network's classes are called '0'; '1'; '10'; and 9 more, numbers" in told
    assert "warning" not in succeed("eval.py", tmp_path / "run").stderr
    done = succeed("eval.py", tmp_path / "run", f"data.root={other}")
    assert done.stderr.count("nothing says that they are the same") == 1


def test_what_cannot_be_scored_on_is_refused_in_one_line_before_anything_is_scored(home, tmp_path):
    strangers = write_folders_of(tmp_path / "strangers", [*WNIDS[700:705], TRAINED[0]])
    told = refused(command("eval.py", home / "run", "--on", home / "images", strangers))
    assert "1 of its 6 classes" in told and "are among the network's 12" in told and "or WordNet id" in told
    alone = write_folders_of(tmp_path / "alone" / "train", TRAINED).parent
    assert "no split val or test, only train" in refused(command("eval.py", home / "run", "--on", alone))
    assert "missing" in refused(command("eval.py", home / "run", "--on", tmp_path / "missing"))
    for name, value in {"recalibrate": 3, "corrupt": "fog"}.items():
        told = refused(command("eval.py", home / "run", "--on", alone, f"--{name}", value))
        assert f"--on with --{name}: expected one of them" in told
    assert "--seed 3: expected --statistics or" in refused(command("eval.py", home / "run", "--on", alone, "--seed", 3))
    for late in ([30_000], ["40", "--protocol", "mmseg"]):  # the second of several sizes or protocols
        assert rows_of(done := command("eval.py", home / "run", "--at", 32, *late)) == [] and refused(done)
    assert "--real without --on" in refused(command("eval.py", home / "run", "--real", tmp_path / "real.json"))


def test_a_class_is_what_its_name_says_with_or_without_words_after_its_wordnet_id():
    assert [class_id(name) for name in ("n01440764", "n01440764 tench", "n01440764_tench", "n014407641", "tench")] == [
        "n01440764", "n01440764", "n01440764", "n014407641", "tench",
    ]  # fmt: skip
    assert [class_id(name) for name in ("7", "007", "-1", "1.0", " ")] == [None] * 5
    found = cover(["a", "7", "b", "c"], ["7", "c", "x", "a"], np.array([0, 3, 1, 2, 3]))
    assert (found.classes, found.outputs.tolist(), found.places.tolist()) == (["a", "c"], [0, 3], [-1, 1, -1, 0])
    assert found.samples.tolist() == [1, 2, 4] and not found.is_all
    with pytest.raises(ValueError, match="two of its classes are 'n01440764'"):
        cover(["a", "b"], ["n01440764", "n01440764 tench"], np.array([0]))
