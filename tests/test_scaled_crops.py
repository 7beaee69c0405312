"""Crops of scaled images, which may be smaller than the crop: against the same made of whole images, step by step."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from mask_sets import png, write_nuclei
from PIL import Image
from readers import reading
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2_functional
from torchvision.tv_tensors import Mask

from en.data import LOADERS
from en.data.crops import ScaledCrop, WholeImage, choose
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source
from en.data.targets import IGNORE, ClassMap, png_of

NUMBERS = np.arange(200)
CROPS = {
    "of the image": ScaledCrop((0.5, 2.0), 0.5),
    "of a base": ScaledCrop((0.5, 2.0), 0.5, base=(30, 60)),
    "small": ScaledCrop((0.1, 0.3), 0.5),
    "large": ScaledCrop((2.0, 4.0), 0.5),
}
PADDING = (11, 22, 33)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    root = write_nuclei(tmp_path_factory.mktemp("nuclei"))
    random = np.random.default_rng(1)
    for path in sorted((root / "masks").rglob("*.png")):
        with Image.open(path) as mask:
            size = mask.size[::-1]
        path.write_bytes(png(random.choice([0, 128, 255], size).astype(np.uint8), 8))
    out = tmp_path_factory.mktemp("prepared")
    prepare(read_source(str(root)), out, Storage(), 1, False)
    return {"ffcv": out, "folder": root}


def by_hand(image: Image.Image, numbers: np.ndarray, window: list[int], size: tuple[int, int], flip: bool):
    """Scales the whole, pads it below and to the right, cuts the window out and mirrors it."""
    top, left, height, width = window
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    mask = Mask(torch.from_numpy(numbers.copy())[None])
    nearest = v2.InterpolationMode.NEAREST_EXACT
    mask = v2_functional.resize(mask, [height, width], interpolation=nearest)[0].numpy()
    wide = np.full((top + size[0], left + size[1], 3), PADDING, np.uint8)
    labels = np.full(wide.shape[:2], IGNORE, np.uint8)
    tall, across = min(height, len(wide)), min(width, wide.shape[1])
    wide[:tall, :across], labels[:tall, :across] = pixels[:tall, :across], mask[:tall, :across]
    pixels, labels = wide[top:, left:], labels[top:, left:]
    return (pixels[:, ::-1], labels[:, ::-1]) if flip else (pixels, labels)


@pytest.mark.parametrize("name", CROPS)
def test_a_scaled_crop_shows_what_scaling_padding_and_cutting_the_whole_do_to_the_bit(kind, roots, name):
    seen = replace(reading(3), training_crop=CROPS[name], padding=PADDING)
    loader = LOADERS[kind](roots[kind], "train", seen)
    samples = read_source(str(roots["folder"])).splits["train"]
    padded = flipped = 0
    for epoch in range(8):
        for batch in loader.train_epoch(epoch, (20, 28)):
            for number, shown, target in zip(batch.samples.tolist(), batch.images, batch.targets, strict=True):
                image = Image.open(samples[number].image).convert("RGB")
                values = np.asarray(Image.open(samples[number].target))
                numbers = np.select([values == 0, values == 255], [0, 1], IGNORE).astype(np.uint8)
                sides = np.array([image.height]), np.array([image.width])
                view = CROPS[name](7, epoch, np.array([number]), *sides, (20, 28))
                window, flip = view.windows[0].tolist(), bool(view.flips[0])
                pixels, labels = by_hand(image, numbers, window, (20, 28), flip)
                assert np.array_equal(shown.permute(1, 2, 0).numpy(), pixels)
                assert np.array_equal(target.numpy(), labels)
                padded += not view.within(*sides)[0]
                flipped += flip
    loader.close()
    assert 0 < flipped < 24 and (
        padded == 24 if name == "small" else padded == 0 if name == "large" else 0 < padded < 24
    )


def test_factors_are_uniform_and_of_the_scale_that_just_fits_into_a_base_lying_or_upright():
    heights, widths = np.full(200, 300), np.full(200, 400)
    windows = ScaledCrop((0.5, 2.0), 0.5)(0, 0, NUMBERS, heights, widths, (100, 100)).windows
    factors = windows[:, 2] / 300
    assert 0.5 <= factors.min() < 0.52 and 1.97 < factors.max() <= 2.0 and abs(factors.mean() - 1.25) < 0.1
    assert (np.abs(windows[:, 3] - 400 * factors) < 1.2).all()
    for base in ((512, 2048), (2048, 512)):  # as mmsegmentation's Resize, keep_ratio=True, of 300 x 400 and 2000 x 300
        fixed = ScaledCrop((1.0, 1.0), 0.5, base=base)
        sides = np.array([300, 400, 2000]), np.array([400, 300, 300])
        assert fixed(0, 0, np.arange(3), *sides, (100, 100)).windows[:, 2:].tolist() == [
            [512, 683],
            [683, 512],
            [2048, 307],
        ]


def test_a_crop_lies_anywhere_in_the_scaled_image_and_never_beyond_where_it_fits():
    heights, widths = np.full(200, 300), np.full(200, 400)
    view = ScaledCrop((1.0, 1.0), 0.5)(0, 0, NUMBERS, heights, widths, (100, 390))
    top, left, _, _ = view.windows.T
    assert top.min() < 10 and top.max() > 190 and set(left) == set(range(11)) and view.within(heights, widths).all()


def test_a_part_of_one_class_is_drawn_again_at_the_same_scale_and_after_ten_times_taken():
    """As mmsegmentation's RandomCrop with cat_max_ratio=0.75."""
    crop, first = ScaledCrop((1.0, 2.0), 0.5, most=0.75), ScaledCrop((1.0, 2.0), 0.5)
    maps = np.zeros((200, 60, 60), np.uint8)
    maps[:100, :, 30:] = 1  # of the first hundred, half of the pixels are of another class
    maps[50:, :20] = IGNORE
    heights = widths = np.full(200, 60)
    looked = np.zeros(200, int)

    def shown(view, row):
        looked[row] += 1
        return ClassMap().cut(png_of(maps[row]), view, row)

    view = choose(crop, shown, 3, 5, NUMBERS, heights, widths, (20, 20))
    before = first(3, 5, NUMBERS, heights, widths, (20, 20))
    assert np.array_equal(view.flips, before.flips) and np.array_equal(view.windows[:, 2:], before.windows[:, 2:])
    assert (looked[100:] == 10).all() and (looked[:100] >= 1).all() and (looked[:100] == 1).any()
    once = looked == 1
    assert np.array_equal(view.windows[once], before.windows[once])
    assert (view.windows[100:, :2] != before.windows[100:, :2]).any(1).mean() > 0.9
    accepted, others = ([crop.accepts(cut(maps, NUMBERS, of, row)) for row in range(100)] for of in (view, before))
    assert np.mean(accepted) > 0.5 > 0.3 > np.mean(others)
    some = np.array([5, 42, 150])
    again = choose(crop, partial(cut, maps, some), 3, 5, some, heights[:3], widths[:3], (20, 20))
    assert np.array_equal(again.windows, view.windows[some])


