"""Class folders and list files: both loaders read, ignore and refuse the same."""

import os
from pathlib import Path

import numpy as np
import pytest
from commands import command, refused, succeed
from conftest import ended, jpeg, write_folders
from PIL import Image
from readers import reading

from en.data import LOADERS
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import ade20k, cub, pairs, read_source, real, webvision, wordnet
from en.data.sources.lists import read_list
from en.errors import UserError


def test_a_list_file_gives_the_same_samples_as_the_folders(folders, betons, tmp_path):
    rows = [f"{s}\t{p}\t{p.parent.name}" for s in ("train", "val") for p in sorted((folders / s).rglob("*.jpg"))]
    (tmp_path / "clothes.tsv").write_text("# split path class\n" + "\n".join(rows))
    prepare(read_source(str(tmp_path / "clothes.tsv")), tmp_path / "out", Storage(), 2, False)
    for name in ("train.beton", "val.beton", "classes.json"):
        assert (tmp_path / "out" / name).read_bytes() == (betons / name).read_bytes()


BLANKS = [" ", "  ", "\u00a0", "\u3000", "\u2009", "\u202f", "\u200b", "\ufeff", " \u00a0\u200b \u2060 ", "\x1f"]


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
def test_blanks_of_any_kind_around_the_fields_of_a_list_are_no_part_of_them(tmp_path, blank):
    rows = [("train", "a.jpg", "sea lion"), ("train", "b.jpg", "cat"), ("val", "c.jpg", "cat")]
    lines = ["\t".join(row) for row in rows]
    around = ["\t".join(blank + field + blank for field in row) for row in rows]
    (tmp_path / "plain.tsv").write_text("\n".join(lines))
    plain = read_source(str(tmp_path / "plain.tsv"))
    assert plain.classes == ["cat", "sea lion"]
    for at, line in enumerate(around):
        (tmp_path / "blank.tsv").write_text("\n".join([*lines[:at], line, *lines[at + 1 :], blank]), encoding="utf-8")
        found = read_source(str(tmp_path / "blank.tsv"))
        assert (found.classes, found.splits) == (plain.classes, plain.splits)
    for lacking in (f"train\ta.jpg\t{blank}", f"train\t{blank}\tcat", f"train a.jpg {blank}"):
        (tmp_path / "lacks.tsv").write_text("\n".join([*lines, lacking]), encoding="utf-8")
        with pytest.raises(UserError, match=r"lacks.tsv:4: .* expected `train.val.test path class`"):
            read_source(str(tmp_path / "lacks.tsv"))


