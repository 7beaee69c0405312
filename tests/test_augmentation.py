"""RandAugment and random erasing: torchvision's operations, and the same pixels whatever batch an image stands in."""

import math

import numpy as np
import pytest
import torch
from commands import ROOT
from readers import CROP
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from en.config.reading import load_config
from en.data import LOADERS, Part, Reading
from en.data.augmentation import ERASING, OPERATIONS, RAND_AUGMENT, Drawn, RandAugment, RandomErasing, apply_all
from en.data.crops import CentreCrop, uniform
from en.data.to_device import ToDevice
from en.tasks.classification import Classification
from en.training.epoch import to_network

PADDING = (124, 116, 104)
NAMES = ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
         "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize")  # fmt: skip


def pictures(count: int, height: int = 37, width: int = 50) -> torch.Tensor:
    """uint8 images of soft blobs and some noise; the last is of one colour."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 5, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic") * 220
    images += 30 * torch.rand(images.shape, generator=generator)
    images[-1] = 77
    return images.clamp(0, 255).to(torch.uint8)


def drawn(count: int, epoch: int = 2) -> Drawn:
    return Drawn(7, epoch, np.arange(count) * 13 + 5)


def torchvisions(name: str, image: torch.Tensor, level: float, sign: int) -> torch.Tensor:
    """torchvision's RandAugment, one of its operations at a level from 0 to 30."""
    magnitudes, signed = v2.RandAugment._AUGMENTATION_SPACE[name]
    steps = magnitudes(31, *image.shape[-2:])
    magnitude = 0.0 if steps is None else float(steps[level]) * (sign if signed else 1)
    transform = v2.RandAugment(interpolation=InterpolationMode.BILINEAR, fill=0)
    return transform._apply_image_or_video_transform(image, name, magnitude, transform.interpolation, transform._fill)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", [0, 9, 21, 30])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_torchvisions(name, level, sign):
    """To the bit, or by 1 of 255 where torchvision's sums in float32 round otherwise; geometry beside the borders."""
    assert len(NAMES) == len(OPERATIONS) and set(NAMES) == set(v2.RandAugment._AUGMENTATION_SPACE)
    number = NAMES.index(name)
    operation, images = OPERATIONS[number], pictures(6)
    amount = torch.full((6, 1, 1, 1), level / 30 * operation.most * (sign if operation.signed else 1))
    found = operation.apply(images, amount, torch.zeros(1, 3, 1, 1))
    expected = torch.stack([torchvisions(name, image, level, sign) for image in images])
    inside = torchvisions(name, torch.full_like(images[0], 255), level, sign) == 255 if 1 <= number <= 5 else True
    differences = (found.int() - expected.int()).abs() * inside
    assert found.dtype == torch.uint8 and differences.max() <= 1
    assert (differences > 0).float().mean() < 0.01


def test_what_comes_from_beyond_an_image_is_the_padding():
    images = torch.full((4, 3, 40, 40), 200, dtype=torch.uint8)
    fill = torch.tensor(PADDING).view(1, 3, 1, 1).float()
    for operation in OPERATIONS[1:6]:
        found = operation.apply(images, torch.full((4, 1, 1, 1), operation.most), fill)
        seen = {tuple(pixel) for pixel in found.permute(0, 2, 3, 1).reshape(-1, 3).tolist()}
        assert {PADDING, (200, 200, 200)} <= seen
        assert all(low <= value <= 200 for pixel in seen for low, value in zip(PADDING, pixel, strict=True))


AUGMENTATIONS = [RandAugment(2, 7.0, 0.5, 0.5), RandAugment(3, 10.0), RandomErasing(0.7)]
every_augmentation = pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)


@every_augmentation
@pytest.mark.parametrize("size", [(48, 48), (33, 61)])
def test_an_image_is_the_same_to_the_bit_in_any_batch(augmentation, size):
    images, names = pictures(90, *size), drawn(90)
    whole = augmentation(images, names, PADDING)
    assert whole.shape == images.shape and whole.dtype == torch.uint8 and not torch.equal(whole, images)
    for part in (1, 7, 45):
        for start in range(0, 90, part):
            rows = slice(start, start + part)
            own = names._replace(samples=names.samples[rows])
            assert torch.equal(augmentation(images[rows], own, PADDING), whole[rows])
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augmentation(last, names, PADDING), whole)
    assert not torch.equal(augmentation(images, drawn(90, epoch=3), PADDING), whole)
    assert not torch.equal(augmentation(images, names._replace(seed=8), PADDING), whole)


def augmented(kind: str, root, ranks: int, accumulation: int, first_step: int = 0) -> dict[int, torch.Tensor]:
    """The network's input by sample, of an epoch on so many ranks."""
    task = {"rand_augment": 2, "rand_deviation": 1.0, "erasing": 0.5}
    recipe = f"task={task}".replace("'", "")
    found = {}
    for rank in range(ranks):
        reading = Reading(Part(24, accumulation, rank, ranks, 7), CROP, CentreCrop(0.875), 1, 30, False)
        loader = LOADERS[kind](root, "train", reading)
        config = load_config(str(ROOT / "configs/imagenet/resnet50_bn.yaml"), ["seed=7", recipe])
        for batch in loader.train_epoch(1, (40, 40), first_step):
            samples = batch.samples.tolist()
            to_device = ToDevice(config.data.mean, config.data.std, True, torch.device("cpu"))
            images, _ = to_network(config, loader, to_device, batch, 1)
            found |= dict(zip(samples, images.clone(), strict=True))
        loader.close()
    return found


