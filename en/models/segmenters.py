"""Networks that label pixels: a dilated backbone of torchvision or timm, a head, and an auxiliary one in training."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import ASPPPooling, DeepLabHead

from en.models.build import unknown_network, with_options
from en.models.options import OptionError, Options, checked_options, reason
from en.norm import replace_norm
from en.norm.base import RunningNormalizer

STRIDE = 8  # of the backbone: pixels of the image for each of its last map
DILATED = [False, True, True]  # torchvision's layer2 strides; layer3 and layer4 dilate by 2 and 4 in its place
WITHOUT_DILATION = ("resnet18", "resnet34")  # torchvision's basic block has none
BACKBONE = "backbone"
BINS = (1, 2, 3, 6)  # of PSP's pyramid (PSPNet paper, table 1)
DROPOUT = 0.1  # torchvision's, of its FCN head
HEAD_OPTIONS: dict[str, dict[str, type]] = {  # further keys of model.options, by the head, with their types
    "fcn": {"head_channels": int, "head_dropout": float},
    "psp": {"head_channels": int, "head_dropout": float},
    "deeplabv3": {"head_dropout": float},
}
ALL_HEAD_OPTIONS = ("head", "head_channels", "head_dropout", "aux_channels")
LARGEST_HEAD = 2**13  # channels (our choice)


class Segmenter(nn.Module):
    """A backbone whose last map a head classifies, and the map before it an auxiliary head, in training.

    Modules have torchvision's names: `backbone`, `classifier`, `aux_classifier`. Logits stay at the backbone's stride:
    who wants them at the image's size enlarges them bilinearly, as torchvision's own forward does.

    Args:
        backbone: maps of an image, the last two of them the deepest, in a list or a dict.
        classifier, aux_classifier: maps -> (N, classes, h, w); None for the latter: no auxiliary head.
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module, aux_classifier: nn.Module | None) -> None:
        super().__init__()
        self.backbone, self.classifier, self.aux_classifier = backbone, classifier, aux_classifier

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """(N, 3, H, W) -> logits (N, classes, h, w); in training a dict of them: "out" and, with such a head, "aux"."""
        maps: Any = self.backbone(x)
        *_, before, last = maps.values() if isinstance(maps, dict) else maps
        out: Tensor = self.classifier(last)
        if not self.training:
            return out
        return {"out": out} if self.aux_classifier is None else {"out": out, "aux": self.aux_classifier(before)}


class PyramidBranch(nn.Sequential):
    """One bin of PSP's pyramid: means over bins x bins parts of a map, narrowed, and enlarged to its size again."""

    def __init__(self, bins: int, in_channels: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels, H, W)."""
        narrowed: Tensor = super().forward(pooled(x, self.bins))  # type: ignore[no-untyped-call]
        return F.interpolate(narrowed, size=x.shape[2:], mode="bilinear")


class PyramidHead(nn.Module):
    """The head of PSPNet (Zhao et al. 2017, figure 3): a map beside its means over pyramids of parts, then a 3 x 3."""

    def __init__(self, in_channels: int, classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        narrow = max(1, in_channels // len(BINS))
        self.branches = nn.ModuleList(PyramidBranch(bins, in_channels, narrow) for bins in BINS)
        self.fuse = fcn_head(in_channels + narrow * len(BINS), classes, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, classes, h, w)."""
        logits: Tensor = self.fuse(torch.cat([x, *(branch(x) for branch in self.branches)], 1))
        return logits


