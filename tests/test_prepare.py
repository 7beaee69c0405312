"""Preparation on real image files: what is stored, what is refused, and what a kill leaves behind."""

import io
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from commands import command, refused, succeed
from conftest import CLASSES, PER_CLASS, jpeg, write_folders
from PIL import Image
from readers import epoch_pixels, reading

from en.data import LOADERS
from en.data.decoding import DamagedImage, decode_image
from en.data.ffcv.file import BetonFile, Encoded
from en.data.ffcv.kernels import decode_jpeg
from en.data.ffcv.out_folder import FILES
from en.data.ffcv.prepare import Storage, prepare
from en.data.sources import Sample, Source, read_source
from en.errors import RunError, UserError, exit_on_error
from scripts.prepare_data import main

TRAIN = PER_CLASS["train"] * CLASSES


def test_raw_storage_decodes_to_the_pixels_of_the_files(folders, tmp_path):
    prepare(read_source(str(folders)), tmp_path, Storage("raw"), 2, False)
    file = BetonFile(tmp_path / "val.beton")
    paths = [p for c in sorted((folders / "val").iterdir()) for p in sorted(c.iterdir())]
    for sample, path in enumerate(paths):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        out = np.empty((20, 20, 3), np.uint8)
        file.decode(sample, (3, 5, 20, 20), out, np.empty(0, np.uint8))
        assert np.array_equal(out, pixels[3:23, 5:25])


@pytest.mark.parametrize("storage", [Storage("reencode", 48, 95), Storage("raw", 48), Storage("reencode", None, 60)], ids=str)
def test_scaled_and_reencoded_images_stay_the_same_pictures(folders, tmp_path, storage):
    prepare(read_source(str(folders)), tmp_path, storage, 2, False)
    file = BetonFile(tmp_path / "train.beton")
    if storage.max_side:
        assert max(file.heights.max(), file.widths.max()) == storage.max_side
    name = LOADERS["ffcv"](tmp_path, "train", reading()).name
    assert ("quality" in name) == (storage.kind == "reencode") and ("side 48" in name) == (storage.max_side == 48)
    source = read_source(str(folders)).splits["train"]
    for sample in range(0, TRAIN, 10):
        original = np.asarray(Image.open(source[sample].image).convert("RGB").resize((24, 24), Image.Resampling.BOX), np.float32)
        out = np.empty((24, 24, 3), np.uint8)
        box = (0, 0, int(file.heights[sample]), int(file.widths[sample]))
        file.decode(sample, box, out, np.empty(file.largest(), np.uint8))
        assert np.abs(out - original).mean() < 8


