"""The trainer's images/s against the bare step, with images in memory: ResNet50 with EN, bfloat16, channels_last."""

from en.benchmarks.memory import MemoryLoader
from en.benchmarks.train import compare_trainer, recipe
from gpu.results import Report, Setup


def test_trainer(setup: Setup, report: Report) -> None:
    model, batch, side = ("shufflenet_v2_x0_5", 4, 64) if setup.tiny else ("resnet50", 256, 224)
    steps, rounds = (1, 1) if setup.tiny else (20, 3)
    precision = {"train": {"precision": "bfloat16"}, "device": setup.device}
    config = recipe(model, "en", side, batch, rounds, precision)
    loader = MemoryLoader(steps, batch, side, classes=1000, pinned=setup.device == "cuda")
    speeds, _ = compare_trainer(config, loader, rounds)
    title = f"{model} with en, {batch} images of {side} pixels, bfloat16, {rounds} rounds of {steps} steps"
    for what, speed in speeds.items():
        report.row(title, what=what, **{"images/s": speed, "/ bare step": speed / speeds["bare step"]})
    report.figure("trainer / bare step", speeds["trainer"] / speeds["bare step"])
