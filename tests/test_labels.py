"""Noisy labels: counts of every rule, their file, what loaders give, and what becomes of the samples in training."""

import csv
import json
import random
import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import kill_loop
import numpy as np
import pytest
import torch
from commands import ROOT, command, environment_of, fork, refused, succeed
from kill_loop import Case, Place, differences, rows
from report_runs import report, table
from report_runs import run as report_run

from en.build import open_loaders
from en.config.reading import load_config
from en.data.labels import Sidecar, read_sidecar, write_sidecar
from en.data.labels.rules import CIFAR10, RULES, by_names, relabel
from en.data.labels.sidecar import of_samples
from en.data.labels.table import labels_from, read_table
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.norm.registry import AS_PUBLISHED
from en.runs.position import Position
from en.runs.row import OUTCOMES, Row, shares
from en.suites.plan import Planned
from en.suites.state import progress_of
from en.training.record import EpochRecord

REAL = ROOT.parent / "shared" / "data"  # images and labels that may be used and not shipped
UNMIXED = ["task.mixup=0", "task.cutmix=0", "norm.name=bn", "model.dropout=0"]
SIZES = [40, 17, 23, 1]  # samples of each class
RATES = ["0.4", "0.05", "0.335", "1"]


def half_up(number: Fraction) -> int:
    return int(number + Fraction(1, 2))


@pytest.fixture(scope="module")
def some() -> tuple[list[str], np.ndarray]:
    labels = np.repeat(np.arange(len(SIZES)), SIZES)
    return [f"{label}/{number:03}.jpg" for number, label in enumerate(labels)], labels


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_exact_counts_in_all_in_each_class_and_of_each_pair_of_classes(some, rule, rate):
    names, clean = some
    share, classes = Fraction(rate), len(SIZES)
    given = relabel(names, clean, RULES[rule](classes), share, 0)
    counts = np.array([[((clean == own) & (given == other)).sum() for other in range(classes)]
                       for own in range(classes)])  # fmt: skip
    assert (counts.sum(1) == SIZES).all()
    wrong = counts.sum(1) - counts.diagonal()
    if rule == "symmetric-with-true":
        chosen = [share * size for size in SIZES]
        for own in range(classes):
            others = [counts[own, other] for other in range(classes) if other != own]
            assert max(others) - min(others) <= 1 and abs(sum(others) - chosen[own] * 3 / 4) < 2
        return
    assert wrong.sum() == half_up(share * sum(SIZES))
    assert all(abs(Fraction(int(count)) - share * size) < 1 for count, size in zip(wrong, SIZES, strict=True))
    for own in range(classes):
        others = [counts[own, other] for other in range(classes) if other != own]
        if rule == "pair":
            assert counts[own, (own + 1) % classes] == wrong[own]
        else:
            assert max(others) - min(others) <= 1


def test_asymmetric_labels_are_wrong_in_the_classes_that_are_named_alone_and_exactly_so():
    classes = sorted({*CIFAR10, *CIFAR10.values(), "frog", "ship"})
    clean = np.repeat(np.arange(10), 50)
    given = relabel([str(number) for number in range(500)], clean, by_names(CIFAR10, classes, ""), Fraction("0.4"), 3)
    found = Counter((classes[own], classes[other]) for own, other in zip(clean, given, strict=True) if own != other)
    assert found == dict.fromkeys(CIFAR10.items(), 20) and (given != clean).mean() == 0.2  # the literature's 40 %


@pytest.mark.parametrize("rule", RULES)
def test_a_label_depends_on_seed_and_names_and_not_on_the_order_of_the_set(some, rule):
    names, clean = some
    givable, share = RULES[rule](len(SIZES)), Fraction("0.4")
    given = dict(zip(names, relabel(names, clean, givable, share, 0), strict=True))
    order = np.random.default_rng(0).permutation(len(names))
    again = relabel([names[place] for place in order], clean[order], givable, share, 0)
    assert [given[names[place]] for place in order] == again.tolist()
    assert relabel(names, clean, givable, share, 1).tolist() != list(given.values())


def sets(tmp_path: Path, folders: Path, betons: Path) -> dict[str, Path]:
    """Copies that a sidecar may be written into."""
    return {kind: Path(shutil.copytree(root, tmp_path / kind / "clothes"))
            for kind, root in (("folder", folders), ("ffcv", betons))}  # fmt: skip