def test_a_path_that_a_list_names_twice_in_a_split_is_refused(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("train a.jpg x\nval a.jpg x\ntrain a.jpg y\n")
    with pytest.raises(UserError, match=r"list.txt: train: two images are called .a.jpg.: expected one of each name"):
        read_source(str(path))


ALIKE = {
    ("Cat", "cat"): "'Cat' and 'cat'",
    ("STRASSE", "straße"): "'STRASSE' and 'straße'",
    ("cafe\u0301", "caf\u00e9"): r"'cafe\u0301' and 'caf\xe9'",
    ("polar bear", "polar\u00a0bear"): r"'polar bear' and 'polar\xa0bear'",
}


@pytest.mark.parametrize(("names", "words"), ALIKE.items(), ids=map(ascii, ALIKE))
def test_classes_that_look_alike_are_warned_of_once_in_lists_and_folders(tmp_path, capsys, names, words):
    rows = [f"{split}\tfolders/{split}/{name}/1.jpg\t{name}" for name in (*names, "dog") for split in ("train", "val")]
    (tmp_path / "list.tsv").write_text("\n".join(rows), encoding="utf-8")
    picture = np.zeros((8, 8, 3), np.uint8)
    for path in (tmp_path / row.split("\t")[1] for row in rows):
        path.parent.mkdir(parents=True)
        path.write_bytes(jpeg(picture))
    assert len(read_source(str(tmp_path / "list.tsv")).classes) == 3
    for split in ("train", "val"):
        LOADERS["folder"](tmp_path / "folders", split, reading()).close()
    told = capsys.readouterr().err.splitlines()
    pair = f"classes that differ in case, blanks or Unicode form alone: {words}"
    assert told == [f"warning: {tmp_path / place}: {pair}" for place in ("list.tsv", "folders")]


def test_bad_sources_and_arguments_are_refused_in_one_line(tmp_path, folders):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "list.txt").write_text("train a.jpg\n")
    (tmp_path / "unknown.txt").write_text("train a.jpg x\nval b.jpg y\n")
    (tmp_path / "binary.bin").write_bytes(bytes(range(128, 256)))
    for source, word in [
        (tmp_path / "missing", "missing"), (tmp_path, "image files"), (tmp_path / "list.txt", "list.txt:1"),
        (tmp_path / "unknown.txt", "'y'"), (tmp_path / "binary.bin", "text file"), (tmp_path / "train", "train"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match="expected") as refusal:
            read_source(str(source))
        assert word in str(refusal.value) and "\n" not in str(refusal.value)
    assert "--max-side" in refused(command("scripts/prepare_data.py", folders, tmp_path / "out", "--max-side", 10))
    assert "--quality" in refused(command("scripts/prepare_data.py", folders, tmp_path / "out", "--quality", 0))


def test_a_class_of_two_words_without_tabs_is_refused_with_the_line_and_the_need_of_tabs(folders, tmp_path):
    first = min((folders / "train").rglob("*.jpg"))
    for name in ("a.jpg", "a b.jpg"):
        (tmp_path / name).write_bytes(first.read_bytes())
        lines = [f"{split} {name} great dane" for split in ("train", "val")]
        path = tmp_path / "list.txt"
        path.write_text("\n".join(lines))
        with pytest.raises(UserError, match=rf"list.txt:1: no file '{name} great', but '{name}' is one: expected tabs"):
            read_source(str(path))
        path.write_text("\n".join("\t".join(line.replace(f" {name} ", f"|{name}|").split("|")) for line in lines))
        assert read_source(str(path)).classes == ["great dane"]
        path.write_text("\n".join(lines).replace(" great", ""))
        assert read_source(str(path)).classes == ["dane"]


def test_a_val_class_that_train_lacks_is_refused(kind, tmp_path):
    root = write_folders(tmp_path / "x", {"train": 2, "val": 2})
    (root / "val" / "Extra").mkdir()
    with pytest.raises(UserError, match="Extra"):
        read_source(str(root))


def test_hidden_files_are_ignored_and_linked_folders_are_read(kind, untidy, tmp_path):
    prepare(read_source(str(untidy)), tmp_path / "out", Storage(), 1, False)
    loader = LOADERS[kind](tmp_path / "out" if kind == "ffcv" else untidy, "train", reading(9))
    assert loader.samples == 9
    loader.close()


def test_unreadable_files_are_listed_as_damaged(untidy, tmp_path):
    first = min((untidy / "train").iterdir())
    (first / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(first / "pipe.jpg")
    (first / "circle.jpg").symlink_to("circle.jpg")
    with pytest.raises(UserError, match="3 files") as refusal:
        prepare(read_source(str(untidy)), tmp_path / "out", Storage(), 1, False)
    assert all(f"{name}.jpg: " in str(refusal.value) for name in ("dangling", "pipe", "circle"))


def lose_a_val_class(root: Path) -> str:
    victim = max((root / "val").iterdir())
    victim.rename(root / victim.name)
    return victim.name


def empty_a_train_class(root: Path) -> str:
    folder = max((root / "train").iterdir())
    for path in folder.iterdir():
        path.unlink()
    return folder.name


def empty_val(root: Path) -> str:
    for path in (root / "val").rglob("*.jpg"):
        path.unlink()
    return "val"


def lose_a_linked_class(root: Path) -> str:
    (root / "train" / "gone").symlink_to("nowhere")
    return "gone"


def put_a_file_among_the_classes(root: Path) -> str:
    (root / "val" / "stray.jpg").write_text("")
    return "stray.jpg"


def link_a_folder_to_itself(root: Path) -> str:
    (min((root / "train").iterdir()) / "loop").symlink_to("..")
    return "loop"


def name_a_class_in_latin1(root: Path) -> str:
    for split in ("train", "val"):
        source = max((root / split).iterdir())
        source.rename(os.fsdecode(os.fsencode(root / split) + b"/zo\xeb"))
    return "xeb"


@pytest.mark.parametrize(
    "spoil",
    [
        lose_a_val_class, empty_a_train_class, empty_val, lose_a_linked_class, put_a_file_among_the_classes,
        link_a_folder_to_itself, name_a_class_in_latin1,
    ],
)  # fmt: skip
def test_folders_of_another_form_are_refused_by_name_in_both_loaders(spoil, untidy):
    name = spoil(untidy)
    for read in (lambda: read_source(str(untidy)), lambda: LOADERS["folder"](untidy, "val", reading())):
        with pytest.raises(UserError, match="expected") as refusal:
            read()
        assert name in str(refusal.value) and "\n" not in str(refusal.value)
        assert str(refusal.value).isascii()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_an_unreadable_folder_is_an_error_that_names_it_and_an_unreadable_file_counts_as_damaged(
    untidy, tmp_path, capfd, forked
):
    for path in (untidy, *untidy.parents):
        path.chmod(path.stat().st_mode | 0o555)  # so that another user can pass through
    tmp_path.chmod(0o777)
    prepare(read_source(str(untidy)), tmp_path / "mine", Storage(), 1, True)  # imports what the other user may not read
    folder = max((untidy / "train").iterdir())
    for place, words in (((folder / "000.jpg"), "000.jpg: cannot be read"), (folder, folder.name)):
        place.chmod(0)
        child = forked(
            lambda: (os.setuid(65_534), prepare(read_source(str(untidy)), tmp_path / "out", Storage(), 1, False))
        )
        assert ended(child) == 2
        assert words in capfd.readouterr().err
        place.chmod(0o755)


def test_file_names_that_no_terminal_can_show_are_listed(untidy, tmp_path):
    victim = os.fsdecode(os.fsencode(max((untidy / "train").iterdir())) + b"/\xff\xc3\xa9.jpg")
    Path(victim).write_bytes(b"nothing")
    done = succeed("scripts/prepare_data.py", untidy, tmp_path / "out", "--skip-corrupt", PYTHONIOENCODING="ascii")
    *lines, last = done.stdout.splitlines()
    assert any("skipped" in line and ".jpg: not an image" in line for line in lines) and "1 skipped" in last


def test_the_folder_loader_identifies_images_however_the_path_to_them_is_written(folders, tmp_path, monkeypatch):
    def digest(root: Path) -> str:
        return LOADERS["folder"](root, "train", reading(workers=0)).digest

    here = digest(folders)
    (tmp_path / "link").symlink_to(folders)
    latin1 = tmp_path / os.fsdecode(b"zo\xeb")
    latin1.symlink_to(folders)
    monkeypatch.chdir(folders)
    names = [".", "../clothes", f"{folders}/", "./train/..", str(tmp_path / "link"), str(latin1)]
    assert {name: digest(Path(name)) for name in names} == dict.fromkeys(names, here)


def test_images_and_masks_split_by_split_are_not_taken_for_two_classes(tmp_path):
    for folder in ("train/images", "train/masks", "val/images", "val/masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "set" / folder / "a.png")
    with pytest.raises(UserError, match=r"images,masks}: expected images/{train,val}, masks/{train,val} and classes.t"):
        read_source(str(tmp_path / "set"))


READERS = {
    "a list": read_list,
    "ADE20K's classes": ade20k.read_names,
    "CUB's tables": cub.read_table,
    "WebVision's lists": webvision.read_lines,
    "a table of classes": pairs.read_table,
    "WordNet ids": wordnet.read_classes,
    "ReaL's labels": real.read_real,
}


@pytest.mark.parametrize("read", READERS.values(), ids=[*READERS])
def test_a_list_that_is_missing_or_no_text_is_named_once_with_what_was_expected(tmp_path, read):
    path = tmp_path / "list.txt"
    with pytest.raises(UserError, match=r"list.txt: No such file or directory: expected ") as refusal:
        read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"list.txt: not UTF-8 text: expected ") as other:
        read(path)
    assert all(str(each.value).count(str(path)) == 1 and "Errno" not in str(each.value) for each in (refusal, other))
