"""Snow, fog and light. Images are (H, W, 3), 0 to 1."""

import math

import numpy as np

from en.data.corruptions.scale import Floats, convolve, enlarged, length, streak, strength

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def snow(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Whitens the image, and adds flakes that fall at 45 to 135 degrees, and as many turned by 180 (constants ours).

    Flakes are where normal noise of their size passes a number of standard deviations.
    """
    flake = length((1.2,) * 5, (3,) * 5, severity, image)
    passed = (2.0, 1.7, 1.4, 1.2, 1.0)[severity - 1]
    sigma = length((0.7, 0.9, 1.1, 1.4, 1.7), (2, 2.5, 3, 4, 5), severity, image)
    whitened = np.float32(strength((0.05, 0.1, 0.12, 0.15, 0.2), (0.2, 0.25, 0.3, 0.35, 0.4), severity, image))
    height, width = image.shape[:2]
    coarse = random.standard_normal((math.ceil(height / flake), math.ceil(width / flake)), np.float32)
    flakes = np.clip(enlarged(coarse, height, width) - np.float32(passed), 0, 1)
    flakes = convolve(flakes, streak(sigma, random.uniform(math.pi / 4, 3 * math.pi / 4)))[..., None]
    white = np.maximum(image, (image @ GREY)[..., None] * np.float32(1.5) + np.float32(0.5))
    snowed: Floats = image * (1 - whitened) + white * whitened + flakes + flakes[::-1, ::-1]
    return snowed


def fog(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Adds a cloud, 0 to 1, of octaves of noise; the whole is scaled so that white stays white.

    Amount and decay of the octaves are CIFAR-10-C's and ImageNet-C's (rounded), where a plasma fractal is the cloud.
    """
    amount = np.float32(strength((0.2, 0.5, 0.75, 1.0, 1.5), (1.5, 2.0, 2.5, 2.75, 3.0), severity, image))
    decay = strength((3, 3, 2.5, 2, 1.75), (2, 2, 1.7, 1.5, 1.4), severity, image)
    height, width = image.shape[:2]
    cloud, grid = np.zeros((height, width), np.float32), 2
    while grid < 2 * max(height, width):
        octave = random.uniform(-1, 1, (grid, grid)).astype(np.float32)
        cloud += enlarged(octave, height, width) * np.float32(decay ** -math.log2(grid))
        grid *= 2
    cloud = (cloud - cloud.min()) / (cloud.max() - cloud.min())
    most = image.max()
    fogged: Floats = (image + amount * cloud[..., None]) * (most / (most + amount))
    return fogged


def brightness(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Raises the value of hue, saturation and value; amounts are CIFAR-10-C's and ImageNet-C's."""
    added = np.float32(strength((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), severity, image))
    value = image.max(-1, keepdims=True)
    raised = np.minimum(value + added, 1)
    lit: Floats = np.where(value > 0, image * (raised / np.maximum(value, np.float32(1e-6))), raised)
    return lit


def contrast(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Leaves a share of the distance from each channel's mean; shares are CIFAR-10-C's and ImageNet-C's."""
    share = np.float32(strength((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), severity, image))
    mean = image.mean((0, 1), keepdims=True)
    flat: Floats = (image - mean) * share + mean
    return flat
