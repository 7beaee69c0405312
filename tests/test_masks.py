"""Sets of images with masks: the layouts of published ones, and what files of masks are mistaken for."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import succeed
from mask_sets import (
    COLOUR,
    COLOUR_ALPHA,
    GREY_ALPHA,
    PALETTE,
    WRITERS,
    png,
    spread,
    write_camvid,
    write_nuclei,
    write_pair,
)
from PIL import Image
from readers import reading
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2_functional
from torchvision.tv_tensors import Mask

from en.data import LOADERS
from en.data.crops import ScaledCrop, WholeImage
from en.data.decoding import DamagedImage, UnsupportedImage
from en.data.ffcv.file import BetonFile
from en.data.palette import varied
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source
from en.data.sources.cityscapes import CLASSES as CITYSCAPES
from en.data.targets import IGNORE, ClassMap, map_of, png_of
from en.data.views import View
from en.errors import UserError

COUNTS = {"ade20k": (2, 2, 150), "cityscapes": (4, 2, 19), "camvid": (3, 2, 11), "voc2012": (2, 1, 21)}
COUNTS["pairs"] = (3, 3, 2)
TABLES = {  # the number of each value of a file, by the sets' own documents
    "ade20k": {0: 255} | {value: value - 1 for value in range(1, 151)},
    "cityscapes": dict(enumerate(
        [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
        + [255, 255, 16, 17, 18]
    )),  # trainId of each id of cityscapesScripts' labels.py
    "camvid": {value: value for value in range(11)} | {11: 255},
    "voc2012": {value: value for value in range(21)} | {255: 255},
    "pairs": {0: 0, 255: 1, 128: 255},
}  # fmt: skip


@pytest.fixture(params=WRITERS)
def name(request):
    return request.param


@pytest.fixture
def root(name, tmp_path):
    return WRITERS[name](tmp_path / name)


def whole(height: int, width: int) -> View:
    return View(np.array([[0, 0, height, width]]), np.zeros(1, bool), (height, width))


def epoch(loader, size):
    batches = list(loader.eval_epoch(size))
    return {s: (i, t) for b in batches for s, i, t in zip(b.samples.tolist(), b.images, b.targets, strict=True)}


def test_a_set_is_prepared_from_its_layout_with_every_value_mapped_and_counted(name, root, tmp_path):
    done = succeed("scripts/prepare_data.py", root, tmp_path / "out")
    source, described = read_source(str(root)), json.loads((tmp_path / "out" / "dataset.json").read_text())
    train, val, classes = COUNTS[name]
    assert (len(source.splits["train"]), len(source.splits["val"]), len(source.classes)) == COUNTS[name]
    assert described["target"] == "class_map" and (described["train"], described["val"]) == (train, val)
    for split in ("train", "val"):
        file, counts, ignored = BetonFile(tmp_path / "out" / f"{split}.beton"), np.zeros(classes, int), 0
        for number, sample in enumerate(source.splits[split]):
            values = np.asarray(Image.open(sample.target))
            expected = np.vectorize(TABLES[name].get)(values)
            kept = ClassMap().cut(file.stored(number), whole(*values.shape), 0)
            assert np.array_equal(kept, expected) and set(np.unique(expected)) >= {0, classes - 1, 255}
            counts += np.bincount(expected[expected != 255], minlength=classes)
            ignored += (expected == 255).sum()
        maps = described["maps"][split]
        assert maps["pixels"] == counts.tolist() and maps["images_all_ignored"] == 0
        assert maps["ignored"] == pytest.approx(ignored / (ignored + counts.sum()))
    told = [line for line in done.stdout.splitlines() if line.startswith(source.classes[-1])]
    assert len(told) == 1 and "does not count" in done.stdout


def test_both_loaders_read_the_same_from_a_set_and_what_is_prepared_of_it(name, root, tmp_path):
    prepare(read_source(str(root)), tmp_path / "out", Storage(), 1, False)
    for split in ("train", "val"):
        loaders = [LOADERS["ffcv"](tmp_path / "out", split, reading(2)), LOADERS["folder"](root, split, reading(2))]
        mine, theirs = (epoch(loader, (20, 26)) for loader in loaders)
        assert mine.keys() == theirs.keys() and len(mine) == COUNTS[name][split == "val"]
        for sample, (image, target) in mine.items():
            assert torch.equal(image, theirs[sample][0]) and torch.equal(target, theirs[sample][1])
        assert loaders[0].palette == loaders[1].palette and len(loaders[0].palette) == COUNTS[name][2]
        assert loaders[0].classes == loaders[1].classes and loaders[0].name == loaders[1].name
        for loader in loaders:
            loader.close()


def test_stock_ffcv_opens_what_is_prepared_of_a_set(name, root, tmp_path):
    from ffcv.fields import BytesField, RGBImageField
    from ffcv.reader import Reader

    source = read_source(str(root))
    prepare(source, tmp_path / "out", Storage("raw"), 1, False)
    reader = Reader(str(tmp_path / "out" / "train.beton"))
    assert [type(field) for field in reader.handlers.values()] == [RGBImageField, BytesField]
    content = (tmp_path / "out" / "train.beton").read_bytes()
    for sample, row in zip(source.splits["train"], reader.metadata, strict=True):
        (_, width, height, at), (start, size) = row["f0"], row["f1"]
        image = np.frombuffer(content, np.uint8, 3 * int(width) * int(height), int(at))
        assert np.array_equal(image, np.asarray(Image.open(sample.image)).ravel())
        (tmp_path / "mask.png").write_bytes(content[int(start) : int(start + size)])
        mask = Image.open(tmp_path / "mask.png")
        expected = np.vectorize(TABLES[name].get)(np.asarray(Image.open(sample.target)))
        assert mask.mode == "L" and np.array_equal(np.asarray(mask), expected)  # for anyone's decoder, palettes gone


def test_the_classes_of_published_sets_have_the_published_names_and_colours(tmp_path):
    ade = read_source(str(WRITERS["ade20k"](tmp_path / "a"))).classes
    assert ade[0] == "name 1, synonym 1" and ade[149] == "name 150, synonym 150"
    assert next(iter(CITYSCAPES)) == "road" and CITYSCAPES["bicycle"] == (33, (119, 11, 32))
    voc = varied(256)  # PASCAL VOC's colours: background, aeroplane, bicycle, ..., the border
    assert voc[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert voc[20] == (0, 64, 128) and voc[255] == (224, 224, 192) and len(set(voc)) == 256


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_png_of_few_or_many_bits_holds_its_numbers(bits, tmp_path):
    """Pillow and OpenCV read a 5 of 4 bits as 85."""
    values = spread([0, 1] if bits == 1 else [0, 1, 2, 3] if bits == 2 else [0, 5, 9, 11], 8, 9)
    (tmp_path / "a.png").write_bytes(png(values, bits))
    if bits in (2, 4):
        assert np.asarray(Image.open(tmp_path / "a.png")).max() == values.max() * (85 if bits == 2 else 17)
    assert np.array_equal(map_of(png(values, bits)), values)
    kept = ClassMap().read(tmp_path / "a.png", 12, values.shape)
    assert np.array_equal(np.asarray(Image.open(write(tmp_path / "kept.png", kept))), values)
    assert (kept == png(values, bits)) == (bits == 8)


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_png_holds_its_indices_and_not_its_colours(bits, tmp_path):
    values = spread([0, 1] if bits == 1 else [0, 3, 2, 1], 8, 9)
    path = write(tmp_path / "a.png", png(values, bits, PALETTE))
    assert np.array_equal(ClassMap().load(path, 12, values.shape), values)
    kept = Image.open(write(tmp_path / "kept.png", ClassMap().read(path, 12, values.shape)))
    assert kept.mode == "L" and np.array_equal(np.asarray(kept), values)


def test_greys_of_16_bits_are_not_clipped(tmp_path):
    path = write(tmp_path / "a.png", png(np.array([[3, 300, 40_000]]), 16))
    with pytest.raises(DamagedImage, match=r"a.png: the map holds 300; 40000: expected 0 to 11, or 255"):
        ClassMap().load(path, 12, (1, 3))
    assert ClassMap({3: 0, 300: 1, 40_000: IGNORE}, None).load(path, 12, (1, 3)).tolist() == [[0, 1, IGNORE]]
    Image.fromarray(np.array([[-1, 3, 1 << 24]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DamagedImage, match=r"a.tif: the map holds -1; 16777216: expected"):
        ClassMap().load(tmp_path / "a.tif", 12, (1, 3))
    with pytest.raises(UnsupportedImage, match="more than 8 bits"):
        ClassMap().decode(path.read_bytes())


@pytest.mark.parametrize(
    ("kind", "channels", "mode"), [(COLOUR, 3, "RGB"), (COLOUR_ALPHA, 4, "RGBA"), (GREY_ALPHA, 2, "LA")]
)
def test_colours_and_alpha_are_refused_by_name(kind, channels, mode, tmp_path):
    path = write(tmp_path / "a.png", png(np.zeros((4, 5, channels), np.uint8), 8, kind))
    with pytest.raises(UnsupportedImage, match=rf"a.png: a map of mode {mode}: expected one number a pixel"):
        ClassMap().load(path, 12, (4, 5))


@pytest.mark.parametrize("name", ["a.pgm", "a.tif", "a.bmp"])
def test_formats_whose_numbers_are_spread_or_turned_when_they_are_read_are_no_masks(tmp_path, name):
    """Pillow reads 1 of a PGM whose largest value is 1 as 255, and TIFFs of few bits and of white zeros likewise."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    with pytest.raises(UnsupportedImage, match=r"a map as (PPM|TIFF|BMP): expected PNG, or TIFF of 16 or 32 bits"):
        ClassMap().load(tmp_path / name, 12, (8, 8))


