"""Noise of sensors and of transmission. Images are (H, W, 3), 0 to 1; amplitudes are CIFAR-10-C's and ImageNet-C's."""

import numpy as np

from en.data.corruptions.scale import Floats, strength


def gaussian_noise(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Adds normal noise of the same standard deviation to every value."""
    deviation = strength((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38), severity, image)
    noisy: Floats = image + np.float32(deviation) * random.standard_normal(image.shape, np.float32)
    return noisy


def shot_noise(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Counts so many photons for white, each value a Poisson variable."""
    photons = strength((500, 250, 100, 75, 50), (60, 25, 12, 5, 3), severity, image)
    return (random.poisson(image * photons) / photons).astype(np.float32)


def impulse_noise(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Puts a share of the values to 0 or 1, either alike often."""
    share = strength((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27), severity, image)
    drawn = random.random(image.shape, np.float32)
    return np.where(drawn < share, np.float32(drawn < share / 2), image)