def read_by_hand(path: Path) -> dict[str, tuple[str, str]]:
    """Clean and given class by name."""
    with path.open(newline="") as file:
        assert file.readline().startswith("# {")
        return {row["name"]: (row["clean"], row["given"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory, folders, betons) -> Place:
    """Both forms of the set, each with labels/symmetric-0.4-s0.csv, and the recipe without mixing."""
    made = sets(tmp_path_factory.mktemp("noisy"), folders, betons)
    for root in made.values():
        succeed("scripts/label_data.py", root, "--rule", "symmetric", "--rate", 0.4)
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(kill_loop.RECIPE)
    return Place(recipe, made)


SIDECAR, LABELS = "labels/symmetric-0.4-s0.csv", "data.labels=symmetric-0.4-s0"


def test_the_command_writes_the_same_labels_beside_either_form_of_a_set_and_prints_their_counts(noisy):
    assert (noisy.data["ffcv"] / SIDECAR).read_bytes() == (noisy.data["folder"] / SIDECAR).read_bytes()
    done = succeed("scripts/label_data.py", noisy.data["ffcv"], "--rule", "symmetric", "--rate", "0.4", "--overwrite")
    found = read_by_hand(noisy.data["ffcv"] / SIDECAR)
    assert len(found) == 96 and sum(clean != given for clean, given in found.values()) == 38
    assert done.stdout.splitlines()[0] == "38 of 96 labels wrong, 39.58 %"
    classes = sorted({clean for clean, _ in found.values()})
    counted = Counter(found.values())
    printed = [line.split()[-4:] for line in done.stdout.splitlines()[2:6]]
    assert printed == [[str(counted[own, other]) for other in classes] for own in classes]
    assert done.stdout.splitlines()[-1].endswith("data.labels=symmetric-0.4-s0 trains with it")


@pytest.mark.parametrize("rank", [0, 1])
def test_loaders_give_the_labels_of_the_sidecar_and_touch_neither_images_nor_evaluation(noisy, kind, rank):
    root, at = noisy.data[kind], Ranks(rank, 2, rank, 2)
    options = [f"data.loader={kind}", f"data.root={root}", *UNMIXED]
    plain = open_loaders(load_config(str(noisy.recipe), options), at, ("train", "val"))
    given = open_loaders(load_config(str(noisy.recipe), [*options, LABELS]), at, ("train", "val"))
    by_name, names = read_by_hand(root / SIDECAR), given["train"].names()
    changed = 0
    for ours, theirs in zip(
        given["train"].train_epoch(1, (24, 24)), plain["train"].train_epoch(1, (24, 24)), strict=True
    ):
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.samples, theirs.samples)
        classes = given["train"].classes
        assert [classes[target] for target in ours.targets] == [by_name[names[sample]][1] for sample in ours.samples]
        assert [classes[target] for target in theirs.targets] == [by_name[names[sample]][0] for sample in ours.samples]
        changed += int((ours.targets != theirs.targets).sum())
    assert changed > 10 and given["train"].digest == plain["train"].digest
    for ours, theirs in zip(given["val"].eval_epoch((24, 24)), plain["val"].eval_epoch((24, 24)), strict=True):
        assert torch.equal(ours.targets, theirs.targets)
    for loader in (*plain.values(), *given.values()):
        loader.close()


def by_hand(saved: Path, root: Path, ranks: int, accumulation: int, epoch: int, steps: int = 4) -> dict[str, float]:
    """Counts what came of an epoch's samples, from saved outputs, the samples' order and the sidecar alone."""
    labels = list(read_by_hand(root / SIDECAR).values())
    classes = sorted({clean for clean, _ in labels})
    order = np.random.default_rng([0, epoch]).permutation(len(labels))
    counts: Counter[str] = Counter()
    for rank in range(ranks):
        lines = [json.loads(line) for line in (saved / f"{rank}.jsonl").read_text().splitlines()]
        size = 24 // (ranks * accumulation)
        for micro in range(steps * accumulation):
            start = (micro * ranks + rank) * size
            line = lines[epoch * steps * accumulation + micro]
            for place, sample in enumerate(order[start : start + size]):
                clean, given = labels[sample]
                assert classes[line["targets"][place]] == given
                predicted = classes[int(np.argmax(line["outputs"][place]))]
                group = "right_labels" if clean == given else "wrong_labels"
                counts[group] += 1
                named = {clean: "true"} if clean == given else {given: "given", clean: "true"}
                counts[f"{group}_{named.get(predicted, 'other')}"] += 1
    groups = {name: counts[name] for name in ("wrong_labels", "right_labels")}
    return groups | {name: counts[name] / groups[name[:12]] for name in OUTCOMES}


@pytest.mark.parametrize(("kind", "ranks", "accumulation"), [("ffcv", 1, 2), ("folder", 2, 1), ("ffcv", 3, 2)])
def test_the_log_tells_what_saved_predictions_tell_on_any_number_of_ranks(noisy, tmp_path, kind, ranks, accumulation):
    case = Case(kind, 0, [*UNMIXED, f"train.accumulation={accumulation}", "train.epochs=2", "optim.lr=0.2"])
    run, line = tmp_path / "run", [LABELS]
    arguments = kill_loop.line(noisy, case, run, *line)[1:]
    environment = environment_of(SAVED=str(tmp_path))
    done = fork([str(ROOT / "tests" / "saving_task.py"), *arguments], environment, ranks if ranks > 1 else 0)
    _, errors = done.communicate()
    assert done.returncode == 0, errors
    log = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    for epoch, row in enumerate(log):
        expected = by_hand(tmp_path, noisy.data[kind], ranks, accumulation, epoch)
        assert {name: row[name] for name in expected} == expected
        assert row["wrong_labels"] + row["right_labels"] == 96 and row["wrong_labels"] == 38
    shown = kill_loop.shown(run)
    for name in OUTCOMES:
        assert [value for _, value in shown[f"train/{name}"]] == pytest.approx([row[name] for row in log])
    assert "38 of 96 wrong, 39.58 %" in errors and "of wrong labels memorized" in errors


@pytest.mark.slow(reason="kills runs of one and three ranks")
@pytest.mark.parametrize(("kind", "ranks"), [("folder", 0), ("ffcv", 3)])
def test_a_run_on_given_labels_that_is_killed_and_resumed_ends_bit_for_bit_as_the_untouched_one(
    noisy, tmp_path, kind, ranks
):
    options = [*UNMIXED, LABELS, "train.epochs=2", "optim.lr=0.2"]
    case = Case(kind, ranks, options)
    kill_loop.run_untouched(noisy, case, tmp_path / "whole")
    kills = kill_loop.run_killed(noisy, case, tmp_path / "run", random.Random(0), 2)
    assert kills == 2 and differences(tmp_path / "whole", tmp_path / "run") == []
    assert {"wrong_labels_given", "right_labels_true"} <= rows(tmp_path / "run")[1].keys()
    start = json.loads((tmp_path / "run" / "provenance.json").read_text())["starts"][-1]["labels"]
    assert (start["wrong"], start["samples"], start["origin"]["rate"]) == (38, 96, 0.4)


@pytest.mark.parametrize("ranks", [1, 3])
def test_counts_go_on_with_another_number_of_ranks(noisy, ranks):
    config = load_config(str(noisy.recipe), [f"data.root={noisy.data['ffcv']}", LABELS])
    loader = open_loaders(config, Ranks(0, 1, 0, 1), ("train",))["train"]
    samples, records = torch.arange(96), [EpochRecord(torch.device("cpu")) for _ in range(2)]
    for rank, record in enumerate(records):
        mine = samples[rank::2]
        for part in mine.split(30):
            record.see(loader.given[part], part, loader)
        assert "outcomes" not in record.state_dict()  # of a step that does not count yet
        record.add(torch.tensor(1.0), None, Position(step=1))
        record.see(loader.clean[mine], mine, loader)
        record.leave_out()
    held = [record.state_dict() for record in records]
    resumed = [EpochRecord(torch.device("cpu")) for _ in range(ranks)]
    for rank, record in enumerate(resumed):
        record.load_state_dict(held, Ranks(rank, ranks, rank, ranks))
    resumed[-1].see(loader.clean, samples, loader)
    resumed[-1].add(torch.tensor(1.0), None, Position(step=2))
    total = np.sum([record.state_dict()["outcomes"] for record in resumed], 0)
    assert total.tolist() == [38, 38, 0, 2 * 58, 0]
    loader.close()


def test_mixed_images_count_for_no_sample_and_the_run_says_so(noisy, tmp_path):
    case = Case("ffcv", 0, ["task.mixup=0.2", "task.cutmix=0", "train.epochs=1", LABELS])
    done = kill_loop.train(noisy, case, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "memorization not counted: images are mixed" in done.stderr
    assert not rows(tmp_path / "run")[0].keys() & {*OUTCOMES, "wrong_labels"}


def mistaken(root: Path, change) -> None:
    """Rewrites the sidecar of a set, its digest as it should be."""
    sidecar = read_sidecar(root / SIDECAR, json.loads((root / "classes.json").read_text()))
    write_sidecar(change(sidecar), root / SIDECAR)


def with_others(sidecar: Sidecar) -> Sidecar:
    return replace(sidecar, names=[f"x{name}" for name in sidecar.names])


def with_more(sidecar: Sidecar) -> Sidecar:
    clean, given = (np.append(each, 0) for each in (sidecar.clean, sidecar.given))
    return replace(sidecar, names=[*sidecar.names, "another.jpg"], clean=clean, given=given)


def with_other_classes(sidecar: Sidecar) -> Sidecar:
    return replace(sidecar, classes=[f"{name}s" for name in sidecar.classes])


def with_other_clean(sidecar: Sidecar) -> Sidecar:
    return replace(sidecar, clean=sidecar.clean[::-1].copy())


MISTAKES = {
    "names": (with_others, "no label of"),
    "more": (with_more, "labels of another.jpg, which the set has not: expected those of the 96 training samples"),
    "classes": (with_other_classes, "expected the 4 classes of the set"),
    "clean": (with_other_clean, "as in the set: the labels are of another one"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_labels_of_another_set_are_refused_in_a_line(noisy, betons, tmp_path, mistake):
    root = Path(shutil.copytree(noisy.data["ffcv"], tmp_path / "clothes"))
    change, words = MISTAKES[mistake]
    mistaken(root, change)
    options = [f"data.root={root}", LABELS, f"run_dir={tmp_path / 'run'}"]
    line = refused(command("train.py", noisy.recipe, *options))
    assert words in line and SIDECAR in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory: expected a file that en-labels has written"),
        (b"name,clean,given\n", "expected a file that en-labels has written"),
        (b"# {not JSON\n", "expected a file that en-labels has written"),
        (b"\xff\xfe", "no UTF-8"),
        (b'# {"digest": "00"}\nname,clean,given\n', "digest '00': expected that of its lines: changed since"),
    ],
)
def test_a_file_that_holds_no_labels_or_was_changed_is_refused_in_a_line(noisy, tmp_path, content, words):
    path = tmp_path / "mine.csv"
    if content is not None:
        path.write_bytes(content)
    options = [f"data.root={noisy.data['ffcv']}", f"data.labels={path}", f"run_dir={tmp_path / 'run'}"]
    assert words in refused(command("train.py", noisy.recipe, *options))


def test_a_label_that_was_changed_by_hand_is_found(noisy, tmp_path):
    root = Path(shutil.copytree(noisy.data["ffcv"], tmp_path / "clothes"))
    lines = (root / SIDECAR).read_text().splitlines(keepends=True)
    (root / SIDECAR).write_text("".join([*lines[:-1], lines[-1].replace("000.jpg", "001.jpg").replace("023", "022")]))
    options = [f"data.root={root}", LABELS, f"run_dir={tmp_path / 'run'}"]
    assert "changed since en-labels wrote it" in refused(command("train.py", noisy.recipe, *options))


def test_a_resumed_run_keeps_its_labels(noisy, tmp_path):
    root = Path(shutil.copytree(noisy.data["ffcv"], tmp_path / "clothes"))
    options = [*UNMIXED, "train.epochs=1", f"data.root={root}", LABELS]
    run = tmp_path / "run"
    succeed("train.py", noisy.recipe, *options, f"run_dir={run}")
    line = refused(command("train.py", "--resume", run, "train.epochs=2", "data.labels=null"))
    assert "data.labels=None: expected what" in line and "began with, symmetric-0.4-s0" in line
    succeed(
        "scripts/label_data.py", root, "--rule", "pair", "--rate", "0.4", "--name", "symmetric-0.4-s0", "--overwrite"
    )
    line = refused(command("train.py", "--resume", run, "train.epochs=2"))
    assert "expected the labels that" in line and "was trained with, the digest" in line
    config = load_config(str(run / "config.yaml"), [])
    with pytest.raises(UserError, match=r"holds a run with data\.labels=symmetric-0\.4-s0 of the digest .*: expected"):
        progress_of(Planned("a", run, noisy.recipe, (), config))


COMMANDS = {
    "--rule symmetric": "--rate: expected one with --rule symmetric",
    "--rule symmetric --rate 1.5": "expected a share above 0 and up to 1",
    "--rule symmetric --rate 0.4 --from x.csv": "--rule, --from: expected one of the two",
    "--from x.csv": "--from x.csv: No such file",
    "--rule asymmetric --rate 0.4": "airplane; automobile; bird; and 5 more: expected classes of the set",
    "--rule symmetric --rate 0.4": "exists: expected another --name, or --overwrite",
    "--rule pair --rate 0.4 --name a.csv": "--name 'a.csv': expected letters, digits, and . _ + - within, without .csv",
    "--rule pair --rate 0.4 --name a/b": "--name 'a/b': expected letters",
}


@pytest.mark.parametrize("arguments", COMMANDS)
def test_mistakes_of_the_command_are_refused_in_a_line(noisy, arguments):
    line = refused(command("scripts/label_data.py", noisy.data["ffcv"], *arguments.split()))
    assert COMMANDS[arguments] in line


def test_labels_come_from_a_table_whose_names_may_begin_with_the_split(noisy, tmp_path):
    root = noisy.data["ffcv"]
    found = read_by_hand(root / SIDECAR)
    lines = [f"train/{name},{clean},{given}" for name, (clean, given) in found.items()]
    (tmp_path / "human.csv").write_text("\n".join(["file,clean,mine", *reversed(lines), "train/none.jpg,x,y"]) + "\n")
    done = succeed("scripts/label_data.py", root, "--from", tmp_path / "human.csv", "--column", "mine")
    assert "38 of 96 labels wrong" in done.stdout
    assert read_by_hand(root / "labels" / "human-mine.csv") == found
    (tmp_path / "human.csv").write_text("\n".join(["file,clean,mine", *lines[1:]]) + "\n")
    again = command("scripts/label_data.py", root, "--from", tmp_path / "human.csv", "--column", "mine", "--name", "b")
    assert "no line for" in refused(again)
    other = [line.replace(",", ",Bag,", 1).rpartition(",")[0] for line in lines]
    (tmp_path / "human.csv").write_text("\n".join(["file,clean,mine", *other]) + "\n")
    again = command("scripts/label_data.py", root, "--from", tmp_path / "human.csv", "--column", "mine", "--name", "b")
    assert "as in the set: the table is of another one" in refused(again)


@pytest.mark.parametrize(
    ("column", "wrong"),
    [("aggre_label", 4505), ("worse_label", 20104), ("random_label1", 8617), ("random_label2", 9061),
     ("random_label3", 8820)],
)  # fmt: skip
def test_the_human_labels_of_cifar_10_join_the_images_by_name_with_the_known_counts(column, wrong):
    human, images = REAL / "cifar10n_human_labels.csv.xz", REAL / "cifar10_jpeg.tar.xz"
    if not human.exists() or not images.exists():
        pytest.skip("needs CIFAR-10 and CIFAR-10N, which are not shipped")
    with tarfile.open(images) as archive:
        names = [name for name in archive.getnames() if name.startswith("train/") and name.endswith(".jpg")]
    classes = sorted({name.split("/")[1] for name in names})
    clean = np.array([classes.index(name.split("/")[1]) for name in names])
    given = labels_from(human, column, [name.removeprefix("train/") for name in names], classes, clean)
    assert len(names) == 50_000 and (given != clean).sum() == wrong
    worst = Counter((classes[own], classes[other]) for own, other in zip(clean, given, strict=True) if own != other)
    if column == "aggre_label":
        assert worst["truck", "automobile"] == 366 and worst["automobile", "truck"] == 181


@pytest.mark.parametrize("content", ["", "name\na\n", "name,label\na,b\na,c\n", "name,label\na\n", "name,name\na,b\n"])
def test_a_table_of_another_form_is_refused(tmp_path, content):
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(UserError, match=r"--from .*table.csv(:[23])?: .*: expected"):
        read_table(tmp_path / "table.csv")


def test_blank_lines_of_a_table_are_none_and_lines_of_other_fields_are_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("name,label\ntrain/a,x\n\nb,y\n\n")
    assert read_table(path) == (
        ["name", "label"],
        {"a": {"name": "train/a", "label": "x"}, "b": {"name": "b", "label": "y"}},
    )
    path.write_text("name,label\na,x\nb,y,z\n")
    with pytest.raises(UserError, match=r"table.csv:3: 3 fields: expected 2, as in the first line"):
        read_table(path)


def test_a_report_tells_what_was_given_the_scores_last_and_best_and_what_became_of_the_samples(noisy, tmp_path):
    options = [
        *UNMIXED,
        "train.epochs=2",
        "optim.lr=0.2",
        f"data.root={noisy.data['ffcv']}",
        LABELS,
    ]
    for seed in (0, 1):
        succeed("train.py", noisy.recipe, *options, f"seed={seed}", f"run_dir={tmp_path / 'runs' / str(seed)}")
    said = report([str(tmp_path / "runs")], tmp_path / "out")
    assert "chosen on the test set" in said and "in training mode" in said
    (row,) = table(tmp_path / "out", "noisy_labels")
    logs = [json.loads((tmp_path / "runs" / seed / "log.jsonl").read_text().splitlines()[-1]) for seed in "01"]
    summaries = [json.loads((tmp_path / "runs" / seed / "summary.json").read_text()) for seed in "01"]
    memorized = np.mean([100 * log["wrong_labels_given"] for log in logs])
    assert float(row["wrong labels, memorized %"]) == pytest.approx(memorized)
    best = np.mean([summary["best_score"] for summary in summaries])
    assert float(row["best top-1 % (chosen on the test set)"]) == pytest.approx(best)
    (origin,) = table(tmp_path / "out", "labels")
    assert (origin["wrong"], origin["samples"], origin["labels"]) == ("38", "96", "symmetric-0.4-s0")
    counted = Counter(read_by_hand(noisy.data["ffcv"] / SIDECAR).values())
    for line in table(tmp_path / "out", "label_counts"):
        own = line.pop("clean / given")
        assert {other: int(count) for other, count in line.items()} == {other: counted[own, other] for other in line}
    assert (tmp_path / "out" / "figures" / "wrong_labels_given.svg").exists()


@pytest.mark.parametrize("key", ["data.labels", "init"])
def test_runs_that_read_another_file_of_the_same_name_are_no_one_variant(tmp_path, key):
    config = {"data": {"root": "x", "labels": "mine"}, "init": "body.pt"}
    labels = {"origin": {}, "samples": 10, "wrong": 4, "classes": 2, "counts": []}
    digests = {"data.labels": "aa" * 32, "init": "bb" * 32}
    for seed, changed in enumerate([{}, {}, {key: "cc" * 32}]):
        read = digests | changed
        resumed = {"labels": labels | {"digest": read["data.labels"]}}
        start = resumed | {"init": {"path": "/x/body.pt", "sha256": read["init"]}}
        report_run(tmp_path / "runs" / str(seed), config | {"seed": seed}, norm_options=AS_PUBLISHED["en"], seed=seed)
        (tmp_path / "runs" / str(seed) / "provenance.json").write_text(json.dumps({"starts": [start, resumed]}))
    report([str(tmp_path / "runs")], tmp_path / "out")
    same, other = table(tmp_path / "out", "noisy_labels")
    assert (same["n"], other["n"]) == ("2", "1")
    assert f"({'cc' * 6})" in other["variant"] and "(cccc" not in same["variant"]


def test_a_row_that_is_read_has_the_outcomes_that_were_written():
    found = shares([1, 2, 3, 4, 5])
    assert found["wrong_labels"] == 6 and found["wrong_labels_given"] == pytest.approx(1 / 3)
    row = Row(epoch=1, train_loss=0.0, lr=0.1, outcomes=found)
    assert Row.of(row.content()).outcomes == found
    assert shares([0, 0, 0, 3, 1]) == {
        "wrong_labels": 0, "right_labels": 4, "right_labels_true": 0.75, "right_labels_other": 0.25,
    }  # fmt: skip


def test_a_sidecar_keeps_its_digest_when_the_set_has_another_order(some):
    names, clean = some
    given = relabel(names, clean, RULES["pair"](len(SIZES)), Fraction("0.4"), 0)
    ours = Sidecar(names, ["a", "b", "c", 'd, "e"'], clean, given, {"rule": "pair"})
    order = np.random.default_rng(0).permutation(len(names))
    theirs = of_samples(ours, [names[place] for place in order], Path("x.csv"))
    assert theirs.digest == ours.digest and theirs.given.tolist() == given[order].tolist()
    assert replace(ours, given=np.roll(given, 1)).digest != ours.digest != replace(ours, origin={}).digest