def cut(maps, samples, view, row):
    return ClassMap().cut(png_of(maps[samples[row]]), view, row)


@pytest.mark.parametrize(
    ("counts", "is_accepted"),
    [((75, 25), False), ((74, 26), True), ((100, 0), False), ((0, 0), False), ((2, 1), True)],
)
def test_the_rule_asks_for_two_classes_and_less_than_three_quarters_of_what_counts(counts, is_accepted):
    target = np.repeat(np.array([0, 4, IGNORE], np.uint8), [*counts, 60])
    assert ScaledCrop((1.0, 1.0), 0.5, most=0.75).accepts(target) is is_accepted


def test_whole_images_keep_their_size_or_fit_into_a_base_and_are_padded_to_a_multiple():
    assert WholeImage().whole(37, 53).size == (37, 53)
    view = WholeImage(multiple=8).whole(37, 56)
    assert view.size == (40, 56) and view.windows.tolist() == [[0, 0, 37, 56]]
    view = WholeImage(base=(512, 2048), multiple=32).whole(400, 300)
    assert view.windows.tolist() == [[0, 0, 683, 512]] and view.size == (704, 512)
    fitted = WholeImage()(0, 0, np.arange(2), np.array([40, 20]), np.array([20, 40]), (32, 64))
    assert fitted.windows.tolist() == [[0, 0, 32, 16], [0, 0, 32, 64]] and not fitted.flips.any()


def test_whole_images_padded_to_a_multiple_show_the_mean_colour_and_nothing_that_counts(kind, roots):
    seen = replace(reading(3), evaluation_crop=WholeImage(multiple=16), padding=PADDING)
    loader = LOADERS[kind](roots[kind], "val", seen)
    batches = list(loader.eval_epoch(None))
    loader.close()
    assert [tuple(batch.images.shape) for batch in batches] == [(1, 3, 32, 32)] * 3
    for batch in batches:
        height = 22 + int(batch.samples)
        assert (batch.targets[0, height:] == IGNORE).all() and (batch.targets[0, :, 31:] == IGNORE).all()
        assert (batch.images[0, :, height:] == torch.tensor(PADDING)[:, None, None]).all()
        assert (batch.targets[0, :height, :31] != IGNORE).any()
