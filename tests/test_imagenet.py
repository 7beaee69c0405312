"""ImageNet and its kin as people have them, prepared where they lie: the same samples from every layout."""

import gc
import gzip
import json
import os
import pickle
import re
import signal
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import imagenet_layouts as layouts
import kill_loop
import numpy as np
import pytest
from commands import command, succeed
from conftest import ended, killed_at
from imagenet_layouts import CLASSES, LAYOUTS, ODD, Images, base, put, tar_of, wnid_of
from readers import decoded

from en.data.ffcv.file import BetonFile
from en.data.ffcv.names import read_names
from en.data.ffcv.writer import BetonWriter
from en.data.preparation import journal
from en.data.preparation import prepare as module
from en.data.preparation.encode import Storage
from en.data.preparation.journal import Journal
from en.data.preparation.out_folder import OutFolder, files_of
from en.data.preparation.prepare import Shard, prepare
from en.data.preparation.shards import merge, prepare_shard
from en.data.sources import SPLITS, Hints, Source, only, read_source, val_labels
from en.errors import UserError

SORTED = ["folders", "ILSVRC2012's tars", "Kaggle's tree", "a flat val"]  # as class folders are
FILES = files_of(SPLITS)
SHARDED = ["parquet", "webdataset"]  # in the shards' order


@pytest.fixture(scope="module")
def made() -> Images:
    return layouts.images()


@pytest.fixture(scope="module")
def roots(made: Images, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp("set") / "small", made) for name, write in LAYOUTS.items()}


def contents(source: Source, split: str) -> dict[str, bytes]:
    """The files of a split by their names in class folders, and all that Source says of them compared."""
    found = {}
    for sample in source.splits[split]:
        content = sample.image.read_bytes() if isinstance(sample.image, Path) else sample.image.read()
        assert sample.name not in found and source.classes[sample.target] == wnid_of(sample.name)
        found[sample.name] = content
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognized_and_has_the_same_files_and_classes(layout, roots, made):
    source = read_source(str(roots[layout]))
    assert source.classes == CLASSES and source.name in ("small", "ILSVRC2012")
    for split in made:
        assert contents(source, split) == made[split]
    assert ([*contents(source, "train")] == [*made["train"]]) == (layout in SORTED)