def test_a_sample_is_the_same_to_the_bit_on_any_ranks_micro_batches_and_loader_and_after_a_resume(betons, folders):
    whole = augmented("ffcv", betons, 1, 1)
    assert len(whole) == 96
    others = [augmented("ffcv", betons, 2, 2), augmented("folder", folders, 3, 1), augmented("folder", folders, 1, 3)]
    for other in others:
        assert whole.keys() == other.keys()
        assert all(torch.equal(image, other[sample]) for sample, image in whole.items())
    rest = augmented("ffcv", betons, 2, 1, first_step=2)
    assert len(rest) == 48 and all(torch.equal(image, whole[sample]) for sample, image in rest.items())


def test_draws_begin_where_those_of_the_crops_are_over():
    samples = np.arange(5)
    assert np.array_equal(uniform(1, 2, samples, 10)[:, 3:], uniform(1, 2, samples, 7, 3))
    assert 41 < ERASING < ERASING + 41 < RAND_AUGMENT


def test_operations_are_drawn_alike_often_and_magnitudes_normally():
    rand = RandAugment(1, 5.0, 2.0, 0.75)
    chosen, numbers = rand.choose(uniform(0, 0, np.arange(20_000), 4))
    counts = np.bincount(chosen, minlength=len(OPERATIONS))
    each = 0.75 * 20_000 / len(OPERATIONS)
    assert counts[1:] == pytest.approx(np.full(13, each), rel=0.1) and counts[0] == pytest.approx(5000 + each, rel=0.1)
    turns = numbers[chosen == NAMES.index("Rotate")] / 30
    assert (turns < 0).mean() == pytest.approx(0.5, abs=0.06)
    assert np.abs(turns).mean() == pytest.approx(0.5, abs=0.03) and np.abs(turns).std() == pytest.approx(0.2, abs=0.02)
    assert (numbers[chosen == NAMES.index("Solarize")] >= 0).all()
    _, alike = RandAugment(1, 3.0).choose(uniform(0, 0, np.arange(1000), 4))
    assert {round(abs(float(number)), 5) for number in alike} == {0, 0.09, 0.13595, 0.27, 1.2, 9, 76.5}


def test_an_erased_box_is_torchvisions():
    images, names = pictures(200), drawn(200)
    found = RandomErasing(0.6)(images, names, PADDING)
    boxes = RandomErasing(0.6).boxes(names, 37, 50)
    fill = torch.tensor(PADDING, dtype=torch.uint8).view(3, 1, 1)
    for image, other, (top, left, height, width) in zip(images, found, boxes.tolist(), strict=True):
        assert torch.equal(other, functional.erase(image, top, left, height, width, fill) if height else image)


def test_boxes_are_drawn_as_torchvision_draws_them():
    torch.manual_seed(0)
    theirs = [v2.RandomErasing(p=1).make_params([torch.empty(3, 64, 96)]) for _ in range(2000)]
    theirs = np.array([[params[side] for side in "ijhw"] for params in theirs if params["v"] is not None])
    ours = RandomErasing(1.0).boxes(drawn(2000), 64, 96)
    assert (ours[:, 2] > 0).all() and (ours[:, :2] + ours[:, 2:] <= (64, 96)).all() and (ours[:, :2] >= 0).all()
    for measure in (lambda b: b[:, 2] * b[:, 3] / (64 * 96), lambda b: np.log(b[:, 2] / b[:, 3]),
                    lambda b: b[:, 0] / (65 - b[:, 2]), lambda b: b[:, 1] / (97 - b[:, 3])):  # fmt: skip
        means = [measure(boxes).mean() for boxes in (ours, theirs)]
        spread = math.sqrt(2 * np.var(measure(theirs)) / 2000)
        assert abs(means[0] - means[1]) < 4 * spread
    assert (RandomErasing(0.25).boxes(drawn(4000), 64, 96)[:, 2] > 0).mean() == pytest.approx(0.25, abs=0.03)


def test_by_default_nothing_is_changed_or_drawn():
    images, state = pictures(8), torch.get_rng_state()
    assert Classification().distort(images, drawn(8), PADDING) is images
    assert Classification().augmented_by == {} and Classification(rand_augment=1).augmented_by.keys() == {"torchvision"}
    Classification(rand_augment=2, erasing=1.0).distort(images, drawn(8), PADDING)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_that_keep_their_place_are_returned_in_it():
    images = pictures(12)
    kept = apply_all(images, np.zeros(12, np.int64), np.zeros(12, np.float32), torch.zeros(1, 3, 1, 1))
    assert torch.equal(kept, images)
