#!/usr/bin/env python3
"""Measure normalizers, loaders, preparation, decoding, corruptions and the trainer, each against what does the same."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.errors import Parser, UserError, exit_on_error, whole_number


def main() -> None:
    parser = Parser(description=__doc__)
    choices = ("norm", "loader", "masks", "decode", "prepare", "corruptions", "labels", "train")
    parser.add_argument("what", choices=choices)
    parser.add_argument(
        "--rounds", type=whole_number(1, 1000), default=5, help="interleaved rounds; the median is shown"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all figures to FILE")
    parser.add_argument(
        "--threads",
        type=whole_number(1, 1024),
        default=os.cpu_count(),
        help="CPU threads, or workers of a loader; norm measures with one thread, too",
    )
    norm = parser.add_argument_group("norm")
    norm.add_argument("--models", nargs="+", choices=("layer", "resnet50", "shufflenet_v2_x1_0", "fcn_resnet50"),
                      default=["layer", "resnet50", "shufflenet_v2_x1_0"])  # fmt: skip
    norm.add_argument("--norms", nargs="+", metavar="NAME", help="beside nn.BatchNorm2d; default: all")
    norm.add_argument("--modes", nargs="+", choices=("train", "infer"), default=["train", "infer"])
    norm.add_argument("--layouts", nargs="+", choices=("nchw", "channels_last"), default=["nchw", "channels_last"])
    norm.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    norm.add_argument("--compile", action="store_true", help="use torch.compile")
    norm.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    loader = parser.add_argument_group("loader, masks, decode, prepare, corruptions, labels")
    loader.add_argument("--images", type=whole_number(1, 10**7), default=1024, help="images per epoch, or of each kind")
    loader.add_argument("--photos", metavar="DIR", type=Path, help="JPEGs to make mosaics of, not noise")
    loader.add_argument(
        "--sizes", nargs="+", type=whole_number(1, 4096), default=[224], help="loader, corruptions: sides of crops"
    )
    loader.add_argument("--peers", metavar="PYTHON", help="loader: of an environment with tensorflow, nvidia-dali, "
                        "spdl or simplejpeg and opencv, whichever it has")  # fmt: skip
    train = parser.add_argument_group("train, labels")
    train.add_argument("--network", choices=("resnet50", "fcn_resnet50"), default="resnet50", help="train alone")
    train.add_argument("--norm", default="en", help="normalizer of the network")
    train.add_argument("--steps", type=whole_number(1, 10**6), default=10, help="train: steps per round")
    arguments = parser.parse_args()

    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    if arguments.json is not None and (
        arguments.json.is_dir() or not os.access(arguments.json.absolute().parent, os.W_OK)
    ):
        raise UserError(f"--json {arguments.json}: expected a file in an existing, writable folder")
    import torch

    from en.benchmarks.corruptions import benchmark_corruptions
    from en.benchmarks.decode import benchmark_decode
    from en.benchmarks.labels import benchmark_labels
    from en.benchmarks.loader import benchmark_loader
    from en.benchmarks.masks import benchmark_masks
    from en.benchmarks.norm import benchmark_norm
    from en.benchmarks.preparation import benchmark_prepare
    from en.benchmarks.train import benchmark_train
    from en.norm import NORMALIZERS

    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: expected a GPU, found none")
    match arguments.what:
        case "norm":
            norms = arguments.norms or list(NORMALIZERS)
            if unknown := [name for name in norms if name not in NORMALIZERS]:
                raise UserError(f"--norms {unknown[0]}: expected some of {', '.join(NORMALIZERS)}")
            options = (
                arguments.models,
                arguments.modes,
                arguments.layouts,
                norms,
                arguments.dtype,
                arguments.compile,
                arguments.device,
                sorted({1, arguments.threads}) if arguments.device == "cpu" else [arguments.threads],
            )
            benchmark_norm(*options, arguments.rounds, arguments.json)
        case "loader":
            source = (arguments.images, arguments.photos, arguments.sizes, arguments.peers)
            benchmark_loader(*source, arguments.threads, arguments.rounds, arguments.json)
        case "masks":
            benchmark_masks(arguments.images, arguments.photos, arguments.threads, arguments.rounds, arguments.json)
        case "decode":
            benchmark_decode(arguments.images, arguments.photos, arguments.rounds, arguments.json)
        case "prepare":
            benchmark_prepare(arguments.images, arguments.photos, arguments.threads, arguments.rounds, arguments.json)
        case "corruptions":
            shown = (arguments.images, arguments.photos, arguments.sizes)
            benchmark_corruptions(*shown, arguments.threads, arguments.rounds, arguments.json)
        case "labels":
            benchmark_labels(arguments.images, arguments.norm, arguments.rounds, arguments.json)
        case _:
            benchmark_train(arguments.network, arguments.norm, arguments.steps, arguments.rounds, arguments.json)


if __name__ == "__main__":
    exit_on_error(main)