@pytest.fixture(scope="module")
def prepared(roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    outs = {layout: tmp_path_factory.mktemp("out") for layout in LAYOUTS}
    for layout, out in outs.items():
        prepare(read_source(str(roots[layout])), out, Storage(), 2, False)
    return outs


def test_folders_archives_and_trees_are_prepared_to_the_same_file_to_the_bit(prepared):
    for layout in SORTED[1:]:
        for name in set(FILES) - {"dataset.json"}:  # which has the set's name
            assert (prepared[layout] / name).read_bytes() == (prepared["folders"] / name).read_bytes()


def pixels(folder: Path, split: str, order: list[str]) -> dict[str, tuple[int, bytes]]:
    file = BetonFile(folder / f"{split}.beton")
    boxes = [(0, 0, int(height), int(width)) for height, width in zip(file.heights, file.widths, strict=True)]
    shown = [decoded(file, number, box, box[2:]).tobytes() for number, box in enumerate(boxes)]
    return dict(zip(order, zip(file.targets.tolist(), shown, strict=True), strict=True))


@pytest.mark.parametrize("layout", SHARDED)
def test_shards_are_prepared_to_the_same_samples_in_their_own_order(layout, prepared, roots, made):
    for split in made:
        order = [*contents(read_source(str(roots[layout])), split)]
        assert pixels(prepared[layout], split, order) == pixels(prepared["folders"], split, [*made[split]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_odd_about_imagenets_files_is_handled_and_counted(layout, prepared):
    described = json.loads((prepared[layout] / "dataset.json").read_text())
    assert described["oddities"] == dict.fromkeys(sorted(ODD), 1)
    assert (described["train"], described["val"], described["skipped"]) == (24, 12, 0)


# ---- Going on where it was stopped ----


KILLS = {
    "before a sample is written": (BetonWriter, "add", 9, True),
    "after a sample is written, before it is noted": (BetonWriter, "add", 9, False),
    "when the notes were flushed": (Journal, "save", 7, False),
    "before the notes are flushed": (Journal, "save", 7, True),
    "before the tables": (BetonWriter, "finish", 1, True),
    "after the tables": (BetonWriter, "finish", 1, False),
    "in val": (BetonWriter, "add", 30, False),
    "before files are checked": (module, "verify", 1, True),
    "when the first file was checked": (module, "verify", 1, False),
    "while files are put in place": (Path, "replace", 1, False),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_preparation_killed_at_any_moment_goes_on_to_the_same_bits(
    moment, roots, prepared, tmp_path, monkeypatch, forked, capfd
):
    place, name, count, before = KILLS[moment]
    source, out = read_source(str(roots["ILSVRC2012's tars"])), tmp_path / "out"
    monkeypatch.setattr(journal, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(place, name, killed_at(count, getattr(place, name), before))
        assert ended(forked(lambda: prepare(source, out, Storage(), 2, False))) == -signal.SIGKILL
    capfd.readouterr()
    prepare(source, out, Storage(), 2, False)
    assert re.search(r"ILSVRC2012: train: goes on after (\d+) of 24 images", capfd.readouterr().err)
    assert {path.name for path in out.iterdir()} == set(FILES)
    for name in FILES:
        assert (out / name).read_bytes() == (prepared["ILSVRC2012's tars"] / name).read_bytes()


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_what_is_killed_again_and_again_comes_to_its_end_to_the_same_bits(
    layout, roots, prepared, tmp_path, monkeypatch, forked
):
    source, out = read_source(str(roots[layout])), tmp_path / "out"
    monkeypatch.setattr(journal, "SAVE_EVERY_S", 0.0)
    kills = 0
    with monkeypatch.context() as patched:
        patched.setattr(BetonWriter, "add", killed_at(8, BetonWriter.add, before=True))
        while (code := ended(forked(lambda: prepare(source, out, Storage(), 1, False)))) == -signal.SIGKILL:
            kills += 1
    assert code == 0 and kills == 5  # 36 samples, seven a time
    for name in FILES:
        assert (out / name).read_bytes() == (prepared[layout] / name).read_bytes()


def test_a_torn_note_and_bytes_that_nothing_notes_are_written_anew(roots, prepared, tmp_path, monkeypatch, forked):
    source, out = read_source(str(roots["folders"])), tmp_path / "out"
    monkeypatch.setattr(journal, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(BetonWriter, "add", killed_at(15, BetonWriter.add, before=True))
        ended(forked(lambda: prepare(source, out, Storage(), 1, False)))
    notes = out / "train.journal"
    notes.write_bytes(notes.read_bytes()[:-9])
    with (out / "train.beton.partial").open("ab") as file:
        file.write(b"what a process wrote before it died" * 100)
    prepare(source, out, Storage(), 1, False)
    for name in FILES:
        assert (out / name).read_bytes() == (prepared["folders"] / name).read_bytes()


@pytest.mark.parametrize("change", ["storage", "folder"])
def test_another_preparation_does_not_go_on_with_what_is_left(
    change, roots, made, tmp_path, monkeypatch, forked, capfd
):
    source, out, storage = read_source(str(roots["folders"])), tmp_path / "out", Storage()
    monkeypatch.setattr(journal, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(BetonWriter, "add", killed_at(15, BetonWriter.add, before=True))
        ended(forked(lambda: prepare(source, out, Storage(), 1, False)))
    if change == "storage":
        storage = Storage("raw")
    else:  # of the same names, and other images
        others = {split: dict(zip(files, reversed(files.values()), strict=True)) for split, files in made.items()}
        source = read_source(str(layouts.folders(tmp_path / "others", others)))
    prepare(source, out, storage, 1, False)
    said = capfd.readouterr().err
    assert "another preparation, which is removed: this one begins anew" in said and "goes on" not in said
    prepare(source, tmp_path / "anew", storage, 1, False)
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "anew" / name).read_bytes()


def test_names_are_those_of_what_is_stored_in_one_go_resumed_and_merged(made, tmp_path, monkeypatch, forked):
    root, train = layouts.folders(tmp_path / "set", made), [*made["train"]]
    lost = [train[number] for number in (3, 8, 23)]
    for name in lost:
        put(root / "train", name, b"no image")
    source, how = read_source(str(root)), (Storage(), 1, True, "refuse")
    whole, resumed, merged = (tmp_path / name for name in ("whole", "resumed", "merged"))
    prepare(source, whole, *how)
    assert read_names(BetonFile(whole / "train.beton")) == [name for name in train if name not in lost]
    assert read_names(BetonFile(whole / "val.beton")) == [*made["val"]]
    monkeypatch.setattr(journal, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(BetonWriter, "add", killed_at(8, BetonWriter.add, before=True))
        while ended(forked(lambda: prepare(source, resumed, *how))) == -signal.SIGKILL:
            pass
    for index in range(3):
        prepare_shard(source, merged, *how, Shard(index, 3))
    merge(source, merged, *how, 3)
    for out in (resumed, merged):
        for name in FILES:
            assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_name_of_two_lines_in_an_archive_stays_one(made, tmp_path):
    root = layouts.webdataset(tmp_path / "set", made)
    members = {"n01751748_1\n2.jpg": b"an image", "n01751748_1\n2.cls": b"0"}
    put(root, "imagenet1k-train-03.tar", tar_of(members))
    assert read_source(str(root)).splits["train"][-1].name == "n01751748/n01751748_1\\n2.jpg"


def test_shards_of_several_machines_merge_to_the_same_file_to_the_bit(roots, prepared, tmp_path):
    root, out = roots["ILSVRC2012's tars"], tmp_path / "out"
    for number in (3, 1):
        done = succeed("scripts/prepare_data.py", root, out, "--shard", f"{number}/3", "--workers", 1)
        assert f"shard {number}/3: 8 images for training and 4 images for evaluation" in done.stdout
    refused = command("scripts/prepare_data.py", root, out, "--merge", 3)
    assert refused.returncode == 2 and re.search(r"shard-1-of-3/train\.journal: no such file", refused.stderr)
    succeed("scripts/prepare_data.py", root, out, "--shard", "2/3", "--workers", 2)
    done = succeed("scripts/prepare_data.py", root, out, "--merge", 3)
    assert "24 images for training and 12 images for evaluation, 4 classes" in done.stdout
    assert "CMYK: 1 images" in done.stdout
    assert {path.name for path in out.iterdir()} == set(FILES)
    for name in FILES:
        assert (out / name).read_bytes() == (prepared["ILSVRC2012's tars"] / name).read_bytes()


def test_a_merge_killed_again_and_again_goes_on_to_the_same_bits(roots, prepared, tmp_path, monkeypatch, forked, capfd):
    source, out, how = read_source(str(roots["webdataset"])), tmp_path / "out", (Storage(), 1, False, "refuse")
    for index in range(3):
        prepare_shard(source, out, *how, Shard(index, 3))
    monkeypatch.setattr(journal, "SAVE_EVERY_S", 0.0)
    kills = 0
    with monkeypatch.context() as patched:
        patched.setattr(BetonWriter, "add", killed_at(8, BetonWriter.add, before=True))
        while (code := ended(forked(lambda: merge(source, out, *how, 3)))) == -signal.SIGKILL:
            kills += 1
    assert code == 0 and kills == 5  # 36 samples, seven a time
    assert "small: train: goes on after 21 of 24 images" in capfd.readouterr().err
    assert {path.name for path in out.iterdir()} == set(FILES)
    for name in FILES:
        assert (out / name).read_bytes() == (prepared["webdataset"] / name).read_bytes()


def test_a_shard_that_is_unfinished_changed_or_of_other_options_is_not_merged(roots, tmp_path, monkeypatch, forked):
    source, out = read_source(str(roots["folders"])), tmp_path / "out"
    how = (Storage(), 1, False, "refuse")
    prepare_shard(source, out, *how, Shard(0, 2))
    monkeypatch.setattr(journal, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(BetonWriter, "add", killed_at(5, BetonWriter.add, before=True))
        ended(forked(lambda: prepare_shard(source, out, *how, Shard(1, 2))))
    with pytest.raises(UserError, match=r"shard-1-of-2: 4 of 12 images of train: unfinished"):
        merge(source, out, *how, 2)
    prepare_shard(source, out, *how, Shard(1, 2))
    with pytest.raises(UserError, match="expected a shard of this source, with these options"):
        merge(source, out, Storage("raw"), 1, False, "refuse", 2)
    data = OutFolder(out / "shard-1-of-2").partial("train.beton")
    whole = data.read_bytes()
    place = whole.rindex(b"\xff\xd9") - 40
    data.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(Exception, match="damaged: its bytes are not as written"):
        merge(source, out, *how, 2)


@pytest.mark.parametrize(
    ("layout", "hints"),
    [("folders", Hints(Path("val.txt"))), ("folders", Hints(labels="sorted")), ("parquet", Hints(Path("val.txt")))],
    ids=["list", "labels", "list of shards"],
)
def test_an_option_that_a_form_does_not_ask_for_is_refused(roots, layout, hints):
    with pytest.raises(
        UserError, match=r"--(val-list val.txt|labels sorted): .* does not ask for it: expected it with"
    ):
        read_source(str(roots[layout]), hints)
    with pytest.raises(UserError, match=r"fashion-mnist does not ask for it"):
        read_source("fashion-mnist", hints)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b"])
def test_a_shard_that_is_none_of_them_is_refused(text, roots, tmp_path):
    done = command("scripts/prepare_data.py", roots["folders"], tmp_path / "out", "--shard", text)
    assert done.returncode == 2 and f"--shard {text}: expected I/N" in done.stderr


# ---- What there is, and what is asked for ----


def test_a_dry_run_says_what_to_expect_and_reads_no_image(roots, made, tmp_path):
    root = layouts.ilsvrc2012(tmp_path / "set", made)
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content.replace(b"\xff\xd8\xff", b"\0\0\0"))  # no image is whole
    done = succeed("scripts/prepare_data.py", root, tmp_path / "out", "--dry-run", "--workers", 2)
    assert "ILSVRC2012 as downloaded, a tar of 4 tars and one of 12 images" in done.stdout
    total = sum(len(content) for split in made.values() for content in split.values())
    assert "train: 24 images" in done.stdout and "4 classes, 36 images" in done.stdout
    assert f"at most about {total / 1e3:.1f} kB" in done.stdout and "time to expect: a minute" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_list_of_wordnet_ids_takes_a_part_of_any_layout(layout, roots, made, tmp_path):
    (tmp_path / "two.txt").write_text("# the cranes\nn03126707 machine\nn02012849\tbird\n")
    part = only(read_source(str(roots[layout])), tmp_path / "two.txt")
    assert part.classes == ["n02012849", "n03126707"]
    for split in made:
        expected = {name: content for name, content in made[split].items() if wnid_of(name) in part.classes}
        assert contents(part, split) == expected
    if layout == "parquet":
        prepare(part, tmp_path / "out", Storage(), 1, False)
        assert len(BetonFile(tmp_path / "out" / "train.beton")) == 12


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n02012849\nn02012849\n", "another WordNet id"),
        ("crane\n", "another WordNet id"),
        ("n00000001\n", "n00000001: expected classes of small"),
        ("# none\n", "found none"),
    ],
)
def test_a_list_of_other_classes_is_refused_by_name(text, said, roots, tmp_path):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        only(read_source(str(roots["folders"])), tmp_path / "list.txt")


def test_which_of_several_forms_is_read_is_asked_for(made, tmp_path):
    root = layouts.folders(layouts.ilsvrc2012(tmp_path / "set", made), made)
    with pytest.raises(UserError, match="several forms of a data set: expected --form folders or ilsvrc2012"):
        read_source(str(root))
    for form, kind in (("folders", Path), ("ilsvrc2012", tuple)):
        assert isinstance(read_source(str(root), Hints(form=form)).splits["val"][0].image, kind)
    with pytest.raises(UserError, match=r"--form parquet: .* does not hold that, but folders or ilsvrc2012"):
        read_source(str(root), Hints(form="parquet"))


def by_number(root: Path, made: Images, order: str) -> Path:
    """A flat val whose classes are numbers: of the sorted ids, or the devkit's."""
    numbers = {wnid: number for number, wnid in layouts.DEVKITS.items()}
    kinds = {wnid: numbers[wnid] if order == "devkit" else CLASSES.index(wnid) for wnid in CLASSES}
    lines = [f"{base(name)} {kinds[wnid_of(name)]}\n" for name in made["val"]]
    put(layouts.flat(root, made), "val.txt", "".join(lines).encode())
    return root


def test_what_a_number_means_is_asked_for_and_not_guessed(made, tmp_path):
    root = by_number(tmp_path / "sorted", made, "sorted")
    with pytest.raises(UserError, match=r"val\.txt: classes as numbers.*expected --labels sorted .* or devkit"):
        read_source(str(root))
    assert contents(read_source(str(root), Hints(labels="sorted")), "val") == made["val"]
    with pytest.raises(UserError, match=r"--labels devkit: expected ILSVRC2012_devkit_t12\.tar\.gz"):
        read_source(str(root), Hints(labels="devkit"))
    root = by_number(tmp_path / "devkit", made, "devkit")
    layouts.devkit(root, made)
    hints = Hints(root / "val.txt", "devkit")
    assert contents(read_source(str(root), hints), "val") == made["val"]
    with pytest.raises(UserError, match=r"val\.txt: 4: expected a number from 0 to 3"):
        read_source(str(root), Hints(root / "val.txt", "sorted"))


def test_the_devkit_and_a_list_that_disagree_are_named(made, tmp_path):
    root = layouts.ilsvrc2012(tmp_path / "set", made)
    lines = [wnid_of(name) for name in sorted(made["val"], key=base)]
    put(root, "imagenet_2012_validation_synset_labels.txt", "\n".join(lines).encode())
    read_source(str(root))
    put(root, "imagenet_2012_validation_synset_labels.txt", "\n".join([lines[1], lines[0], *lines[2:]]).encode())
    with pytest.raises(UserError, match="2 images have other classes in each: ILSVRC2012_val_00000001"):
        read_source(str(root))


def without_list(root: Path, made: Images) -> None:
    layouts.flat(root, made)


def short_list(root: Path, made: Images) -> None:
    put(layouts.flat(root, made), "imagenet_2012_validation_synset_labels.txt", b"n01751748\n")


def list_of_others(root: Path, made: Images) -> None:
    layouts.kaggle(root, made)
    path = root / "LOC_val_solution.csv"
    path.write_text(path.read_text().replace("_00000003", "_00000099"))


def truncated(root: Path, made: Images) -> None:
    path = layouts.ilsvrc2012(root, made) / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:30_000])


def compressed(root: Path, made: Images) -> None:
    path = layouts.ilsvrc2012(root, made) / "ILSVRC2012_img_val.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))


def without_val(root: Path, made: Images) -> None:
    (layouts.ilsvrc2012(root, made) / "ILSVRC2012_img_val.tar").unlink()


def unknown_class(root: Path, made: Images) -> None:
    put(root, "ILSVRC2012_img_train.tar", tar_of({"n99999999.tar": tar_of({"n99999999_1.JPEG": b"image"})}))


def without_a_shard(root: Path, made: Images) -> None:
    (layouts.parquet(root, made) / "data" / "train-00001-of-00002.parquet").unlink()


def partly_converted(root: Path, made: Images) -> None:
    layouts.parquet(root, made)
    for split in ("partial-train", "validation"):
        (root / split).mkdir()
    (root / "data" / "train-00000-of-00002.parquet").rename(root / "partial-train" / "0000.parquet")
    (root / "data" / "validation-00000-of-00001.parquet").rename(root / "validation" / "0000.parquet")
    (root / "data" / "train-00001-of-00002.parquet").unlink()


def without_a_class(root: Path, made: Images) -> None:
    layouts.webdataset(root, made)
    put(root, "imagenet1k-train-00.tar", tar_of({"1.jpg": b"image", "2.jpg": b"image", "2.cls": b"0"}))


def two_of_a_label(root: Path, made: Images) -> None:
    layouts.webdataset(root, made)
    members = {"1.jpg": b"a", "1.cls": b"0", "1.json": b'{"filename": "n03126707_5.JPEG"}'}
    put(root, "imagenet1k-train-03.tar", tar_of(members))


def followed(root: Path, made: Images) -> None:
    path = layouts.ilsvrc2012(root, made) / "ILSVRC2012_img_val.tar"
    path.write_bytes(path.read_bytes() + tar_of({"ILSVRC2012_val_00000013.JPEG": b"image"}))


def with_a_link(root: Path, made: Images) -> None:
    layouts.ilsvrc2012(root, made)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "a") as tar:
        link = tarfile.TarInfo("ILSVRC2012_val_00000013.JPEG")
        link.type, link.linkname = tarfile.LNKTYPE, "ILSVRC2012_val_00000012.JPEG"
        tar.addfile(link)


def one_name_twice(root: Path, made: Images) -> None:
    layouts.ilsvrc2012(root, made)
    twice = tar_of({"n01751748_9.JPEG": b"image", "again/n01751748_9.JPEG": b"another"})
    inner = {f"{wnid}.tar": tar_of({f"{wnid}_1.JPEG": b"image"}) for wnid in CLASSES[1:]}
    put(root, "ILSVRC2012_img_train.tar", tar_of({f"{CLASSES[0]}.tar": twice} | inner))


def one_val_name_twice(root: Path, made: Images) -> None:
    layouts.ilsvrc2012(root, made)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("val/ILSVRC2012_val_00000012.JPEG"))


def one_key_twice(root: Path, made: Images) -> None:
    layouts.webdataset(root, made)
    with tarfile.open(root / "imagenet1k-train-03.tar", "w") as tar:
        for name in ("1.jpg", "1.cls", "1.jpg", "1.cls"):
            tar.addfile(tarfile.TarInfo(name))


def one_image_in_two_shards(root: Path, made: Images) -> None:
    layouts.webdataset(root, made)
    (root / "imagenet1k-train-03.tar").write_bytes((root / "imagenet1k-train-00.tar").read_bytes())


REFUSED: dict[Callable[[Path, Images], None], str] = {
    without_list: "12 validation images and no list of their classes: expected LOC_val_solution.csv.*or --val-list",
    short_list: "1 lines: expected 12, one for each validation image",
    list_of_others: r"LOC_val_solution\.csv: 1 of 12 images are not in it: ILSVRC2012_val_00000003",
    truncated: r"ILSVRC2012_img_train\.tar: .*expected a whole tar",
    compressed: r"ILSVRC2012_img_val\.tar: compressed by gzip",
    without_val: r"ILSVRC2012_img_val\.tar: no such file",
    unknown_class: "has n99999999: expected the WordNet ids of ImageNet-1k",
    without_a_shard: "train: 1 of 2 shards, shards missing: 00001",
    partly_converted: "partial-train: a part of the set",
    without_a_class: r"imagenet1k-train-00\.tar: 1: jpg: expected \.jpg and \.cls",
    followed: r"ILSVRC2012_img_val\.tar: more follows the tar's end at byte \d+: expected one tar",
    with_a_link: r"ILSVRC2012_img_val\.tar: ILSVRC2012_val_00000013\.JPEG: a link or the like: expected plain files",
    one_name_twice: "train: two images are called 'n01751748/n01751748_9.JPEG'",
    one_val_name_twice: "12 lines: expected 13, one for each validation image",
    one_key_twice: r"imagenet1k-train-03\.tar: 1: two members of one kind: expected one sample of each name",
    one_image_in_two_shards: "train: two images are called 'n0.*: expected one of each name",
    two_of_a_label: "label 0 is n01751748 and, of 'n03126707_5.JPEG', n03126707: expected one class",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_what_is_missing_or_contradicts_itself_is_named(spoil, made, tmp_path):
    spoil(tmp_path / "set", made)
    with pytest.raises(UserError, match=REFUSED[spoil]):
        read_source(str(tmp_path / "set"))


@pytest.mark.parametrize("layout", ["Kaggle's tree", "a flat val"])
def test_a_list_that_a_spreadsheet_saved_is_read_as_it_was(layout, made, tmp_path):
    root = LAYOUTS[layout](tmp_path / "set", made)
    path = next(root / name for name in val_labels.LISTS if (root / name).exists())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert contents(read_source(str(root)), "val") == made["val"]


def test_a_tar_of_tars_that_was_packed_again_with_folders_is_read_as_it_was(made, tmp_path):
    root = layouts.ilsvrc2012(tmp_path / "set", made)
    inner = {}
    for wnid in CLASSES:
        images = {name: content for name, content in made["train"].items() if wnid_of(name) == wnid}
        inner[f"./train/{wnid}.tar"] = tar_of({f"./{name}": content for name, content in images.items()})
    put(root, "ILSVRC2012_img_train.tar", tar_of(inner))
    val = {f"./val/{name}": content for name, content in made["val"].items()}
    put(root, "ILSVRC2012_img_val.tar", tar_of(val | {"./val/._ILSVRC2012_val_00000001.JPEG": b"of a Mac"}))
    source = read_source(str(root))
    for split in made:
        assert [*contents(source, split).items()] == [*made[split].items()]


ARCHIVES = {
    "imagenette2.tgz": (gzip.compress(tar_of({"imagenette2/train/n01440764/a.JPEG": b"image"})), "compressed by gzip"),
    "tiny-imagenet-200.zip": (b"PK\3\4", "compressed by zip"),
    "ILSVRC2012_img_train.tar": (tar_of({"n01440764.tar": b"images"}), "a tar"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_not_read_in_place_is_refused_with_what_to_do(name, tmp_path):
    content, kind = ARCHIVES[name]
    put(tmp_path, name, content)
    with pytest.raises(UserError, match=rf"{name}: .*{kind}: expected a folder: that which unpacking it makes"):
        read_source(str(tmp_path / name))
    (tmp_path / name).rename(tmp_path / f"set.{name[-3:]}")
    with pytest.raises(UserError, match=rf"holds set\.{name[-3:]}: .*expected the folder that unpacking makes"):
        read_source(str(tmp_path))


def test_a_wrong_count_is_named(roots, capfd):
    read_source(str(roots["ILSVRC2012's tars"]))
    said = capfd.readouterr().err
    assert "ILSVRC2012_img_train.tar: 24 images of 4 classes: ILSVRC2012 has 1281167 of 1000" in said
    assert "ILSVRC2012_img_val.tar: 12 images of 4 classes: ILSVRC2012 has 50000 of 1000" in said


def test_labels_in_another_order_than_the_sorted_ids_are_numbered_anew(made, tmp_path):
    source = read_source(str(layouts.parquet(tmp_path / "set", made, order=(3, 0, 2, 1))))
    assert source.classes == CLASSES
    assert contents(source, "train") == made["train"]


@pytest.mark.parametrize("group", [1, 7, 100])
def test_rows_of_groups_of_any_size_are_read_in_order_and_from_the_middle(group, made, tmp_path):
    samples = read_source(str(layouts.parquet(tmp_path / "set", made, group))).splits["train"]
    for numbers in (range(24), range(5, 24, 3), range(23, -1, -1), (3, 3, 20, 4)):
        assert all(samples[number].image.read() == made["train"][samples[number].name] for number in numbers)


def test_an_image_that_lies_in_a_damaged_archive_is_a_damaged_one(made, tmp_path):
    source = read_source(str(layouts.webdataset(tmp_path / "set", made)))
    archive = source.splits["train"][23].image.archive
    with archive.open("r+b") as file:
        file.truncate(source.splits["train"][23].image.start + 5)
    with pytest.raises(UserError, match=r"1 files are not intact[^\n]*\n[^\n]*ends within it, at 5 of"):
        prepare(source, tmp_path / "out", Storage(), 1, False)


def test_an_index_of_a_tar_keeps_no_entries_and_takes_little_memory(tmp_path):
    count = 5000
    inner = tar_of({f"n01440764_{number}.JPEG": b"" for number in range(count)})
    put(tmp_path, "ILSVRC2012_img_train.tar", tar_of({"n01440764.tar": inner}))
    from en.data.sources.compact import Compact
    from en.data.sources.ilsvrc2012 import inner_tars, train_samples

    path = tmp_path / "ILSVRC2012_img_train.tar"
    samples = train_samples(path, inner_tars(path))
    tracemalloc.start()
    kept = Compact(samples)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == count and held < 100 * count


# ---- Kin ----


def tiny_imagenet(root: Path, made: Images) -> Path:
    for name, content in made["train"].items():
        put(root / "train" / wnid_of(name) / "images", base(name), content)
        put(root / "train" / wnid_of(name), f"{wnid_of(name)}_boxes.txt", b"n01751748_0.JPEG\t0\t0\t62\t63\n")
    rows = []
    for name, content in made["val"].items():
        put(root / "val" / "images", base(name), content)
        rows.append(f"{base(name)}\t{wnid_of(name)}\t0\t32\t44\t62\n")
    put(root, "val/val_annotations.txt", "".join(layouts.shuffled(rows)).encode())
    put(root, "wnids.txt", "\n".join(layouts.shuffled(CLASSES)).encode())
    put(root, "test/images/test_0.JPEG", b"not read")
    return root


def test_tiny_imagenet_is_read_as_downloaded(made, tmp_path, capfd):
    root = tiny_imagenet(tmp_path / "tiny-imagenet-200", made)
    source = read_source(str(root))
    assert "24 images of 4 classes: Tiny-ImageNet has 100000 of 200" in capfd.readouterr().err
    assert source.classes == CLASSES
    assert all(contents(source, split) == made[split] for split in made)
    table = root / "val" / "val_annotations.txt"
    table.write_text(table.read_text().replace("n01751748", "n00000001"))
    with pytest.raises(UserError, match=r"val_annotations\.txt:\d+: .*expected a file of val/images and a class"):
        read_source(str(root))


CIFAR = {"cifar-10": (["cat", "dog"], 7, 3), "cifar-100": (["crane", "maple_tree"], 9, 4)}  # classes, images a file


def cifar_images(name: str) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Rows of bytes as CIFAR has them, and labels, by file."""
    files = (
        [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"] if name == "cifar-10" else ["train", "test"]
    )
    rng = np.random.default_rng(len(name))
    return {
        file: (
            rng.integers(0, 255, (CIFAR[name][1], 3072), dtype=np.uint8),
            rng.integers(0, 2, CIFAR[name][1]).tolist(),
        )
        for file in files
    }


def cifar_python(name: str, evil: object = None) -> dict[str, bytes]:
    key, folder = ("labels", "cifar-10-batches-py") if name == "cifar-10" else ("fine_labels", "cifar-100-python")
    meta = ("batches.meta", "label_names") if name == "cifar-10" else ("meta", "fine_label_names")
    files = {
        file: {b"data": data, key.encode(): labels, b"batch_label": evil}
        for file, (data, labels) in cifar_images(name).items()
    }
    files[meta[0]] = {meta[1].encode(): [kind.encode() for kind in CIFAR[name][0]]}
    return {f"{folder}/{file}": pickle.dumps(content, 2) for file, content in files.items()}


def cifar_binary(name: str) -> dict[str, bytes]:
    folder = "cifar-10-batches-bin" if name == "cifar-10" else "cifar-100-binary"
    names = "batches.meta.txt" if name == "cifar-10" else "fine_label_names.txt"
    coarse = b"" if name == "cifar-10" else b"\x07"
    files = {
        f"{folder}/{file}.bin": b"".join(
            coarse + bytes([label]) + row.tobytes() for row, label in zip(*held, strict=True)
        )
        for file, held in cifar_images(name).items()
    }
    return files | {f"{folder}/{names}": "\n".join([*CIFAR[name][0], ""]).encode()}


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_the_same_from_pickles_and_the_binary_form_packed_and_unpacked(name, tmp_path):
    sources = []
    for form, files in (("python", cifar_python(name)), ("binary", cifar_binary(name))):
        archive = tmp_path / f"{name}-{form}.tar.gz"
        archive.write_bytes(gzip.compress(tar_of(files)))
        for file, content in files.items():
            put(tmp_path / form, file, content)
        sources += [read_source(str(archive)), read_source(str(tmp_path / form))]
    first, *others = sources
    assert first.classes == CIFAR[name][0]
    held = [held for file, held in cifar_images(name).items() if not file.startswith("test")]
    for sample, row in zip(first.splits["train"], np.concatenate([data for data, _ in held]), strict=True):
        assert np.array_equal(sample.image, row.reshape(3, 32, 32).transpose(1, 2, 0))
    assert [sample.target for sample in first.splits["train"]] == [label for _, labels in held for label in labels]
    for other in others:
        for split in first.splits:
            for one, two in zip(first.splits[split], other.splits[split], strict=True):
                assert (one.name, one.target) == (two.name, two.target) and np.array_equal(one.image, two.image)
    prepare(first, tmp_path / "out", Storage("raw"), 1, False)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo run by a pickle",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path, capfd):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(gzip.compress(tar_of(cifar_python("cifar-10", Evil()))))
    with pytest.raises(UserError, match=r"data_batch_1: expected a pickle.*system: expected arrays"):
        read_source(str(path))
    assert "run by a pickle" not in capfd.readouterr().out


def test_a_network_is_trained_from_what_was_prepared_of_archives(prepared, tmp_path):
    (tmp_path / "recipe.yaml").write_text(kill_loop.RECIPE)
    options = ["train.epochs=1", "train.batch_size=8", "data.resolution=32", f"run_dir={tmp_path / 'run'}"]
    succeed("train.py", tmp_path / "recipe.yaml", f"data.root={prepared['parquet']}", *options)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 1
