"""Samples by their names and sets of one split: what joins other labels, and what is only evaluated on."""

import signal
from pathlib import Path

import numpy as np
import pytest
from commands import command, refused, succeed
from conftest import ended, jpeg, killed_at, write_folders
from readers import reading

from en.data import LOADERS
from en.data.preparation.dry_run import dry_run
from en.data.preparation.encode import Storage
from en.data.preparation.out_folder import files_of
from en.data.preparation.prepare import Shard, prepare
from en.data.preparation.shards import merge, prepare_shard
from en.data.sources import read_source
from en.errors import UserError


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Returns where each kind of loader finds the same set, whose folders are nested and whose names are odd."""
    place = tmp_path_factory.mktemp("named")
    root = write_folders(place / "folders", {"train": 3, "val": 2})
    first = min((root / "train").iterdir())
    (first / "more").mkdir()
    for name in ("more/000.jpg", "two\nlines.jpg", "and\rmore.jpg", "# a mark.jpg", "Ünï.jpg"):
        (first / name).write_bytes((first / "000.jpg").read_bytes())
    prepare(read_source(str(root)), place / "betons", Storage(), 2, False)
    return {"folder": root, "ffcv": place / "betons"}


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_sample_has_the_same_name_and_label_by_both_loaders_and_wherever_the_set_lies(pair, split):
    names, labels = {}, {}
    for kind, root in pair.items():
        loader = LOADERS[kind](root, split, reading())
        names[kind], labels[kind] = loader.names(), loader.labels().tolist()
        assert len(names[kind]) == len(labels[kind]) == loader.samples
        batches = list(loader.eval_epoch((32, 32)))
        loader.close()
        for batch in batches:
            assert [labels[kind][sample] for sample in batch.samples] == batch.targets.tolist()
    assert names["ffcv"] == names["folder"] and labels["ffcv"] == labels["folder"]
    assert len(set(names["ffcv"])) == len(names["ffcv"]) and not any("named" in name for name in names["ffcv"])
    classes = sorted(path.name for path in (pair["folder"] / split).iterdir())
    assert [name.split("/")[0] for name in names["ffcv"]] == [classes[label] for label in labels["ffcv"]]


def test_names_of_odd_files_stay_one_line_each(pair):
    first = min((pair["folder"] / "train").iterdir()).name
    names = LOADERS["ffcv"](pair["ffcv"], "train", reading()).names()
    odd = ("more/000.jpg", "two\\nlines.jpg", "and\\rmore.jpg", "# a mark.jpg", "Ünï.jpg")
    assert {f"{first}/{name}" for name in odd} < {*names}
    assert len((pair["ffcv"] / "train.names").read_text().removesuffix("\n").split("\n")) == len(names) + 1


def test_a_list_gives_the_paths_as_written(folders, tmp_path):
    (tmp_path / "images").symlink_to(folders)
    paths = [path.relative_to(folders) for path in sorted((folders / "val").rglob("*.jpg"))]
    (tmp_path / "list.txt").write_text("".join(f"test\timages/{path}\t{path.parent.name}\n" for path in paths))
    prepare(read_source(str(tmp_path / "list.txt")), tmp_path / "out", Storage(), 1, False)
    assert LOADERS["ffcv"](tmp_path / "out", "test", reading()).names() == [f"images/{path}" for path in paths]


def test_skipped_files_leave_no_name(tmp_path):
    root = write_folders(tmp_path / "in", {"train": 2, "val": 2})
    lost = min((root / "train").rglob("*.jpg"))
    lost.write_bytes(b"no image")
    prepare(read_source(str(root)), tmp_path / "out", Storage(), 1, True)
    names = LOADERS["ffcv"](tmp_path / "out", "train", reading()).names()
    assert len(names) == 7 and str(lost.relative_to(root / "train")) not in names


def test_names_that_are_missing_or_of_another_file_are_refused_and_training_goes_on_without(betons, tmp_path):
    for name in ("train.beton", "val.beton", "classes.json", "dataset.json", "train.names"):
        (tmp_path / name).write_bytes((betons / name).read_bytes())
    with pytest.raises(UserError, match=r"val.names: no names .* prepare the set again"):
        LOADERS["ffcv"](tmp_path, "val", reading()).names()
    assert len(list(LOADERS["ffcv"](tmp_path, "val", reading()).eval_epoch((32, 32))))
    (tmp_path / "val.names").write_bytes((betons / "train.names").read_bytes())
    with pytest.raises(UserError, match=r"val.names: names of other samples than val.beton's"):
        LOADERS["ffcv"](tmp_path, "val", reading()).names()


def one_split(root, split):
    """A folder with the class folders of one split alone."""
    for name in ("n00000002", "n00000001"):
        (root / split / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
            (root / split / name / f"{number}.jpg").write_bytes(jpeg(pixels))
    return root


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_set_of_one_split_is_prepared_and_read(kind, tmp_path, split):
    root = one_split(tmp_path / "in", split)
    counts = prepare(read_source(str(root)), tmp_path / "out", Storage(), 1, False)
    assert counts[split] == 6 and not {"train", "val", "test"} - {split} & counts.keys()
    place = root if kind == "folder" else tmp_path / "out"
    loader = LOADERS[kind](place, split, reading())
    assert loader.classes == ["n00000001", "n00000002"] and loader.names()[0] == "n00000001/0.jpg"
    loader.close()
    for other in {"train", "val", "test"} - {split}:
        with pytest.raises(UserError, match=rf"no split {other}, only {split}"):
            LOADERS[kind](place, other, reading())


def test_preparing_over_a_set_removes_the_splits_that_the_new_one_lacks(folders, tmp_path):
    out = tmp_path / "out"
    prepare(read_source(str(folders)), out, Storage(), 1, False)
    prepare(read_source(str(one_split(tmp_path / "in", "test"))), out, Storage(), 1, False, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["classes.json", "dataset.json", "test.beton", "test.names"]


def test_training_on_a_set_without_train_is_refused_in_one_line(kind, good, tmp_path):
    root = one_split(tmp_path / "in", "test")
    done = succeed("scripts/prepare_data.py", root, tmp_path / "out", "--workers", 1)
    assert "6 images for testing, 2 classes" in done.stdout
    place = root if kind == "folder" else tmp_path / "out"
    told = refused(command("train.py", good, f"data.root={place}", f"data.loader={kind}", "device=cpu"))
    assert "no split train, only test: expected train and val for training" in told


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_set_of_one_split_is_told_by_a_dry_run_and_made_of_shards_to_the_same_bits(tmp_path, split):
    source = read_source(str(one_split(tmp_path / "in", split)))
    told = dry_run(source, Storage(), 1)
    assert told[0].startswith(f"{split}: 6 images") and told[1].startswith("2 classes, 6 images")
    whole, merged, how = tmp_path / "whole", tmp_path / "merged", (Storage(), 1, False, "refuse")
    prepare(source, whole, *how)
    assert [prepare_shard(source, merged, *how, Shard(index, 2)) for index in (1, 0)] == [{split: 3}] * 2
    merge(source, merged, *how, 2)
    assert {path.name for path in merged.iterdir()} == {path.name for path in whole.iterdir()} == {*files_of([split])}
    for name in files_of([split]):
        assert (merged / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("renames", range(7))
def test_a_kill_while_a_set_of_another_split_is_replaced_leaves_none_of_its_files_in_the_new_one(
    folders, tmp_path, renames, monkeypatch, forked
):
    source, out = read_source(str(folders)), tmp_path / "out"
    prepare(read_source(str(one_split(tmp_path / "in", "test"))), out, Storage(), 1, False)
    monkeypatch.setattr(Path, "replace", killed_at(renames + 1, Path.replace, before=True))
    killed = ended(forked(lambda: prepare(source, out, Storage(), 1, False, overwrite=True)))
    monkeypatch.undo()
    if killed:
        assert killed == -signal.SIGKILL
        prepare(source, out, Storage(), 1, False)
    assert {path.name for path in out.iterdir()} == {*files_of(["train", "val"])}