def test_a_jpeg_is_no_mask(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.jpg")
    with pytest.raises(UnsupportedImage, match=r"a.jpg: a map as JPEG: expected PNG, or TIFF"):
        ClassMap().load(tmp_path / "a.jpg", 12, (8, 8))


@pytest.mark.parametrize(("content", "words"), [(b"", "the map: empty file"), (b"x", "the map: not an image")])
def test_what_is_no_image_is_told_as_such(content, words):
    with pytest.raises(DamagedImage, match=f"^{words}"):
        map_of(content)


def test_a_png_with_a_wrong_checksum_is_damaged(tmp_path):
    content = bytearray(png(np.zeros((8, 8), np.uint8), 8))
    content[content.index(b"IDAT") - 5] ^= 1  # of IHDR
    with pytest.raises(DamagedImage, match=r"a.png: the map: "):
        ClassMap().load(write(tmp_path / "a.png", bytes(content)), 12, (8, 8))


@pytest.mark.parametrize(("length", "count"), [(5, 3), (3, 5), (180, 512), (360, 97), (7, 14), (11, 11)])
def test_masks_are_shown_by_the_nearest_pixel_as_torchs_nearest_exact_has_it(length, count):
    """Shows that, of five labels in three, torch's "nearest" and torchvision's default for masks give 0, 1, 3."""
    numbers = np.arange(length, dtype=np.uint8)[None].repeat(4, 0) % 250
    view = View(np.array([[0, 0, 4, length]]), np.zeros(1, bool), (4, count))
    shown = torch.from_numpy(ClassMap().cut(png_of(numbers), view, 0))
    tensor = torch.from_numpy(numbers)[None]
    exact = F.interpolate(tensor[None].float(), (4, count), mode="nearest-exact")[0, 0]
    assert torch.equal(shown.float(), exact)
    mask = v2_functional.resize(Mask(tensor), [4, count], interpolation=v2.InterpolationMode.NEAREST_EXACT)
    assert torch.equal(shown, mask[0])
    if (length, count) != (360, 97):  # where a centre lies between two pixels, and Pillow rounds down
        pillows = Image.fromarray(numbers).resize((count, 4), Image.Resampling.NEAREST)
        assert np.array_equal(shown.numpy(), np.asarray(pillows))
    if (length, count) == (5, 3):
        assert shown[0].tolist() == [0, 2, 4] and v2_functional.resize(Mask(tensor), [4, 3])[0, 0].tolist() == [0, 1, 3]


def test_other_voids_of_camvid_do_not_count_either_and_no_other_value_is_taken(tmp_path):
    for void in (11, 255):
        source = read_source(str(write_camvid(tmp_path / str(void), void)))
        sample = source.splits["val"][0]
        numbers = source.target.load(sample.target, len(source.classes), (20, 28))
        assert set(np.unique(numbers)) == {*range(11), IGNORE}
    source = read_source(str(write_camvid(tmp_path / "other", 12)))
    with pytest.raises(DamagedImage, match=r"the map holds 12: expected 0 to 11, or 255"):
        source.target.load(source.splits["val"][0].target, 11, (20, 28))


def test_ade20ks_0_becomes_ignored_and_its_classes_do_not_wrap_around(tmp_path):
    source = read_source(str(WRITERS["ade20k"](tmp_path)))
    assert source.target.load(np.array([[0, 1, 150]], np.uint8), 150, (1, 3)).tolist() == [[IGNORE, 0, 149]]
    for value in (151, 255):
        with pytest.raises(DamagedImage, match=rf"the map holds {value}: expected 0 to 150"):
            source.target.load(np.array([[0, value]], np.uint8), 150, (1, 2))


def test_a_folder_with_wrong_masks_is_refused_with_every_file_and_value(tmp_path):
    root = write_nuclei(tmp_path / "nuclei")
    base = root / "masks" / "train"
    wrong = {
        "slide 0/cell.0": (png(spread([0, 7, 255], 22, 31), 8), "the map holds 7: expected 0, 128, or 255"),
        "slide 1/cell.1": (png(np.zeros((23, 31, 3), np.uint8), 8, COLOUR), "a map of mode RGB"),
        "slide 2/cell.2": (png(spread([0, 255], 23, 31), 8), "a map of 23 x 31 pixels: expected 24 x 31, as the image"),
    }
    for key, (content, _) in wrong.items():
        (base / f"{key}.png").write_bytes(content)
    with pytest.raises(UserError, match="3 files are not intact") as refusal:
        prepare(read_source(str(root)), tmp_path / "out", Storage(), 1, False)
    lines = str(refusal.value).splitlines()[1:]
    for line, (key, (_, words)) in zip(lines, wrong.items(), strict=True):
        assert f"{base / key}.png: {words}" in line


def test_files_without_a_partner_are_listed_in_both_directions(tmp_path):
    root = write_nuclei(tmp_path / "nuclei")
    (root / "images" / "val" / "slide 0" / "cell.0.png").unlink()
    (root / "masks" / "val" / "slide 1" / "cell.1.png").unlink()
    with pytest.raises(UserError, match="1 images without a mask, 1 masks without an image") as refusal:
        read_source(str(root))
    lines = str(refusal.value).splitlines()
    assert [line.strip() for line in lines[1:]] == [
        f"{root}/images/val/slide 1/cell.1.jpg: no mask",
        f"{root}/masks/val/slide 0/cell.0.png: no image",
    ]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("", "0 classes: expected 1 to 255 lines"),
        ("0 a\n0 b", "classes.txt:2: '0 b': expected each value and each name once"),
        ("0 a\n1 a", "classes.txt:2: '1 a': expected each value and each name once"),
        ("a 0", "classes.txt:1: 'a 0': expected `value name`"),
        ("70000 a", "expected `value name`, a value from 0 to 65535"),
        ("\n".join(f"{number} {number}." for number in range(256)), "256 classes: expected 1 to 255"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(tmp_path, table, words):
    with pytest.raises(UserError, match=words) as refusal:
        read_source(str(write_nuclei(tmp_path / "nuclei", table)))
    assert "\n" not in str(refusal.value)


def test_a_table_numbers_classes_in_its_order_and_takes_comments_and_several_words(tmp_path):
    table = "# value name\n255\tcell nucleus \n\n0 the ground\n128 ignore\n"
    source = read_source(str(write_nuclei(tmp_path / "nuclei", table)))
    assert source.classes == ["cell nucleus", "the ground"]
    assert source.target.values == {255: 0, 0: 1, 128: IGNORE} and source.target.ignore is None


def test_a_set_that_lacks_files_is_refused_by_name(tmp_path):
    voc = WRITERS["voc2012"](tmp_path / "voc") / "VOCdevkit" / "VOC2012"
    write_pair(tmp_path / "x.jpg", voc / "SegmentationClass" / "2009_000001.png", spread([0]))
    (voc / "JPEGImages" / "2007_000003.jpg").unlink()
    with pytest.raises(UserError, match=r"train.txt: 1 files of 2 names are not there\n .*2007_000003.jpg"):
        read_source(str(tmp_path / "voc"))
    ade = WRITERS["ade20k"](tmp_path / "ade") / "ADEChallengeData2016"
    (ade / "objectInfo150.txt").unlink()
    with pytest.raises(
        UserError, match=r"objectInfo150.txt: No such file or directory: expected the list of ADE20K's classes"
    ):
        read_source(str(ade))


def test_classes_and_maps_of_which_nothing_counts_are_told(tmp_path, capsys):
    root = write_nuclei(tmp_path / "nuclei", "0 ground\n255 nucleus\n128 ignore\n9 bubble\n")
    (root / "masks" / "val" / "slide 0" / "cell.0.png").write_bytes(png(spread([128], 22, 31), 8))
    prepare(read_source(str(root)), tmp_path / "out", Storage(), 1, False)
    told = capsys.readouterr()
    assert "val: 1 maps of which no pixel counts" in told.out
    assert "1 of 3 classes on no pixel for training: bubble" in told.err
    maps = json.loads((tmp_path / "out" / "dataset.json").read_text())["maps"]
    assert maps["val"]["images_all_ignored"] == 1 and maps["train"]["pixels"][2] == 0


def test_every_image_is_seen_once_at_its_own_size_on_any_number_of_ranks(kind, tmp_path):
    root = write_nuclei(tmp_path / "nuclei")
    prepare(read_source(str(root)), tmp_path / "out", Storage(), 1, False)
    source = read_source(str(root))
    for ranks in (1, 2, 5):
        seen = {}
        for rank in range(ranks):
            part = reading(2 * ranks, rank, ranks)
            part = replace(part, evaluation_crop=WholeImage(), padding=(1, 2, 3))
            loader = LOADERS[kind](tmp_path / "out" if kind == "ffcv" else root, "val", part)
            found = epoch(loader, None)
            assert not seen.keys() & found.keys()
            seen |= found
            loader.close()
        assert sorted(seen) == [0, 1, 2]
        for number, sample in enumerate(source.splits["val"]):
            image, target = seen[number]
            values = np.asarray(Image.open(sample.target))
            assert np.array_equal(target.numpy(), np.vectorize(TABLES["pairs"].get)(values))
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(sample.image)))


