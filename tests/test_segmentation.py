"""Labelling pixels: networks, loss, prediction in bands, protocols and scores."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from en.data.targets import IGNORE
from en.models.options import OptionError
from en.models.segmenters import HEADS, backbone_of, build_segmenter, means
from en.norm import NORMALIZERS, build_norm
from en.norm.base import RunningNormalizer
from en.norm.built import layers_as_built, rebuild
from en.tasks.confusion import confusion_scores
from en.tasks.dense import predict_classes
from en.tasks.protocols import PROTOCOLS, RATIOS, Protocol, Resize, protocol
from en.tasks.segmentation import Segmentation

CLASSES = 5
SMALL = {"channels": [16, 32, 64, 128], "stem_width": 8, "head_channels": 32}


def small(norm="bn", **options):
    return build_segmenter("timm/resnet10t", CLASSES, norm, options=SMALL | options)


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_a_network_of_torchvisions_is_torchvisions_own_but_for_what_enlarges_its_logits(name):
    torch.manual_seed(0)
    ours = build_segmenter(name, CLASSES, options={"width_per_group": 4})
    torch.manual_seed(0)
    resnet = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True], width_per_group=4)
    kind = getattr(torchvision.models.segmentation, name.split("_")[0])
    maker = kind._fcn_resnet if name.startswith("fcn") else kind._deeplabv3_resnet
    theirs = maker(resnet, CLASSES, True)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)
    images = torch.randn(1, 3, 40, 33)
    with torch.inference_mode():
        expected, found = theirs.eval()(images), ours.eval()(images)
    torch.testing.assert_close(F.interpolate(found, (40, 33), mode="bilinear"), expected["out"])


@pytest.mark.parametrize("head", ["fcn", "psp"])
@pytest.mark.parametrize("norm", NORMALIZERS)
def test_every_normalizer_trains_and_evaluates_on_a_single_image(norm, head):
    network = small(norm, head=head)
    assert not [layer for layer in network.modules() if type(layer) is nn.BatchNorm2d]
    images, targets = torch.randn(1, 3, 48, 40), torch.randint(CLASSES, (1, 48, 40))
    total, count = Segmentation().loss(network(images), targets)
    (total / count).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with torch.inference_mode():
        assert network.eval()(images).shape == (1, CLASSES, 6, 5)


@pytest.mark.parametrize("norm", [name for name in NORMALIZERS if isinstance(build_norm(name, 8), RunningNormalizer)])
def test_a_single_image_in_a_pooled_branch_is_normalized_by_the_averages_and_leaves_them(norm):
    layer = build_norm(norm, 8)
    x = torch.randn(1, 8, 1, 1, requires_grad=True)
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer(x)
    layer.averages_for_one = True
    layer(torch.randn(4, 8, 1, 1))
    before = [buffer.clone() for buffer in layer.buffers()]
    found = layer(x)
    found.square().sum().backward()
    assert layer.training and x.grad is not None
    assert all(torch.equal(old, new) for old, new in zip(before, layer.buffers(), strict=True))
    torch.testing.assert_close(found.detach(), layer.eval()(x).detach())


def test_layers_that_are_rebuilt_take_a_single_image_still():
    network = small("en", head="psp")
    options = {place: built | {"momentum": 0.2} for place, built in layers_as_built(network).items()}
    rebuild(network, options)
    network(torch.randn(1, 3, 48, 40))
    branches = network.classifier.branches
    assert [branch[1].averages_for_one for branch in branches] == [True, False, False, False]


def test_pyramid_means_by_slices_are_torchs_adaptive_pooling():
    x = torch.randn(2, 3, 13, 7)
    for bins in (1, 2, 3, 6):
        torch.testing.assert_close(means(means(x, bins, 2), bins, 3), F.adaptive_avg_pool2d(x, bins))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fcn_resnet18", {}, "network 'fcn_resnet18': expected one of fcn_resnet101"),
        ("resnet50", {}, "network 'resnet50': expected one of"),
        ("timm/resnet10t", {"head": "fpn"}, "options.head='fpn' for timm/resnet10t: expected fcn or psp"),
        ("timm/resnet10t", {"head_channels": 0}, "options.head_channels=0 for timm/resnet10t: expected an integer"),
        ("deeplabv3_resnet50", {"head_channels": 8}, "expected one of head_dropout, aux_channels, or an option"),
        ("timm/resnet10t", {"output_stride": 16}, "expected no such option: the stride is 8"),
        ("fcn_resnet50", {"head_dropout": 1.0}, "expected a probability"),
    ],
)
def test_a_network_or_an_option_that_cannot_be_is_refused_by_its_name(name, options, words):
    with pytest.raises((ValueError, OptionError), match=words):
        build_segmenter(name, CLASSES, options=options)


def test_the_network_that_a_backbone_is_of_is_known_by_name():
    assert [backbone_of(f"{head}_resnet50") for head in HEADS] == ["resnet50"] * len(HEADS)
    assert backbone_of("timm/resnet10t") == "timm/resnet10t" and backbone_of("resnet50") is None


def test_the_loss_is_torchs_over_the_pixels_that_count_and_zero_where_none_does():
    logits = torch.randn(2, CLASSES, 6, 5, requires_grad=True)
    targets = torch.randint(CLASSES, (2, 41, 37))
    targets[torch.rand(2, 41, 37) < 0.3] = IGNORE
    task = Segmentation(aux_weight=0.4)
    total, count = task.loss({"out": logits, "aux": logits}, targets)
    enlarged = F.interpolate(logits, (41, 37), mode="bilinear")
    torch.testing.assert_close(total / count, 1.4 * F.cross_entropy(enlarged, targets, ignore_index=IGNORE))
    total, count = task.loss({"out": logits}, torch.full_like(targets, IGNORE))
    total.backward()
    assert (total.item(), count.item()) == (0, 0) and not logits.grad.any()
    # torch's own mean over no pixel is not a number.
    assert F.cross_entropy(enlarged, torch.full_like(targets, IGNORE), ignore_index=IGNORE).isnan()


def literal_classes(network, image, form):
    """Computes what predict_classes does, at full size, pass by pass."""
    (height, width), total = image.shape[2:], 0
    for resize in form.resizes:
        size = resize.size(height, width)
        scaled = F.interpolate(image, size, mode="bilinear")
        for mirrored in (False, True)[: 1 + (form.flip and not form.window)]:
            seen = scaled.flip(3) if mirrored else scaled
            if form.window:
                logits = literal_windows(network, seen, form)
            else:
                logits = network(seen)
                if form.steps == "twice":
                    logits = F.interpolate(logits, size, mode="bilinear", align_corners=form.corners)
            logits = logits.flip(3) if mirrored else logits
            if logits.shape[2:] != image.shape[2:]:
                corners = form.corners and form.steps == "once" and not form.window
                logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=corners)
            total = total + (logits.softmax(1) if form.averaged == "probabilities" else logits)
    return total.argmax(1).to(torch.uint8), total


def literal_windows(network, seen, form):
    height, width = seen.shape[2:]
    down, across = max(0, form.window - height), max(0, form.window - width)
    padded = F.pad(seen, (across // 2, across - across // 2, down // 2, down - down // 2))
    total, count = 0, 0
    tall, wide = padded.shape[2:]
    for top in sorted({min(top, tall - form.window) for top in range(0, tall, form.stride)}):
        for left in sorted({min(left, wide - form.window) for left in range(0, wide, form.stride)}):
            part = padded[:, :, top : top + form.window, left : left + form.window]
            both = [network(part)] + ([network(part.flip(3)).flip(3)] if form.flip else [])
            both = [F.interpolate(each, part.shape[2:], mode="bilinear", align_corners=form.corners) for each in both]
            both = [each.softmax(1) if form.windows_averaged == "probabilities" else each for each in both]
            logits = sum(both) / len(both)
            place = (left, wide - left - form.window, top, tall - top - form.window)
            total, count = total + F.pad(logits, place), count + F.pad(torch.ones_like(logits), place)
    top, left = down // 2, across // 2
    return (total / count)[:, :, top : top + height, left : left + width]


FORMS = {
    "whole": Protocol((Resize(),), ""),
    "snseg": Protocol((Resize(60, 100, multiple=8),), ""),
    "two sizes": Protocol((Resize(30, 90), Resize(52, 200)), "", flip=True, steps="twice"),
    "logits": Protocol((Resize(ratio=0.5), Resize(ratio=1.25)), "", averaged="logits"),
    "windows": Protocol((Resize(long=90),), "", True, 33, 22, windows_averaged="probabilities", corners=True),
    "whole, corners": Protocol((Resize(long=90),), "", steps="twice", corners=True),
    "small image": Protocol((Resize(long=40),), "", True, 33, 22, windows_averaged="logits"),
}


@pytest.mark.parametrize("height,width", [(47, 71), (64, 40)])
@pytest.mark.parametrize("name", FORMS)
def test_classes_from_bands_of_rows_are_those_of_whole_maps(name, height, width, monkeypatch):
    monkeypatch.setattr("en.tasks.dense.BAND", CLASSES * width * 7)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 9, stride=8, padding=4), nn.ReLU(), nn.Conv2d(16, CLASSES, 3, padding=1))
    image = torch.randn(1, 3, height, width)
    with torch.inference_mode():
        found = predict_classes(network, image, FORMS[name])
        expected, total = literal_classes(network, image, FORMS[name])
    best = total.topk(2, dim=1).values
    decided = best[:, 0] - best[:, 1] > 1e-5  # the order of sums may turn equal ones
    assert found.shape == (1, height, width) and decided.float().mean() > 0.99
    assert torch.equal(found[decided], expected[decided])


def test_the_protocols_have_the_sizes_of_their_sources():
    assert protocol("mmseg", "ade20k").resizes[0].size(256, 683) == (512, 1366)
    assert protocol("mmseg", "cityscapes").resizes[0].size(1024, 2048) == (1024, 2048)
    assert protocol("snseg", "ade20k").resizes[0].size(512, 683) == (456, 600)
    assert protocol("snseg", "ade20k").resizes[0].size(300, 900) == (336, 1000)
    assert protocol("snseg", "ade20k").resizes[0].size(400, 604) == (456, 680)  # 679.5 is cut, then rounded up to 8
    assert [each.size(512, 683)[1] for each in protocol("semseg", "ade20k").resizes] == [512]
    assert len(protocol("mmseg_ms", "ade20k").resizes) == 6 and protocol("mmseg_ms", "ade20k").flip
    assert not protocol("snseg_ms", "ade20k").flip and protocol("semseg", "cityscapes").stride == 476
    assert protocol("ours", None).resizes[0].size(33, 77) == (33, 77)
    assert set(Segmentation.model_fields["protocol"].annotation.__args__) == set(PROTOCOLS)
    with pytest.raises(ValueError, match="protocol=snseg with data_set=cityscapes: expected data_set=ade20k"):
        Segmentation(protocol="snseg", data_set="cityscapes")


def literal_scores(predicted, targets):
    """Scores by numpy, class by class."""
    counted = targets != IGNORE
    predicted, targets = predicted[counted], targets[counted]
    ious, accuracies = [], []
    for number in range(CLASSES):
        here, said = targets == number, predicted == number
        if (here | said).any():
            ious.append((here & said).sum() / (here | said).sum())
        if here.any():
            accuracies.append((here & said).sum() / here.sum())
    return {
        "miou": 100 * np.mean(ious),
        "macc": 100 * np.mean(accuracies),
        "aacc": 100 * (predicted == targets).mean(),
        "classes_found": len(ious),
    }, ious


def test_scores_are_those_of_one_matrix_and_leave_absent_classes_out():
    random = np.random.default_rng(0)
    metrics, zeros = confusion_scores(CLASSES, "left_out"), confusion_scores(CLASSES, "zero")
    maps = []
    for height, width in ((7, 9), (31, 5), (16, 16), (3, 3)):
        targets = random.integers(0, 3, (1, height, width)).astype(np.uint8)
        targets[random.random(targets.shape) < 0.2] = IGNORE
        predicted = np.where(random.random(targets.shape) < 0.3, random.choice([0, 1, 3], targets.shape), targets)
        predicted = np.where(predicted == IGNORE, 4, predicted).astype(np.uint8)
        maps.append((predicted.ravel(), targets.ravel()))
        for each in (metrics, zeros):
            each.set_dtype(torch.float64)
            each.update(torch.from_numpy(predicted), torch.from_numpy(targets).long())
    for each in (metrics, zeros):
        each.update(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.full((1, 4, 4), IGNORE))
    expected, ious = literal_scores(*(np.concatenate(part) for part in zip(*maps, strict=True)))
    found = metrics.compute()
    assert metrics["miou"].counts.dtype == torch.int64
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected, rel=1e-12)
    assert expected["classes_found"] == 4  # the last one is where nothing counts only
    assert found["iou"].isnan().tolist() == [False] * 4 + [True]
    assert float(zeros.compute()["miou"]) == pytest.approx(100 * sum(ious) / CLASSES)
    assert int(found["labelled"].sum()) == int(found["predicted"].sum()) == sum((t != IGNORE).sum() for _, t in maps)
    assert Segmentation().remark(found, CLASSES) == "protocol ours, mean of 4 of 5 classes"


PEAK = """
import resource, sys, torch
from torch import nn
from en.tasks.dense import predict_classes
from en.tasks.protocols import protocol

height, width, classes = map(int, sys.argv[1:])
network = nn.Conv2d(3, classes, 8, stride=8)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with torch.inference_mode():
    network(torch.zeros(1, 3, height * 7 // 4, width * 7 // 4))
    image, before = torch.randn(1, 3, height, width), peak()
    predict_classes(network, image, protocol("ours_ms", None))
print(peak() - before)
"""


@pytest.mark.slow(reason="12 passes enlarged to 512 x 1024 pixels of 150 classes")
def test_many_passes_over_a_large_image_under_many_classes_take_little_more_memory_than_their_small_logits():
    """A quarter of 2048 x 1024, where 12 enlarged passes of 150 classes would take 3.8 GB, or one 0.3 GB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, "512", "1024", "150"], capture_output=True, text=True, check=True
    )
    logits = sum(2 * (512 * ratio // 8) * (1024 * ratio // 8) * 150 * 4 for ratio in RATIOS)
    assert int(done.stdout) < logits + 120e6
