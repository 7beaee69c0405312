"""Readers of the sets that networks are tried on, each by the trap of its layout: see docs/data.md."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from other_sets import MATCHED, WNIDS, write_corrupted, write_cub, write_folders_of, write_webvision
from PIL import Image
from readers import reading

from en.data import LOADERS
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source
from en.data.sources.imagenet_c import CORRUPTIONS, MAIN
from en.data.sources.real import as_rows, join, read_real
from en.errors import UserError

TRAIN = {
    "google": {"google/q0001/same.jpg": 0, "google/q0002/same.jpg": 1, "google/q0060/z.jpg": 51},
    "flickr": {"flickr/q0001/same.jpg": 0, "flickr/q0003/a.jpg": 2},
}
VAL = {"val000001.jpg": 51, "val000002.jpg": 0}


@pytest.fixture
def webvision(tmp_path):
    return write_webvision(tmp_path / "webvision", TRAIN, VAL, 60)


def test_webvisions_lists_keep_files_of_one_name_and_label_them_by_their_own_list(webvision):
    source = read_source(str(webvision))
    assert (source.name, source.classes) == ("WebVision 1.0, Google and Flickr", [*WNIDS[:60]])
    assert {s.name: s.target for s in source.splits["train"]} == {**TRAIN["google"], **TRAIN["flickr"]}
    assert {s.name: s.target for s in source.splits["val"]} == VAL


@pytest.mark.parametrize(
    ("part", "paths", "val"),
    [
        ("google", {*TRAIN["google"]}, {*VAL}),
        ("flickr", {*TRAIN["flickr"]}, {*VAL}),
        ("both", {*TRAIN["google"], *TRAIN["flickr"]}, {*VAL}),
        ("mini", {"google/q0001/same.jpg", "google/q0002/same.jpg"}, {"val000002.jpg"}),
    ],
)
def test_a_part_of_webvision_is_named_before_its_path(webvision, part, paths, val):
    source = read_source(f"webvision-{part}:{webvision}")
    assert ({s.name for s in source.splits["train"]}, {s.name for s in source.splits["val"]}) == (paths, val)
    assert len(source.classes) == (50 if part == "mini" else 60)


def test_webvision_is_prepared_with_its_paths_as_names_and_read_in_place_alike(webvision, tmp_path):
    prepare(read_source(str(webvision)), tmp_path / "out", Storage(), 1, False)
    places = {"ffcv": tmp_path / "out", "folder": webvision}
    for split in ("train", "val"):
        loaders = [LOADERS[kind](place, split, reading(1)) for kind, place in places.items()]
        assert loaders[0].names() == loaders[1].names() and loaders[0].classes == loaders[1].classes
        assert loaders[0].labels().tolist() == loaders[1].labels().tolist()
        for loader in loaders:
            loader.close()


def test_webvision_without_images_for_training_is_a_set_to_evaluate_on(webvision):
    for engine in ("google", "flickr"):
        (webvision / engine).rename(webvision / f"not {engine}")
    source = read_source(str(webvision))
    assert [*source.splits] == ["val"] and source.name == "WebVision 1.0"
    with pytest.raises(UserError, match=r"webvision/google: no such folder: expected WebVision's images of Google"):
        read_source(f"webvision-mini:{webvision}")


@pytest.mark.parametrize(
    ("file", "lines", "words"),
    [
        ("train_filelist_google.txt", "google/q0001/same.jpg 60\n", r"google.txt:1: .* the label 0 to 59"),
        ("train_filelist_google.txt", "google/q0001/same.jpg\n", r"google.txt:1: .* expected `path label`"),
        ("train_filelist_google.txt", "google/a.jpg 1\ngoogle/a.jpg 2\n", r"google.txt:2: .* listed twice"),
        ("train_filelist_google.txt", "google/a.jpg 1\ngoogle//a.jpg 2\n", r"google.txt:2: .* no plain path"),
        ("train_filelist_google.txt", "/etc/hostname 1\n", r"google.txt:1: '/etc/hostname': no plain path: expected"),
        ("train_filelist_google.txt", "google/../../a.jpg 1\n", r"google.txt:1: .* no plain path"),
        ("train_filelist_google.txt", f"google/a.jpg {'9' * 5000}\n", r"google.txt:1: .* the label 0 to 59"),
        ("synsets.txt", "tench\n", r"synsets.txt: expected a WordNet id on each line"),
        ("synsets.txt", "".join(f"n{i:08d}\n" for i in range(5000)), r"5000 classes: expected WebVision 1.0's 1000"),
    ],
)
def test_lists_that_are_not_webvision_1_0s_are_refused(webvision, file, lines, words):
    (webvision / "info" / file).write_text(lines)
    with pytest.raises(UserError, match=words):
        read_source(str(webvision))


def test_imagenet_v2s_folders_are_classes_by_number_and_not_by_text(tmp_path):
    source = read_source(str(write_folders_of(tmp_path / MATCHED, range(1000), side=8)))
    assert (source.name, source.classes) == ("ImageNet-V2 matched-frequency", [*WNIDS]) and [*source.splits] == ["test"]
    assert all(WNIDS[int(s.name.split("/")[0])] == source.classes[s.target] for s in source.splits["test"])
    as_text = sorted(map(str, range(1000)))
    assert sum(name == str(place) for place, name in enumerate(as_text)) == 12  # those that ImageFolder gets right


def test_a_part_of_imagenet_v2_keeps_its_numbers_and_another_folders_name_needs_the_prefix(kind, tmp_path):
    root = write_folders_of(tmp_path / MATCHED, [2, 10, 100])
    prepare(read_source(str(root)), tmp_path / "out", Storage(), 1, False)
    loader = LOADERS[kind](root if kind == "folder" else tmp_path / "out", "test", reading())
    assert loader.classes == [WNIDS[2], WNIDS[10], WNIDS[100]]
    assert dict(zip(loader.names(), loader.labels().tolist(), strict=True)) == {
        "2/00.jpeg": 0, "10/00.jpeg": 1, "100/00.jpeg": 2,
    }  # fmt: skip
    loader.close()
    other = root.rename(tmp_path / "v2")
    with pytest.raises(UserError, match="train"):
        read_source(str(other))
    assert read_source(f"imagenet-v2:{other}").name == "ImageNet-V2"
    (other / "1000").mkdir()
    with pytest.raises(UserError, match=r"1000: expected ImageNet-V2's folders 0 to 999"):
        read_source(f"imagenet-v2:{other}")


@pytest.mark.parametrize(
    ("folder", "name", "classes"),
    [
        ("imagenet-a", "ImageNet-A", 200),
        ("imagenet-r", "ImageNet-R", 200),
        ("sketch", "ImageNet-Sketch", 1000),
        ("my copy", "my copy", None),
    ],
)
def test_folders_of_wordnet_ids_are_one_test_split_and_say_how_many_classes_they_lack(
    tmp_path, capsys, folder, name, classes
):
    root = write_folders_of(tmp_path / folder, WNIDS[3:9], per_class=2)
    (root / "README.txt").write_text("as in the archive")
    source = read_source(str(root))
    assert (source.name, source.classes) == (name, [*WNIDS[3:9]])
    assert [(s.name, s.target) for s in source.splits["test"]][:3] == [
        (f"{WNIDS[3]}/00.jpeg", 0), (f"{WNIDS[3]}/01.jpeg", 0), (f"{WNIDS[4]}/00.jpeg", 1),
    ]  # fmt: skip
    told = f"warning: {root}: 6 classes, where {name} has {classes}\n" if classes else ""
    assert capsys.readouterr().err == told


def test_imagenet_c_keeps_corruption_and_severity_in_its_names_and_is_shown_whole(kind, tmp_path):
    root = write_corrupted(tmp_path / "c", ("fog", "spatter"), (1, 5), WNIDS[:2])
    prepare(read_source(str(root)), tmp_path / "out", Storage(), 1, False)
    loader = LOADERS[kind](root if kind == "folder" else tmp_path / "out", "test", reading())
    assert loader.name == "ImageNet-C" and loader.samples == 8
    assert loader.names()[0] == f"fog/1/{WNIDS[0]}/ILSVRC2012_val_00000001.JPEG"
    assert {tuple(name.split("/")[:2]) for name in loader.names()} == {
        ("fog", "1"), ("fog", "5"), ("spatter", "1"), ("spatter", "5"),
    }  # fmt: skip
    shown = torch.cat([batch.images for batch in loader.eval_epoch((224, 224))])
    loader.close()
    for name, image in zip(loader.names(), shown, strict=True):  # neither resized nor cut, whatever the task's share
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(Image.open(root / name)))


def test_imagenet_c_that_is_only_partly_unpacked_is_refused(tmp_path):
    root = write_corrupted(tmp_path / "c", ("fog", "snow"), (1, 2), WNIDS[:2])
    next((root / "fog" / "2").rglob("*.JPEG")).unlink()
    with pytest.raises(UserError, match=r"fog/2: expected as many images of each class as .*snow/1 has"):
        read_source(str(root))
    assert (len(MAIN), len(CORRUPTIONS)) == (15, 19)


@pytest.mark.parametrize("part", ["fog", "fog/5", "link"])
def test_a_part_of_imagenet_c_is_shown_whole_too_and_keeps_its_names(part, tmp_path, monkeypatch):
    root = write_corrupted(tmp_path / "c", ("fog", "spatter"), (1, 5), WNIDS[:2])
    (tmp_path / "link").symlink_to(root / "fog" / "5")
    source = read_source(str(tmp_path / "link" if part == "link" else root / part))
    assert (source.name, source.cropped, source.classes) == ("ImageNet-C", True, [*WNIDS[:2]])
    levels = "15" if part == "fog" else "5"
    assert [sample.name for sample in source.splits["test"]] == [
        f"fog/{level}/{WNIDS[at]}/ILSVRC2012_val_{at + 1:08d}.JPEG" for level in levels for at in (0, 1)
    ]
    monkeypatch.chdir(root / "fog" / "5")
    assert read_source(".").splits["test"][0].name.startswith("fog/5/")


def test_folders_that_are_no_corruption_or_severity_are_warned_of(tmp_path, capsys):
    root = write_corrupted(tmp_path / "c", ("fog", "snow"), (1, 2), WNIDS[:2])
    (root / "fog" / "2").rename(root / "fog" / "02")
    (root / "snow").rename(root / "snowy")
    assert len(read_source(str(root)).splits["test"]) == 2
    left = f"{root / 'fog' / '02'}; {root / 'snowy'}"
    assert capsys.readouterr().err == f"warning: {root}: left out, no corruption or severity: {left}\n"


BIRDS = {1: "001.Black_footed_Albatross", 2: "002.Laysan_Albatross"}
ROWS = {
    1: (f"{BIRDS[1]}/Black_Footed_Albatross_0046_18.jpg", 1, 0),
    2: (f"{BIRDS[1]}/Black_Footed_Albatross_0009_34.jpg", 1, 1),
    3: (f"{BIRDS[2]}/Laysan_Albatross_0001_545.jpg", 2, 1),
}


def test_cub_is_joined_by_the_numbers_of_its_files_which_begin_at_1(tmp_path):
    write_cub(tmp_path / "birds" / "CUB_200_2011", ROWS, BIRDS)
    for place in ("birds", "birds/CUB_200_2011"):
        source = read_source(str(tmp_path / place))
        assert (source.name, source.classes) == ("CUB-200-2011", [*BIRDS.values()])
        found = {s.name: (s.target, split) for split, samples in source.splits.items() for s in samples}
        assert found == {path: (label - 1, "train" if train else "val") for path, label, train in ROWS.values()}
    (tmp_path / "birds" / "CUB_200_2011" / "image_class_labels.txt").write_text("1 0\n2 1\n3 2\n")
    with pytest.raises(UserError, match=r"images.txt: image 1: class 0, training 0: expected a class of classes.txt"):
        read_source(str(tmp_path / "birds"))


@pytest.mark.parametrize(
    ("file", "lines", "words"),
    [
        ("images", f"1 {ROWS[1][0]}\n2 {ROWS[2][0]}\n", r"image_class_labels.txt: image 3: expected the 2 images"),
        ("train_test_split", "1 0\n2 1\n", r"train_test_split.txt: image 3: expected the 3 images of images.txt"),
        ("train_test_split", "1 1\n2 1\n3 1\n", r"train_test_split.txt: expected images for training, 1, and others"),
        ("images", "".join(f"{n} {ROWS[1][0]}\n" for n in ROWS), r"images.txt: expected a path below images/"),
        ("images", f"1 /etc/hostname\n2 {ROWS[2][0]}\n3 {ROWS[3][0]}\n", r"images.txt: expected a path below images/"),
        ("images", f"² {ROWS[1][0]}\n", r"images.txt: .* expected `number value`"),
    ],
)
def test_files_of_cub_that_do_not_tell_of_the_same_images_are_refused(tmp_path, file, lines, words):
    root = write_cub(tmp_path / "birds", ROWS, BIRDS)
    (root / f"{file}.txt").write_text(lines)
    with pytest.raises(UserError, match=words):
        read_source(str(root))


def test_reals_own_file_has_the_published_counts_and_joins_by_file_name(tmp_path):
    package = importlib.util.find_spec("timm")
    labels = read_real(Path(package.submodule_search_locations[0]) / "data" / "_info" / "imagenet_real_labels.json")
    assert sum(map(bool, labels)) == 46_837 and sum(len(row) == 1 for row in labels) == 39_394
    names = [f"{WNIDS[5]}/ILSVRC2012_val_00000003.JPEG", "ILSVRC2012_val_00050000.jpg"]
    assert join(labels, names) == [[WNIDS[label] for label in labels[place]] for place in (2, 49_999)]
    for other in ("n01440764/10026.JPEG", "ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_00050001.JPEG"):
        assert join(labels, [*names, other]) is None
    assert as_rows([["b", "x"], [], ["c", "a"]], ["a", "b", "c"]).tolist() == [[1, -1], [-1, -1], [2, 0]]


@pytest.mark.parametrize(
    "content",
    [[[0]], [[0]] * 49_999 + [[1000]], [[0]] * 49_999 + [[True]], {"a": 1}, "no json", "[" * 100_000],
    ids=range(6),
)
def test_files_that_are_not_reals_are_refused(tmp_path, content):
    (tmp_path / "real.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=r"real.json: .*expected"):
        read_real(tmp_path / "real.json")


def test_the_table_of_imagenets_classes_is_timms():
    package = importlib.util.find_spec("timm")
    theirs = Path(package.submodule_search_locations[0]) / "data" / "_info" / "imagenet_synsets.txt"
    assert [*WNIDS] == theirs.read_text().split()