def test_the_same_source_gives_the_same_bytes_with_any_number_of_workers(folders, tmp_path):
    for workers in (1, 3):
        prepare(read_source(str(folders)), tmp_path / str(workers), Storage(), workers, False)
    for name in ("train.beton", "val.beton", "classes.json", "dataset.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def odd_images(root: Path) -> Path:
    """One class folder each of grey, CMYK, palette, transparent, 16-bit, one-pixel and progressive images."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    for split in ("train", "val"):
        folder = root / split / "odd images"
        folder.mkdir(parents=True)
        (folder / "grey.jpg").write_bytes(jpeg(pixels, "L"))
        (folder / "cmyk.jpg").write_bytes(jpeg(pixels, "CMYK"))
        (folder / "progressive.JPEG").write_bytes(jpeg(pixels, progressive=True))
        (folder / "png under another name.jpg").write_bytes(b"")
        Image.fromarray(pixels).save(folder / "png under another name.jpg", "PNG")
        Image.fromarray(pixels).convert("P").save(folder / "palette.png")
        Image.fromarray(pixels).convert("RGBA").save(folder / "transparent.png")
        Image.fromarray(pixels[:1, :1]).save(folder / "pixel.png")
        (folder / ".hidden").write_text("not an image")
    return root


def test_grey_cmyk_and_other_images_become_rgb_in_both_loaders(tmp_path):
    folders = odd_images(tmp_path / "in")
    counts = prepare(read_source(str(folders)), tmp_path / "out", Storage(), 2, False)
    assert counts == {"train": 7, "val": 7, "skipped": 0, "warnings": 0, "warnings_kept": 0}
    loaders = [LOADERS["ffcv"](tmp_path / "out", "val", reading(7)), LOADERS["folder"](folders, "val", reading(7))]
    mine, theirs = (next(iter(loader.eval_epoch(32))).images.float() for loader in loaders)
    assert (mine - theirs).abs().mean() < 6


DAMAGE = {
    "empty.jpg": b"",
    "text.jpg": b"not an image at all",
    "truncated.jpg": "half",
    "overwritten.jpg": "noise",
    "list.txt": b"a.jpg 3\n",
    "truncated.png": "png",
}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    root = write_folders(tmp_path / "damaged", {"train": 3, "val": 2})
    folder = sorted((root / "train").iterdir())[1]
    whole = jpeg(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8), quality=95)
    for name, content in DAMAGE.items():
        if content == "half":
            content = whole[: len(whole) // 2]
        if content == "noise":
            middle = len(whole) // 2
            content = whole[:middle] + b"\xff\xd0\xff\xd9" * 8 + whole[middle + 32 :]
        if content == "png":
            Image.effect_noise((50, 50), 50).save(folder / name)
            content = (folder / name).read_bytes()[:900]
        (folder / name).write_bytes(content)
    return root


@pytest.mark.parametrize("storage", ["jpeg", "reencode", "raw"])
def test_damaged_files_are_all_listed_and_nothing_is_written(damaged, tmp_path, storage):
    out = tmp_path / "out"
    done = command("scripts/prepare_data.py", damaged, out, "--storage", storage)
    assert done.returncode == 2 and f"{len(DAMAGE)} files" in done.stderr and "Traceback" not in done.stderr
    assert all(f"{name}: " in done.stderr for name in DAMAGE)
    assert not list(out.iterdir())


def test_skip_corrupt_leaves_damaged_files_out_and_says_how_many(damaged, tmp_path):
    done = succeed("scripts/prepare_data.py", damaged, tmp_path / "out", "--skip-corrupt")
    assert f"{len(DAMAGE)} left out" in done.stdout
    loader = LOADERS["ffcv"](tmp_path / "out", "train", reading(4))
    assert loader.samples == 3 * CLASSES and len(epoch_pixels(loader, 0)) == 3 * CLASSES


def test_a_list_file_gives_the_same_samples_as_the_folders(folders, betons, tmp_path):
    rows = [f"{s}\t{p}\t{p.parent.name}" for s in ("train", "val") for p in sorted((folders / s).rglob("*.jpg"))]
    (tmp_path / "clothes.tsv").write_text("# split path class\n" + "\n".join(rows))
    prepare(read_source(str(tmp_path / "clothes.tsv")), tmp_path / "out", Storage(), 2, False)
    for name in ("train.beton", "val.beton", "classes.json"):
        assert (tmp_path / "out" / name).read_bytes() == (betons / name).read_bytes()


def test_bad_sources_and_arguments_are_refused_in_one_line(tmp_path, folders):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "list.txt").write_text("train a.jpg\n")
    (tmp_path / "unknown.txt").write_text("train a.jpg x\nval b.jpg y\n")
    (tmp_path / "binary.bin").write_bytes(bytes(range(128, 256)))
    for source, word in [
        (tmp_path / "missing", "missing"), (tmp_path, "val"), (tmp_path / "list.txt", "list.txt:1"),
        (tmp_path / "unknown.txt", "'y'"), (tmp_path / "binary.bin", "text file"), (tmp_path / "train", "train"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match="expected") as refusal:
            read_source(str(source))
        assert word in str(refusal.value) and "\n" not in str(refusal.value)
    assert "--max-side" in refused(command("scripts/prepare_data.py", folders, tmp_path / "out", "--max-side", 10))
    assert "--quality" in refused(command("scripts/prepare_data.py", folders, tmp_path / "out", "--quality", 0))


def test_a_val_class_that_train_lacks_is_refused(kind, tmp_path):
    root = write_folders(tmp_path / "x", {"train": 2, "val": 2})
    (root / "val" / "Extra").mkdir()
    with pytest.raises(UserError, match="Extra"):
        read_source(str(root))


def test_a_worker_that_dies_while_preparing_ends_it_with_one_line(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("en.data.ffcv.prepare.encode", die)
    from en.data.ffcv import prepare as module

    with pytest.raises(RunError, match="worker process died"):
        module.prepare(read_source(str(folders)), tmp_path / "out", Storage(), 2, False)
    assert not list((tmp_path / "out").iterdir())


def die(sample: object, storage: object) -> Encoded:
    os._exit(9)


def whole_jpegs(seed: int, count: int) -> Iterator[bytes]:
    """JPEG files of noise and flat parts: baseline, optimized, progressive, with restarts, grey and CMYK."""
    rng = np.random.default_rng(seed)
    forms = [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}]
    for number in range(count):
        height, width = rng.integers(24, 120, 2)
        coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        pixels = coarse.repeat(8, 0).repeat(8, 1)[:height, :width] // 2 + rng.integers(0, 128, (height, width, 3), dtype=np.uint8)
        mode = ("RGB", "RGB", "L", "CMYK")[number % 4]
        quality, sampling = int(rng.integers(40, 100)), int(rng.integers(0, 3)) if mode == "RGB" else -1
        yield jpeg(pixels, mode, quality=quality, subsampling=sampling, **forms[number % 5])


def damage(content: bytes, rng: random.Random) -> bytes:
    """The file with one thing wrong, mostly in its scan."""
    spoilt = bytearray(content)
    at = rng.randrange(2 if rng.random() < 0.1 else content.find(b"\xff\xda"), len(content) - 2)
    length = rng.choice([1, 1, 2, 4, 16, 64])
    length = min(length, len(content) - 2 - at)
    match rng.randrange(6):
        case 0:
            spoilt[at] ^= 1 << rng.randrange(8)
        case 1:
            spoilt[at : at + length] = bytes(length)
        case 2:
            spoilt[at : at + length] = rng.randbytes(length)
        case 3:
            del spoilt[at : at + length]
        case 4:
            spoilt[at:at] = rng.randbytes(length)
        case 5:
            del spoilt[at:]
    return bytes(spoilt)


def is_noticed(content: bytes) -> bool:
    """Whether Pillow refuses a JPEG file or FFCV's call of libjpeg returns that something is wrong."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception:
        return True
    if image.mode == "CMYK":
        return False  # FFCV's call takes no such file
    data, out = np.frombuffer(content, np.uint8), np.empty(3 * image.height * image.width, np.uint8)
    return decode_jpeg(data.ctypes.data, data.size, image.height, image.width, out) != 0


def fault(content: bytes) -> str:
    try:
        return decode_image(content).warning
    except DamagedImage as error:
        return str(error)


@pytest.mark.parametrize("seed", [0, 1])
def test_damages_that_libjpeg_or_pillow_notice_are_named(seed):
    rng = random.Random(seed)
    noticed = [spoilt for whole in whole_jpegs(seed, 300) if is_noticed(spoilt := damage(whole, rng))]
    assert len(noticed) > 120
    assert sum(fault(content) != "" for content in noticed) >= 0.99 * len(noticed)


def test_whole_files_are_not_named_whatever_follows_or_pads_their_end():
    noted = 0
    for number, content in enumerate(whole_jpegs(2, 200)):
        filler = (b"", b"\0" * 7, b"\0" * 100, b"\xff" * 5, b"\x20" * 30)[number % 5]
        padded = content[:-2] + filler + content[-2:] + (b"a thumbnail" if number % 3 else b"")
        assert fault(content) == "" and fault(padded) == "", filler
        noted += decode_image(padded).note != ""
    assert noted >= 80


def test_padding_behind_a_decoder_that_stopped_too_early_is_no_excuse():
    """A height that a changed byte makes 8 pixels less leaves two bytes of the scan, of which libjpeg alone says nothing."""
    pixels = np.full((32, 16), 128, np.uint8)
    pixels[:24] = np.random.default_rng(0).integers(0, 255, (24, 16), dtype=np.uint8)
    whole = jpeg(pixels, "L", quality=50)
    at = whole.find(b"\xff\xc0") + 5
    assert whole[at : at + 2] == b"\x00\x20"
    for content, is_whole in ((whole, True), (whole[: at + 1] + b"\x18" + whole[at + 2 :], False)):
        assert not is_noticed(content)
        assert (fault(content[:-2] + bytes(40) + content[-2:]) == "") == is_whole


def out_of_step() -> bytes:
    """A baseline JPEG file that Pillow takes, and of which libjpeg says only that bytes are left over before its end."""
    rng = random.Random(3)
    for whole in whole_jpegs(5, 400):
        spoilt = damage(whole, rng)
        if "extraneous bytes before marker 0xd9" in fault(spoilt) and Image.open(io.BytesIO(spoilt)).mode == "RGB":
            return spoilt
    raise AssertionError("no such file")


@pytest.fixture
def warned(tmp_path: Path) -> Path:
    """Eight images for training, of which one makes libjpeg warn and one is padded."""
    root = write_folders(tmp_path / "warned", {"train": 2, "val": 1})
    first, second = sorted((root / "train").rglob("*.jpg"))[:2]
    first.write_bytes(out_of_step())
    content = second.read_bytes()
    second.write_bytes(content[:-2] + bytes(40) + content[-2:])
    return root


def test_a_warning_is_refused_skipped_or_kept_and_always_listed(warned, tmp_path, capsys):
    spoilt, padded = sorted((warned / "train").rglob("*.jpg"))[:2]
    with pytest.raises(UserError, match=rf"1 files are not[^\n]*\n  {spoilt}: Corrupt JPEG data"):
        prepare(read_source(str(warned)), tmp_path / "refuse", Storage(), 1, False)
    for choice, stored in (("skip", 7), ("keep", 8)):
        counts = prepare(read_source(str(warned)), tmp_path / choice, Storage(), 1, False, choice)
        assert counts == {"train": stored, "val": 4, "skipped": 8 - stored, "warnings": 2, "warnings_kept": stored - 6}
        said = capsys.readouterr().out
        assert f"kept {padded}: 40 bytes of padding" in said
        assert f"{'left out' if choice == 'skip' else 'kept'} {spoilt}: Corrupt JPEG data" in said
        loader = LOADERS["ffcv"](tmp_path / choice, "train", reading(stored))
        assert len(epoch_pixels(loader, 0)) == stored
        loader.close()


def test_the_folder_loader_refuses_what_preparation_refuses(warned):
    loader = LOADERS["folder"](warned, "train", reading(8, workers=0))
    with pytest.raises(RunError, match=r"damaged: Corrupt JPEG data"):
        epoch_pixels(loader, 0)


@pytest.fixture
def forked() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Does some work in a copy of this process, which ends as a command does; gives its process id."""
    children = []

    def fork(work: Callable[[], object]) -> int:
        child = os.fork()
        if child:
            children.append(child)
            return child
        os.setpgid(0, 0)
        code = 1
        try:
            exit_on_error(lambda: work() and None)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    yield fork
    for child in children:  # what a test that failed has left, and what that has
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


def test_without_ffcv_the_folder_loader_says_once_what_it_does_not_hear(warned, capfd, forked):
    def open_twice() -> None:
        import sys

        for name in ("en.data.decoding", "en.data.folder", "en.data.ffcv.kernels"):
            sys.modules.pop(name, None)
        sys.modules["en.data.ffcv.kernels"] = None  # as where ffcv is not installed
        from en.data.folder import FolderLoader

        for split in ("train", "val"):
            loader = FolderLoader(warned, split, reading(4, workers=0))
        assert len(list(loader.eval_epoch(16))) == 1

    assert ended(forked(open_twice)) == 0
    assert capfd.readouterr().err.count("warning: data.loader=folder without") == 1


def test_every_mode_becomes_the_rgb_that_it_means_or_is_refused_by_name(tmp_path):
    ramp = np.linspace(0, 65_535, 256 * 4).reshape(16, 64)
    eight = np.rint(ramp / 257).astype(np.uint8)
    grey = Image.fromarray(eight)
    clear = Image.merge("LA", (grey, Image.new("L", grey.size, 0)))
    palette = Image.fromarray(eight).convert("P")
    palette.info["transparency"] = bytes(256)
    for name, image in {
        "16 bits.png": Image.fromarray(ramp.round().astype(np.uint16)),
        "16 bits.tiff": Image.fromarray(ramp.round().astype(np.uint16)),
        "clear.png": clear,
        "clear colours.png": clear.convert("RGBA"),
        "palette.png": palette,
    }.items():
        image.save(tmp_path / name)
        pixels = np.asarray(decode_image((tmp_path / name).read_bytes()).image).astype(int)
        assert pixels.shape == (16, 64, 3) and np.abs(pixels - eight[..., None]).max() <= 1, name
    for mode, values in (("F", ramp.astype(np.float32) / 65_535), ("I", ramp.astype(np.int32))):
        Image.fromarray(values).save(tmp_path / "wide.tiff")
        with pytest.raises(DamagedImage, match=f"mode {mode}"):
            decode_image((tmp_path / "wide.tiff").read_bytes())


def test_a_png_whose_checksum_is_wrong_and_a_bomb_are_named(monkeypatch):
    buffer = io.BytesIO()
    Image.effect_noise((50, 50), 50).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[content.find(b"IDAT") + 1500] ^= 1
    assert fault(bytes(content)) != ""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "decompression bomb" in fault(buffer.getvalue())


@pytest.fixture
def untidy(tmp_path: Path) -> Path:
    """Class folders with hidden parts and linked folders among them."""
    root = write_folders(tmp_path / "untidy", {"train": 2, "val": 1})
    first = min((root / "train").iterdir())
    for folder in (".ipynb_checkpoints", "@eaDir"):
        (first / folder).mkdir()
        (first / folder / "000.jpg").write_text("not an image")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "more.jpg").write_bytes((first / "000.jpg").read_bytes())
    (first / "linked").symlink_to(elsewhere)
    return root


def test_hidden_parts_are_passed_over_and_linked_folders_are_read(kind, untidy, tmp_path):
    prepare(read_source(str(untidy)), tmp_path / "out", Storage(), 1, False)
    loader = LOADERS[kind](tmp_path / "out" if kind == "ffcv" else untidy, "train", reading(9))
    assert loader.samples == 9
    loader.close()


def test_what_cannot_be_read_is_listed_as_damaged(untidy, tmp_path):
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
def test_folders_of_another_form_are_refused_by_both_loaders_and_named(spoil, untidy):
    name = spoil(untidy)
    for read in (lambda: read_source(str(untidy)), lambda: LOADERS["folder"](untidy, "val", reading())):
        with pytest.raises(UserError, match="expected") as refusal:
            read()
        assert name in str(refusal.value) and "\n" not in str(refusal.value)
        assert str(refusal.value).isascii()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_an_unreadable_folder_is_an_error_that_names_it_and_an_unreadable_file_is_damaged(untidy, tmp_path, capfd, forked):
    for path in (untidy, *untidy.parents):
        path.chmod(path.stat().st_mode | 0o555)  # for another user to pass through
    tmp_path.chmod(0o777)
    prepare(read_source(str(untidy)), tmp_path / "mine", Storage(), 1, True)  # loads what the other user may not read
    folder = max((untidy / "train").iterdir())
    for place, words in (((folder / "000.jpg"), "000.jpg: cannot be read"), (folder, folder.name)):
        place.chmod(0)
        child = forked(lambda: (os.setuid(65_534), prepare(read_source(str(untidy)), tmp_path / "out", Storage(), 1, False)))
        assert ended(child) == 2
        assert words in capfd.readouterr().err
        place.chmod(0o755)


def test_file_names_that_no_terminal_shows_are_listed_all_the_same(untidy, tmp_path):
    victim = os.fsdecode(os.fsencode(max((untidy / "train").iterdir())) + b"/\xff\xc3\xa9.jpg")
    Path(victim).write_bytes(b"nothing")
    done = succeed("scripts/prepare_data.py", untidy, tmp_path / "out", "--skip-corrupt", PYTHONIOENCODING="ascii")
    assert "left out" in done.stdout and "1 left out" in done.stdout.splitlines()[-1] and ".jpg: not an image" in done.stdout


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def endless(tmp_path: Path) -> Source:
    """More work than a test waits for."""
    large = tmp_path / "large.jpg"
    large.write_bytes(jpeg(np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8)))
    samples = [Sample(str(large), large, 0)] * 20_000
    return Source("endless", ["noise"], {"train": samples, "val": samples})


def workers_of(child: int, out: Path) -> list[psutil.Process]:
    """A preparation's workers, once it has begun to write."""
    partial = out / "train.beton.partial"
    while not (partial.exists() and partial.stat().st_size > 0):
        assert psutil.Process(child).status() != psutil.STATUS_ZOMBIE
        time.sleep(0.02)
    return psutil.Process(child).children()


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def test_a_preparation_that_is_killed_leaves_no_workers_and_nothing_that_opens(tmp_path, folders, forked):
    source, out = endless(tmp_path), tmp_path / "out"
    child = forked(lambda: prepare(source, out, Storage("raw"), 2, False))
    workers = workers_of(child, out)
    with pytest.raises(UserError, match="another preparation"):
        prepare(read_source(str(folders)), out, Storage(), 1, False)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert len(workers) == 2 and gone(workers)
    with pytest.raises(UserError, match="expected"):
        LOADERS["ffcv"](out, "train", reading())
    prepare(read_source(str(folders)), out, Storage(), 1, False)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_preparation_that_is_stopped_ends_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capfd, number, code, forked):
    source, out = endless(tmp_path), tmp_path / "out"
    rows = "".join(f"{split} large.jpg noise\n" * 20_000 for split in source.splits)
    (tmp_path / "list.txt").write_text(rows)
    monkeypatch.setattr("sys.argv", ["prepare_data.py", str(tmp_path / "list.txt"), str(out), "--workers", "2"])
    child = forked(main)
    workers = workers_of(child, out)
    for process in (*workers, psutil.Process(child)) if number == signal.SIGINT else (psutil.Process(child),):
        process.send_signal(number)  # a Ctrl-C goes to all
    assert ended(child) == code
    assert gone(workers) and not list(out.iterdir())
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