def test_a_crop_without_sizes_of_its_own_says_so(tmp_path):
    root = write_nuclei(tmp_path / "nuclei")
    loader = LOADERS["folder"](root, "val", reading(2, workers=0))
    with pytest.raises(ValueError, match="size None: expected a size for CentreCrop"):
        list(loader.eval_epoch(None))
    loader.close()


def test_scaled_crops_with_the_75_percent_rule_are_the_same_by_both_loaders_on_any_ranks(tmp_path):
    root = write_nuclei(tmp_path / "nuclei")
    for number, path in enumerate(sorted((root / "masks" / "train").rglob("*.png"))):
        values = np.zeros((22 + number, 31), np.uint8)
        values[3:12, 5:14] = 255
        path.write_bytes(png(values, 8))
    prepare(read_source(str(root)), tmp_path / "out", Storage(), 1, False)
    found, firsts = [], []
    ways = [
        ("ffcv", 1, 2, 0.75),
        ("folder", 1, 2, 0.75),
        ("ffcv", 3, 1, 0.75),
        ("folder", 3, 1, 0.75),
        ("ffcv", 1, 2, 1.0),
    ]
    for kind, ranks, workers, most in ways:
        shown = {}
        for rank in range(ranks):
            part = reading(3, rank, ranks, workers)
            crop = ScaledCrop((0.5, 2.0), 0.5, most=most)
            part = replace(part, training_crop=crop, padding=(9, 8, 7))
            loader = LOADERS[kind](tmp_path / "out" if kind == "ffcv" else root, "train", part)
            for number in range(20):
                for batch in loader.train_epoch(number, (12, 20)):
                    pairs = zip(batch.samples.tolist(), batch.images, batch.targets, strict=True)
                    shown |= {(number, s): (i.clone(), t.clone()) for s, i, t in pairs}
            loader.close()
        assert len(shown) == 60
        (found if most < 1 else firsts).append(shown)
    for other in found[1:]:
        assert all(torch.equal(i, other[key][0]) and torch.equal(t, other[key][1]) for key, (i, t) in found[0].items())
    kept = [sum(accepted(target) for _, target in shown.values()) for shown in (found[0], firsts[0])]
    assert kept[0] > kept[1] + 10
    same = [key for key, (_, t) in firsts[0].items() if accepted(t)]
    assert same and all(torch.equal(found[0][key][1], firsts[0][key][1]) for key in same)


def accepted(target: torch.Tensor) -> bool:
    counts = torch.bincount(target.ravel().long(), minlength=256)[:255]
    return int((counts > 0).sum()) > 1 and bool(counts.max() < 0.75 * counts.sum())
