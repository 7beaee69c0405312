"""Orders, shares and crops as pure functions of (seed, epoch, sample)."""

import itertools

import numpy as np
import pytest

from en.data.crops import CentreCrop, RandomResizedCrop, uniform
from en.data.order import epoch_order, rank_batches
from en.runs.position import Position

SQUARE = (224, 224)
IMAGENET = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3), 0.5)


def sizes(n: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(200, 600, n), generator.integers(200, 600, n)


def test_an_order_is_a_permutation_that_changes_with_seed_and_epoch():
    orders = [epoch_order(1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all((np.sort(order) == np.arange(1000)).all() for order in orders)
    assert len({tuple(order) for order in orders}) == 9
    assert (epoch_order(1000, 1, 2) == epoch_order(1000, 1, 2)).all()


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_ranks_and_micro_batches_sees_the_same_samples_in_each_step(world_size, accumulation):
    order = epoch_order(1000, 0, 0)
    shares = [rank_batches(order, 48, accumulation, rank, world_size) for rank in range(world_size)]
    assert all(len(share) == 1000 // 48 * accumulation for share in shares)
    for step in range(1000 // 48):
        parts = [part for share in shares for part in share[step * accumulation : (step + 1) * accumulation]]
        assert {len(part) for part in parts} == {48 // accumulation // world_size}
        assert sorted(np.concatenate(parts)) == sorted(order[step * 48 : (step + 1) * 48])


def test_crops_depend_on_seed_epoch_and_sample_and_not_on_the_batch():
    n = 500
    heights, widths = sizes(n)
    samples = np.arange(n)
    boxes, flips, *_ = IMAGENET(3, 5, samples, heights, widths, SQUARE)
    for part in np.array_split(np.random.default_rng(1).permutation(n), 7):
        alone, alone_flips, *_ = IMAGENET(3, 5, part, heights[part], widths[part], SQUARE)
        assert (alone == boxes[part]).all() and (alone_flips == flips[part]).all()
    for seed, epoch in [(4, 5), (3, 6)]:
        other = IMAGENET(seed, epoch, samples, heights, widths, SQUARE).boxes
        assert (other != boxes).any(axis=1).mean() > 0.9


def test_crops_lie_in_the_image_and_keep_the_limits_of_area_and_ratio():
    n = 20_000
    heights, widths = np.full(n, 375), np.full(n, 500)
    boxes, flips, *_ = IMAGENET(0, 0, np.arange(n), heights, widths, SQUARE)
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 375).all() and (left + w <= 500).all()
    area, ratio = h * w / (375 * 500), w / h
    assert 0.078 < area.min() < 0.09 and 0.95 < area.max() <= 1.0
    assert ratio.min() > 0.745 and ratio.max() < 1.345
    assert abs(flips.mean() - 0.5) < 0.02


def test_crops_are_distributed_as_those_of_torchvision():
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = IMAGENET(0, 0, np.arange(4000), np.full(4000, 375), np.full(4000, 500), SQUARE).boxes
    for mine, reference in zip(ours.T, theirs.T, strict=True):
        error = np.sqrt(mine.var() / 4000 + reference.var() / 4000)
        assert abs(mine.mean() - reference.mean()) < 4.5 * error
        assert abs(mine.std() / reference.std() - 1) < 0.06


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (2, 3), (10_000, 12)])
def test_extreme_images_have_a_crop_inside_them(height, width):
    n = 200
    boxes = IMAGENET(0, 0, np.arange(n), np.full(n, height), np.full(n, width), SQUARE).boxes
    centre = CentreCrop(0.875)(0, 0, np.arange(1), np.array([height]), np.array([width]), (1, 1)).boxes
    for top, left, h, w in [*boxes, *centre]:
        assert top >= 0 and left >= 0 and h >= 1 and w >= 1 and top + h <= height and left + w <= width


def test_the_centre_crop_is_resize_and_centre_crop():
    boxes, flips, *_ = CentreCrop(0.875)(0, 0, np.arange(2), np.array([256, 512]), np.array([400, 256]), (9, 9))
    assert boxes.tolist() == [[16, 88, 224, 224], [144, 16, 224, 224]] and not flips.any()


def test_draws_are_uniform_and_independent():
    draws = uniform(0, 0, np.arange(20_000), 8)
    assert draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01 and np.abs(draws.std(0) - 12**-0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(8)).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03


def test_each_step_epoch_rank_and_seed_draws_numbers_of_its_own():
    places = list(itertools.product(range(3), repeat=4))
    assert len({Position(epoch=epoch, step=step).seed(seed, rank) for epoch, step, seed, rank in places}) == len(places)
