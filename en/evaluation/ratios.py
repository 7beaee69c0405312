"""How much of each normalizer EN uses, over a whole set."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from en.build import build_to_device
from en.data import Batch, ImageLoader, naming_dead_workers
from en.data.to_device import ToDevice
from en.distributed.collectives import sum_over_ranks
from en.distributed.device import choose_device
from en.distributed.ranks import Ranks
from en.errors import RunError, UserError
from en.evaluation.trained import Trained
from en.norm import ExemplarNorm2d, record_ratios
from en.norm.trained_maps import mixed_layers
from en.progress import Progress
from en.runs.ratios import Layer, Ratios
from en.size import Size, in_words

Pixels = NDArray[np.uint8]


def normalizers_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The normalizers of each EN layer, by the layer's name."""
    return {name: layer.normalizers for name, layer in model.named_modules() if isinstance(layer, ExemplarNorm2d)}


def mean_ratios(model: nn.Module, record: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """The mean ratio of each normalizer in each EN layer of a record, over the samples of all ranks.

    Layers that did not run, as those of a head for training alone, are left out.
    """
    layers = normalizers_of(model)
    if not layers:
        return {}
    device = next(model.parameters()).device
    sums = [record[name].double().sum(0) if name in record else torch.zeros(len(k)) for name, k in layers.items()]
    flat = sum_over_ranks(torch.cat([part.to(device, torch.float64) for part in sums]))
    parts = zip(layers, torch.split(flat, [len(kinds) for kinds in layers.values()]), strict=True)
    ran = {name: part for name, part in parts if part.any()}
    samples = next(iter(ran.values())).sum() if ran else 1
    return {name: dict(zip(layers[name], (part / samples).tolist(), strict=True)) for name, part in ran.items()}


class MeanRatios:
    """The mean ratio of each normalizer in each EN layer over the evaluation set: an observer (see observers.py)."""

    name = "ratios"

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[Callable[[], dict[str, dict[str, float]]]]:
        with record_ratios(network) as record:
            yield lambda: mean_ratios(network, record)


def measure_ratios(trained: Trained, split: str) -> Ratios:
    """The ratios of a finished network for every image of a split.

    Raises: UserError for a network without EN layers; RunError as `collect_ratios`.
    """
    config, model = trained.config, trained.model
    if not normalizers_of(model):
        raise UserError(
            f"{trained.path}: {config.model.name} with norm.name={config.norm.name}: expected a network with layers of "
            "exemplar normalization (en), found none"
        )
    to_device = build_to_device(config, choose_device(config.device, Ranks.from_environment()))
    model.to(device=to_device.device, memory_format=to_device.memory_format)  # type: ignore[call-overload]
    with naming_dead_workers():
        return collect_ratios(model, trained.loaders[split], config.shown_size, to_device, visible=True)


@torch.inference_mode()
def collect_ratios(
    model: nn.Module, loader: ImageLoader, size: Size | None, to_device: ToDevice, visible: bool = False
) -> Ratios:
    """The ratios of a network with EN layers for every image of a set, in one pass of one process.

    Beside the result, memory holds one batch and its ratios.

    Raises: RunError for ratios that are not finite, for a layer that does not run once a pass, and when the images seen
        are not as many as the set has.
    """
    kinds, seen = normalizers_of(model), np.zeros(loader.samples, bool)
    ratios = Ratios(loader.classes, np.full(loader.samples, -1), {})
    model.eval()
    with Progress("ratios", loader.samples, visible) as progress:
        for batch in loader.eval_epoch(size):
            with record_ratios(model) as record:
                model(to_device(batch.images, batch.targets)[0])
            if not ratios.layers:
                for name in record:
                    columns = np.empty((loader.samples, len(kinds[name])), np.float32, order="F")
                    ratios.layers[name] = Layer(kinds[name], columns)
            put(ratios, batch, record)
            seen[batch.samples.numpy()] = True
            progress.advance(len(batch.samples))
    if not seen.all():
        raise RunError(f"ratios of {seen.sum()} images, expected the {loader.samples} of the set")
    return ratios


def put(ratios: Ratios, batch: Batch, record: dict[str, Tensor]) -> None:
    """Writes a batch's ratios to the rows of its samples."""
    samples = batch.samples.numpy()
    if batch.targets.ndim == 1 and not batch.targets.is_floating_point():
        ratios.targets[samples] = batch.targets.numpy()
    if record.keys() != ratios.layers.keys():
        raise RunError(f"{len(record)} layers ran, expected the {len(ratios.layers)} of the first batch")
    for name, layer in ratios.layers.items():
        rows = record[name].float().cpu().numpy()
        if len(rows) != len(samples):
            raise RunError(f"{name} ran {len(rows) / len(samples):g} times in a pass: expected one ratio a sample")
        if not np.isfinite(rows).all():
            raise RunError(f"the ratios of {name} are not finite in the batch that begins with sample {samples[0]}")
        layer.ratios[samples] = rows


def read_pictures(loader: ImageLoader, samples: Sequence[int], size: Size | None) -> dict[int, Pixels]:
    """Reads some images by their indices, as the network sees them: (H, W, 3) uint8 RGB."""
    chosen = np.array(sorted(set(samples)), np.int64)
    pictures: dict[int, Pixels] = {}
    with naming_dead_workers():
        for batch in loader.eval_samples(chosen, size):
            images = batch.images.permute(0, 2, 3, 1).numpy()
            pictures |= dict(zip(batch.samples.tolist(), images, strict=True))
    return pictures


def describe(trained: Trained, split: str) -> dict[str, str]:
    """Says in words what the ratios are of."""
    config, loader = trained.config, trained.loaders[split]
    return {
        "network": f"{config.model.name} with {config.norm.name}",
        "checkpoint": str(trained.path),
        "sha256": trained.saved.digest,
        "trained to": trained.saved.position.words(),
        "weights": "averaged (train.ema_decay)" if trained.saved.ema else "of the last step",
        "data": loader.name,
        "split": split,
        "images": f"{loader.samples:,}",
        "classes": f"{len(loader.classes):,}",
        "resolution": f"{in_words(config.shown_size)} pixels" if config.shown_size else "each image's own",
        "mixed": "; ".join(f"{names} in {n} layers" for names, n in mixed_layers(trained.model).items()),
    }