def test_a_folder_that_holds_a_set_is_refused_until_it_is_to_be_replaced(folders, untidy, tmp_path):
    out = tmp_path / "out"
    prepare(read_source(str(untidy)), out, Storage(), 1, False)
    before = {name: (out / name).read_bytes() for name in FILES}
    with pytest.raises(UserError, match=r"holds .*--overwrite"):
        prepare(read_source(str(folders)), out, Storage(), 1, False)
    assert before == {name: (out / name).read_bytes() for name in FILES}
    counts = prepare(read_source(str(folders)), out, Storage(), 1, False, overwrite=True)
    assert counts["train"] == TRAIN == len(BetonFile(out / "train.beton"))


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_kill_while_the_files_are_put_in_place_leaves_the_old_set_or_none(
    folders, untidy, tmp_path, renames, monkeypatch, forked
):
    out = tmp_path / "out"
    prepare(read_source(str(untidy)), out, Storage(), 1, False)

    def die_after_some(number: list[int], replace: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def counted(source: Path, target: Path) -> Path:
            if number[0] == renames:
                os.kill(os.getpid(), signal.SIGKILL)
            number[0] += 1
            return replace(source, target)

        return counted

    monkeypatch.setattr(Path, "replace", die_after_some([0], Path.replace))
    assert ended(forked(lambda: prepare(read_source(str(folders)), out, Storage(), 1, False, overwrite=True))) == -signal.SIGKILL
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"classes\.json"):
        LOADERS["ffcv"](out, "val", reading())
    prepare(read_source(str(folders)), out, Storage(), 1, False)
    assert len(BetonFile(out / "train.beton")) == TRAIN
