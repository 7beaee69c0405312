"""Corruptions of images: pure functions of (seed, sample, corruption, severity), against their formulas."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from test_training import RECIPE

from en.build import open_loaders
from en.config.reading import load_config
from en.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from en.data.corruptions.scale import convolve, enlarged, fast_size, gaussian, length, sample, streak, strength
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.evaluation.robustness import Corrupted, parse_corruptions

NAMED = ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]
NAMED += ["snow", "fog", "brightness", "contrast", "elastic", "pixelate", "jpeg"]
every_corruption = pytest.mark.parametrize("name", CORRUPTIONS)


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Something with edges, gradients and texture, (H, W, 3) uint8."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    planes = [enlarged(random.random((grid, grid)).astype(np.float32), height, width) for grid in (3, 6, 12)]
    image = np.stack([*planes], -1) * 0.6 + (np.sin(25 * rows + 13 * columns) > 0.3)[..., None] * 0.25
    return np.uint8(np.clip(image, 0, 1) * 255)


def floats(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return image.astype(np.float32) / np.float32(255)


def test_there_are_the_kinds_of_imagenet_c_but_for_frost_in_five_severities():
    assert list(CORRUPTIONS) == NAMED and SEVERITIES == (1, 2, 3, 4, 5)


@every_corruption
@pytest.mark.parametrize("size", [(32, 32), (48, 64), (97, 33)])
def test_any_size_is_corrupted_more_at_each_severity_and_in_place_of_nothing(name, size):
    image = photograph(*size)
    before, changes = image.copy(), []
    for severity in SEVERITIES:
        found = Corruption(name, severity).apply(image, 0, 3)
        assert found.shape == image.shape and found.dtype == np.uint8
        changes.append(np.abs(found.astype(int) - image).mean())
    assert np.array_equal(image, before)
    assert 0 < changes[0] < changes[-1]


@every_corruption
def test_the_same_sample_seed_and_severity_give_the_same_pixels_and_others_do_not(name):
    image = photograph(48, 48)
    first = Corruption(name, 3).apply(image, 7, 11)
    np.random.seed(5)  # numpy's own state decides nothing
    assert np.array_equal(first, Corruption(name, 3).apply(image.copy(), 7, 11))
    others = [Corruption(name, 3).apply(image, *place) for place in ((7, 12), (8, 11))]
    drawn = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg")
    assert all(np.array_equal(first, other) != drawn for other in others)
    assert not np.array_equal(first, Corruption(name, 4).apply(image, 7, 11))


def test_noise_has_the_deviations_of_its_formula():
    grey, random = np.full((64, 64, 3), 0.5, np.float32), np.random.default_rng
    for severity in SEVERITIES:
        added = CORRUPTIONS["gaussian_noise"](grey, severity, random(0)) - grey
        sigma = strength((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38), severity, grey)
        assert added.std() == pytest.approx(sigma, rel=0.03) and abs(added.mean()) < 0.05 * sigma + 2e-3
        photons = strength((500, 250, 100, 75, 50), (60, 25, 12, 5, 3), severity, grey)
        counted = CORRUPTIONS["shot_noise"](grey, severity, random(0))
        assert counted.std() == pytest.approx((0.5 / photons) ** 0.5, rel=0.03)
        share = strength((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27), severity, grey)
        spoilt = CORRUPTIONS["impulse_noise"](grey, severity, random(0))
        assert (spoilt != 0.5).mean() == pytest.approx(share, abs=0.01) and set(np.unique(spoilt)) == {0, 0.5, 1}


def test_light_and_contrast_follow_their_formulas():
    image = floats(photograph(32, 32))
    lit = CORRUPTIONS["brightness"](image, 3, np.random.default_rng(0))
    np.testing.assert_allclose(lit.max(-1), np.minimum(image.max(-1) + 0.15, 1), atol=1e-6)
    np.testing.assert_allclose(lit * image.max(-1, keepdims=True), image * lit.max(-1, keepdims=True), atol=1e-6)
    assert np.allclose(CORRUPTIONS["brightness"](np.zeros_like(image), 3, np.random.default_rng(0)), 0.15)
    flat = CORRUPTIONS["contrast"](image, 2, np.random.default_rng(0))
    np.testing.assert_allclose(flat.mean((0, 1)), image.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(flat.std((0, 1)), 0.5 * image.std((0, 1)), rtol=1e-4)


def test_jpeg_is_pillows_at_the_quality_of_its_severity():
    image, buffer = photograph(32, 32), io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=50)
    assert np.array_equal(Corruption("jpeg", 4).apply(image, 0, 0), np.asarray(Image.open(buffer)))


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "glass_blur", "pixelate", "elastic"])
def test_what_only_moves_light_leaves_an_even_image_as_it_is(name):
    even = np.full((40, 40, 3), (30, 140, 250), np.uint8)
    for severity in SEVERITIES:
        assert np.abs(Corruption(name, severity).apply(even, 0, 0).astype(int) - even).max() <= 1


def test_convolution_is_the_sum_over_the_mirrored_image():
    random = np.random.default_rng(0)
    image, kernel = random.random((11, 14, 3)).astype(np.float32), random.random((5, 7)).astype(np.float32)
    padded = np.pad(image.astype(np.float64), ((2, 2), (3, 3), (0, 0)), mode="symmetric")
    expected = sum(
        kernel[4 - row, 6 - column] * padded[row : row + 11, column : column + 14]
        for row in range(5)
        for column in range(7)
    )
    np.testing.assert_allclose(convolve(image, kernel), expected, rtol=1e-5, atol=1e-5)
    assert [fast_size(least) for least in (7, 11, 64, 225, 241)] == [8, 12, 64, 225, 243]


def test_kernels_sum_to_one_and_have_their_deviations():
    for sigma in (0.5, 2.0, 6.0):
        for kernel, axis_share in ((gaussian(sigma), 1.0), (streak(sigma, 0.0), 1.0)):
            assert kernel.sum() == pytest.approx(1, abs=1e-5) and kernel.shape[0] % 2 == 1
            columns = np.arange(kernel.shape[1]) - kernel.shape[1] // 2
            spread = np.sqrt((kernel.sum(0) * columns**2).sum())
            assert spread == pytest.approx(sigma * axis_share, rel=0.25, abs=0.15)
    flat, slanted = streak(4.0, 0.0), streak(4.0, np.pi / 4)
    assert flat[np.arange(len(flat)) != len(flat) // 2].sum() < 1e-5
    np.testing.assert_allclose(slanted, slanted.T, atol=1e-6)


def test_sampling_between_pixels_is_bilinear_and_ends_at_the_edge():
    image = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    rows, columns = np.array([[0.5, 2.0, 9.0]], np.float32), np.array([[1.25, 3.0, -4.0]], np.float32)
    assert sample(image, rows, columns)[..., 0].tolist() == [[0.5 * 4 + 1.25, 11.0, 8.0]]


def test_strengths_are_given_at_32_and_224_pixels_and_lie_between_them():
    ends = [np.zeros((side, side + 10, 3), np.float32) for side in (20, 32, 85, 224, 448)]
    found = [strength((0.04,) * 5, (0.16,) * 5, 2, image) for image in ends]
    assert found == pytest.approx([0.04, 0.04, 0.08, 0.16, 0.16], rel=0.01)
    assert [length((1,) * 5, (7,) * 5, 2, image) for image in ends] == pytest.approx([20 / 32, 1, 85 / 32, 7, 14])


def test_a_batch_is_corrupted_sample_by_sample_by_any_number_of_threads():
    images = torch.from_numpy(np.stack([photograph(40, 32, seed) for seed in range(5)])).permute(0, 3, 1, 2)
    samples, snow = torch.tensor([9, 2, 30, 4, 1]), Corruption("snow", 4)
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as pool:
            found = snow.apply_to_batch(images, samples, 6, pool)
        for row, image, number in zip(found, images, samples.tolist(), strict=True):
            assert np.array_equal(row.permute(1, 2, 0), snow.apply(image.permute(1, 2, 0).numpy(), 6, number))


@pytest.mark.slow(reason="may be the first to make the images that tests share")
def test_both_loaders_and_all_orders_show_the_same_corrupted_images(tmp_path, folders, betons):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    shown = []
    for loader, root in (("folder", folders), ("ffcv", betons)):
        options = [
            f"data.loader={loader}",
            f"data.root={root}",
            "data.workers=0" if loader == "folder" else "data.workers=1",
        ]
        opened = open_loaders(load_config(str(tmp_path / "recipe.yaml"), options), Ranks(0, 1, 0, 1), ["val"])["val"]
        with ThreadPoolExecutor(2) as pool:
            corrupted = Corrupted(opened, Corruption("elastic", 5), 1, pool)
            batches = [*corrupted.eval_epoch((32, 32))]
            order = np.array([17, 3, 8])
            some = next(iter(corrupted.eval_samples(order, (32, 32))))
        opened.close()
        images = torch.cat([batch.images for batch in batches])
        assert torch.equal(some.images, images[order]) and corrupted.samples == len(images) == 20
        shown.append(images)
    assert torch.equal(*shown)


def test_corruptions_are_chosen_by_name_and_severity():
    assert len(parse_corruptions(["all"])) == 14 * 5 and len(parse_corruptions(["all:3", "fog", "fog:3"])) == 14 + 4
    assert parse_corruptions(["jpeg:2", "fog:4"]) == [("fog", 4), ("jpeg", 2)]
    for wrong in ("frost", "fog:0", "fog:", "all:9", ""):
        with pytest.raises(UserError, match="--corrupt"):
            parse_corruptions([wrong])