def build_segmenter(
    name: str,
    num_classes: int,
    norm: str = "bn",
    norm_options: Mapping[str, object] | None = None,
    zero_init_last_gamma: bool | None = None,
    dropout: float = 0.0,
    options: Options | None = None,
    auxiliary: bool = True,
) -> Segmenter:
    """A freshly initialized network that labels pixels, without any weights from a network.

    Args:
        name: fcn_, deeplabv3_ or psp_ and a ResNet of torchvision with bottlenecks, such as fcn_resnet50; or `timm/`
            and a network of timm's, under the head that the option `head` names.
        num_classes: of the logits.
        norm, norm_options: as for `en.norm.build_norm`; every batch normalization of backbone and heads is replaced.
        zero_init_last_gamma: as for `build_model`.
        dropout: has to be 0: heads have the option head_dropout.
        options: head (of timm/NAME: fcn or psp), head_channels, head_dropout, aux_channels, which are the head's, and
            further keyword arguments of the backbone's class.
        auxiliary: whether there is an auxiliary head, which an FCN's is.
    Raises: ValueError, OptionError: as build_model.
    """
    if dropout:
        raise ValueError(f"dropout={dropout}: expected 0 and, for a network that labels pixels, options.head_dropout")
    backbone, wide, kind, own = (timm_backbone if name.startswith("timm/") else torchvision_backbone)(
        name, zero_init_last_gamma, options or {}
    )
    before, last = wide
    # The auxiliary head first, as torchvision draws its numbers.
    aux = fcn_head(before, num_classes, own.get("aux_channels", before // 4), own.get("head_dropout", DROPOUT))
    head = HEADS[kind](last, num_classes, own)
    model = Segmenter(backbone, head, aux if auxiliary else None)
    replace_norm(model, norm, **dict(norm_options or {}))  # type: ignore[arg-type]
    take_single_values(model)
    return model


def backbone_of(name: str) -> str | None:
    """The classification network whose weights, but for its head, are those of a segmenter's `backbone`."""
    if name.startswith("timm/"):
        return name
    kind, _, network = name.partition("_")
    return network if kind in HEADS and network in resnets() else None


def take_single_values(model: nn.Module) -> None:
    """Has normalizers of maps of one pixel take a batch of one image, which has no batch statistics: see docs."""
    for branch in model.modules():
        if isinstance(branch, ASPPPooling) or (isinstance(branch, PyramidBranch) and branch.bins == 1):
            for layer in branch.modules():
                if isinstance(layer, RunningNormalizer):
                    layer.averages_for_one = True


Built = tuple[nn.Module, tuple[int, int], str, dict[str, Any]]


def torchvision_backbone(name: str, zero_init: bool | None, options: Options) -> Built:
    """A dilated ResNet without its head, the channels of its last two maps, and the head's name and options."""
    kind, network = name.partition("_")[0], backbone_of(name)
    if network is None:
        known = [f"{head}_{each}" for head in HEADS for each in resnets()]
        raise ValueError(unknown_network(name, [*known, "timm/" + name], f"one of {', '.join(known[:3])}, timm/NAME"))
    own, rest = parted(name, kind, options)
    if "replace_stride_with_dilation" in rest:
        given = {"replace_stride_with_dilation": rest["replace_stride_with_dilation"]}
        raise OptionError(name, given, f"no such option: the stride is {STRIDE}")
    zero = {} if zero_init is None else {"zero_init_residual": zero_init}
    fixed = {"weights": None, "replace_stride_with_dilation": DILATED}
    resnet = with_options(name, zero, rest, lambda kw: torchvision.models.get_model(network, **fixed, **kw))
    last = cast(nn.Linear, resnet.get_submodule("fc")).in_features
    return IntermediateLayerGetter(resnet, {"layer3": "aux", "layer4": "out"}), (last // 2, last), kind, own


def timm_backbone(name: str, zero_init: bool | None, options: Options) -> Built:
    """A network of timm as maps of its stages, the last at STRIDE, with what torchvision_backbone gives beside it."""
    short, known = name.removeprefix("timm/"), [f"timm/{each}" for each in timm.list_models()]
    if name.split(".")[0] not in known:
        raise ValueError(unknown_network(name, known, "one of timm's networks after timm/"))
    kind = options.get("head", "fcn")
    if kind not in ("fcn", "psp"):
        raise OptionError(name, {"head": kind}, "fcn or psp")
    own, rest = parted(name, kind, {key: value for key, value in options.items() if key != "head"})
    for key in ("features_only", "output_stride", "out_indices"):
        if key in rest:
            raise OptionError(name, {key: rest[key]}, f"no such option: the stride is {STRIDE}, of the last two maps")
    zero = {} if zero_init is None else {"zero_init_last": zero_init}
    stages = {"features_only": True, "output_stride": STRIDE, "out_indices": (-2, -1)}
    # Options are those of the network's class, which the maps of its stages are not.
    checked = checked_options(name, rest, lambda kw: timm.create_model(short, num_classes=1, **kw))
    try:
        network = timm.create_model(short, pretrained=False, **stages, **zero, **checked)
    except Exception as error:  # networks refuse dilation in many ways
        raise ValueError(f"network {name!r}: expected one with maps at stride {STRIDE}: {reason(error)}") from error
    if network.feature_info.reduction()[-1] != STRIDE:
        found = network.feature_info.reduction()[-1]
        raise ValueError(f"network {name!r}: maps at stride {found}: expected one that can be dilated to {STRIDE}")
    before, last = network.feature_info.channels()
    return network, (before, last), str(kind), own


def parted(name: str, kind: str, options: Options) -> tuple[dict[str, Any], dict[str, object]]:
    """The options that are the heads', checked, and those that are left for the backbone."""
    known = HEAD_OPTIONS[kind] | {"aux_channels": int}
    own = {key: value for key, value in options.items() if key in ALL_HEAD_OPTIONS}
    for key, value in own.items():
        if key not in known:
            raise OptionError(name, {key: value}, f"one of {', '.join(known)}, or an option of the backbone")
        if known[key] is int and not (type(value) is int and 1 <= value <= LARGEST_HEAD):
            raise OptionError(name, {key: value}, f"an integer from 1 to {LARGEST_HEAD}")
        if known[key] is float and not (type(value) in (int, float) and 0 <= value < 1):  # type: ignore[operator]
            raise OptionError(name, {key: value}, "a probability, at least 0 and less than 1")
    return own, {key: value for key, value in options.items() if key not in own}


def pooled(x: Tensor, bins: int) -> Tensor:
    """Means over bins x bins parts of maps, (N, C, bins, bins): torch's adaptive average pooling.

    That one's gradient has no deterministic form on a GPU, for which means of slices stand in where one is asked for.
    """
    if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return F.adaptive_avg_pool2d(x, bins)
    return means(means(x, bins, 2), bins, 3)


def means(x: Tensor, bins: int, dim: int) -> Tensor:
    """Means over `bins` parts of an axis, which overlap by a pixel where its length is no multiple."""
    length = x.shape[dim]
    ends = [(part * length // bins, -(-(part + 1) * length // bins)) for part in range(bins)]
    return torch.stack([x.narrow(dim, start, end - start).mean(dim) for start, end in ends], dim)


def fcn_head(in_channels: int, classes: int, channels: int, dropout: float) -> nn.Sequential:
    """torchvision's FCNHead with channels and dropout to choose: 3 x 3, normalized, and a classifier of pixels."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(channels, classes, 1),
    )


def build_fcn(in_channels: int, classes: int, own: Mapping[str, Any]) -> nn.Module:
    return fcn_head(in_channels, classes, own.get("head_channels", in_channels // 4), own.get("head_dropout", DROPOUT))


def build_deeplab(in_channels: int, classes: int, own: Mapping[str, Any]) -> nn.Module:
    head: nn.Module = DeepLabHead(in_channels, classes)
    for layer in head.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = own.get("head_dropout", layer.p)
    return head


def build_psp(in_channels: int, classes: int, own: Mapping[str, Any]) -> nn.Module:
    channels = own.get("head_channels", in_channels // 4)
    return PyramidHead(in_channels, classes, channels, own.get("head_dropout", DROPOUT))


HEADS: dict[str, Callable[[int, int, Mapping[str, Any]], nn.Module]] = {
    "fcn": build_fcn,
    "deeplabv3": build_deeplab,
    "psp": build_psp,
}


def resnets() -> list[str]:
    """torchvision's ResNets that can be dilated."""
    own = torchvision.models.resnet.__name__
    names = torchvision.models.list_models(torchvision.models)
    found = [name for name in names if torchvision.models.get_model_builder(name).__module__ == own]
    return [name for name in found if name not in WITHOUT_DILATION]
