"""Networks with normalizers put in: counts, conversion, options."""

from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from en.models import OptionError, build_model, check_output, complexity
from en.models.options import checked_options, constructor_parameters
from en.norm import NORMALIZERS, ExemplarNorm2d, Normalizer, replace_norm
from en.tasks.classification import Classification

GOLDEN = {  # torchvision's and timm's model documentation: parameters, GMACs at 224, normalization layers
    "resnet50": (25_557_032, 4.09, 53),
    "shufflenet_v2_x0_5": (1_366_792, 0.04, 56),
    "shufflenet_v2_x1_0": (2_278_604, 0.14, 56),
    "timm/resnet50": (25_557_032, 4.09, 53),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_macs_and_layers_are_the_published_ones_with_bn(name):
    params, gmacs, layers = GOLDEN[name]
    model = build_model(name, 1000)
    cost = complexity(model, (224, 224))
    assert cost.params == params
    assert cost.gmacs == pytest.approx(gmacs, abs=0.0055)
    assert sum(isinstance(layer, Normalizer) for layer in model.modules()) == layers
    assert 0 < cost.norm_gmacs < 0.05 * cost.gmacs


@pytest.mark.parametrize("norm", NORMALIZERS)
@pytest.mark.parametrize(
    "name", ["resnet18", "shufflenet_v2_x0_5", "timm/resnet10t", "mobilenet_v3_small", "timm/densenet121"]
)
def test_every_normalizer_trains_in_networks_of_both_libraries(name, norm):
    torch.manual_seed(0)
    model = build_model(name, 7, norm)
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert not [layer for layer in model.modules() if type(layer) is nn.BatchNorm2d]


@pytest.mark.parametrize("norm", NORMALIZERS)
def test_macs_of_convolutions_do_not_depend_on_the_normalizer(norm):
    bn, other = (
        complexity(build_model("resnet18", 10), (64, 64)),
        complexity(build_model("resnet18", 10, norm), (64, 64)),
    )
    assert other.gmacs == pytest.approx(bn.gmacs, rel=1e-9)
    assert (other.norm_gmacs > bn.norm_gmacs) == (norm != "bn")


def test_bn_put_in_computes_what_the_library_network_computes():
    for name, library in {
        "resnet18": torchvision.models.resnet18,
        "densenet": lambda: timm.create_model("densenet121"),
    }.items():
        torch.manual_seed(0)
        original = library()
        torch.manual_seed(0)
        replaced = replace_norm(library(), "bn")
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(replaced(x), original(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(replaced.eval()(x), original.eval()(x), rtol=1e-4, atol=1e-4)
        if name == "resnet18":
            assert replaced.state_dict().keys() == original.state_dict().keys()


def test_eps_momentum_affine_values_and_sharing_are_kept():
    shared = nn.BatchNorm2d(6, eps=1e-3, momentum=0.01).double().eval()
    nn.init.constant_(shared.weight, 0.25)
    nn.init.constant_(shared.bias, 0.75)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    replace_norm(model, "en")
    layer = model[0]
    assert layer is model[2] and isinstance(layer, ExemplarNorm2d) and not layer.training
    assert (layer.eps, layer.momentum, layer.weight.dtype) == (1e-3, 0.01, torch.float64)
    assert (layer.weight == 0.25).all() and torch.allclose(layer.bias_rows.sum(0), torch.full((6,), 0.75).double())
    assert replace_norm(nn.Sequential(nn.BatchNorm2d(6, eps=1e-3)), "gn", eps=1e-2, groups=3)[0].eps == 1e-2
    assert isinstance(replace_norm(nn.BatchNorm2d(6), "en"), ExemplarNorm2d)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.SyncBatchNorm(4, affine=False)), "1 is a SyncBatchNorm without"),
        (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm3d(4)), "1 is a BatchNorm3d"),
        (lambda: nn.Sequential(nn.BatchNorm1d(4)), "no batch normalization"),
        (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)), "without affine"),
        (lambda: nn.Sequential(nn.BatchNorm2d(4), torchvision.ops.FrozenBatchNorm2d(4)), "1 is a FrozenBatchNorm2d"),
        (lambda: nn.Sequential(nn.BatchNorm2d(4), type("OtherBatchNorm", (nn.BatchNorm2d,), {})(4)), "OtherBatchNorm"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), "no batch normalization"),
        (
            lambda: nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(6)),
            "1: groups=4: expected a divisor of the layer's 6 channels",
        ),
    ],
)
def test_a_network_that_cannot_be_converted_is_refused_whole(make, words):
    model = make()
    before = [type(layer) for layer in model.modules()]
    with pytest.raises(ValueError, match=words):
        replace_norm(model, "gn", groups=4)
    assert [type(layer) for layer in model.modules()] == before


@pytest.mark.parametrize("norm", NORMALIZERS)
@pytest.mark.parametrize("name", ["resnet50", "timm/resnet18"])
def test_zero_initialized_last_gamma_makes_residual_blocks_start_as_their_shortcut(name, norm):
    model = build_model(name, 10, norm, zero_init_last_gamma=True)
    last = "bn3" if name == "resnet50" else "bn2"
    gammas = {place: layer.weight for place, layer in model.named_modules() if isinstance(layer, Normalizer)}
    zero = {place for place, gamma in gammas.items() if not gamma.any()}
    assert zero == {place for place in gammas if place.endswith(last)} and zero
    ones = build_model(name, 10, norm, zero_init_last_gamma=False)
    assert all(layer.weight.all() for layer in ones.modules() if isinstance(layer, Normalizer))


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "timm/resnet10t"])
def test_dropout_acts_before_the_classifier_in_training_only(name):
    torch.manual_seed(0)
    model, x = build_model(name, 10, "gn", dropout=0.5), torch.randn(2, 3, 64, 64)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model.eval()(x))
    assert model.state_dict().keys() == build_model(name, 10, "gn").state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet5"}, "did you mean 'resnet50'|did you mean 'resnet"),
        ({"name": "timm/resnet5o"}, "did you mean 'timm/resnet"),
        ({"name": "vit_b_16"}, "no batch normalization"),
        ({"name": "shufflenet_v2_x0_5", "zero_init_last_gamma": True}, "zero_init_last_gamma=True for shufflenet"),
        ({"name": "squeezenet1_0", "dropout": 0.5}, "dropout=0.5 for squeezenet"),
        (
            {"name": "timm/resnet18.unheard_of"},
            "network 'timm/resnet18.unheard_of': expected one that its library can build",
        ),
    ],
)
def test_an_impossible_network_is_a_value_error_that_says_why(arguments, words):
    with pytest.raises(ValueError, match=words):
        build_model(num_classes=10, **arguments)


def test_options_make_the_networks_that_the_library_makes_of_them():
    with torch.device("meta"):
        wide = build_model("resnet50", 1000, options={"width_per_group": 128})
        library = torchvision.models.wide_resnet50_2()
    assert complexity(wide, (64, 64)).params == sum(p.numel() for p in library.parameters()) == 68_883_240
    assert len(build_model("timm/resnet18", 7, options={"layers": [1, 1, 1, 1]}).layer4) == 1
    dropped = build_model("timm/resnet10t", 7, "en", options={"drop_path_rate": 0.1})
    rates = [layer.drop_prob for layer in dropped.modules() if isinstance(layer, timm.layers.DropPath)]
    assert rates and max(rates) == pytest.approx(0.1)
    deep = build_model("timm/resnet18", 7, "gn", options={"stem_type": "deep", "stem_width": 16}).conv1
    assert [layer.out_channels for layer in deep if isinstance(layer, nn.Conv2d)] == [16, 16, 32]


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("timm/resnet18", {}, 2),
        ("timm/resnet18", {"output_stride": 16}, 4),
        ("timm/resnet18", {"output_stride": 8}, 8),
        ("resnet50", {"replace_stride_with_dilation": [False, False, True]}, 4),
        ("resnet50", {"replace_stride_with_dilation": [False, True, True]}, 8),
    ],
)
def test_an_output_stride_makes_the_last_map_as_large_as_it_says(name, options, side):
    with torch.device("meta"):
        model = build_model(name, 7, "en", options=options)
        sides = []
        model.layer4.register_forward_hook(lambda layer, images, output: sides.append(tuple(output.shape[2:])))
        model(torch.empty(2, 3, 64, 64))
    assert sides == [(side, side)]


@pytest.mark.parametrize(
    ("name", "defaults", "options"),
    [
        ("timm/resnet10t", {"drop_path_rate": 0, "output_stride": 32}, {"output_stride": 8, "avg_down": False}),
        ("resnet18", {"width_per_group": 64}, {}),
    ],
)
def test_equal_options_make_equal_networks_bit_for_bit_and_a_default_written_down_changes_none(name, defaults, options):
    def state(options):
        torch.manual_seed(3)
        return build_model(name, 5, options=options).state_dict() | {"next draw": torch.rand(3)}

    for one, other in ((state(None), state(defaults)), (state(options), state(options))):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Taking(nn.Module):
    """A network whose class takes options by name and further ones without one."""

    def __init__(self, width: int = 4, scale: float = 1.0, twice: bool = False, **rest: object) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(width, width) for _ in range(2 if twice else 1)])
        self.scale = nn.Parameter(torch.full((width,), scale))


def test_options_are_those_that_the_class_names_in_its_types_whatever_they_change():
    def build(options):
        return Taking(**options)

    for options in ({"width": 5}, {"width": 4}, {"scale": 0.5}, {"scale": 1}, {"twice": True}, {"twice": False}):
        assert checked_options("taking", options, build) == options
    for key in ("rest", "swallowed"):
        with pytest.raises(OptionError, match=f"options.{key}=3 for taking: expected one of width, scale, twice"):
            checked_options("taking", {"width": 5, key: 3}, build)


REFUSED = [  # network, key, value, what is said
    ("timm/resnet18", "output_strid", 8, "expected one of .*did you mean 'output_stride'"),
    ("timm/resnet18", "output_stride", 7, r"expected what its library can build: .*\(8, 16, 32\)"),
    ("timm/resnet18", "output_stride", 8.5, "expected a value of the type int"),
    ("timm/resnet18", "output_stride", True, "expected a value of the type int"),
    ("timm/resnet18", "avg_down", "no", "expected a value of the type bool"),
    ("timm/resnet18", "act_layer", "sillu", "KeyError: 'sillu'"),
    ("timm/resnet18", "block", "Bottleneck", "expected a value of the type Union"),
    ("timm/resnet18", "block_args", {"drop_pat": 3}, "argument 'drop_pat'"),
    ("timm/resnet18", "channels", [], "IndexError"),
    ("timm/resnet18", "drop_path_rate", 1.5, "expected a probability"),
    ("timm/resnet18", "drop_path_rate", -0.5, "expected a probability"),
    ("timm/resnet18", "drop_rate", 0.5, "expected the key model.dropout"),
    ("timm/resnet18", "zero_init_last", True, "expected the key model.zero_init_last_gamma"),
    ("timm/resnet18", "num_classes", 3, "the data's classes"),
    ("timm/resnet18", "in_chans", 1, "images have 3 channels"),
    ("timm/resnet18", "pretrained", True, "expected one of"),
    ("timm/resnet18", "layers", [60_000] * 4, "more than 8192 layers"),
    ("timm/resnet18", "layers", [2**40] * 4, "numbers of at most 65536"),
    ("timm/resnet50", "base_width", 65_536, "more than 1073741824 parameters"),
    ("timm/resnet50", "base_width", 0, "weight of a Conv2d would be empty"),
    ("timm/tiny_vit_5m_224", "window_sizes", [7, 7, 60_000, 7], "numbers of at most 32"),
    ("timm/regnety_002", "unheard_of", 1, "expected one of"),
    ("resnet50", "norm_layer", "x", "expected the key norm.name"),
    ("resnet50", "zero_init_residual", True, "expected the key model.zero_init_last_gamma"),
    ("resnet50", "weights", "DEFAULT", "expected one of"),
    ("resnet50", "layers", [1, 1, 1, 1], "multiple values for argument 'layers'"),
    ("resnet50", "replace_stride_with_dilation", [False, True], "3-element tuple"),
    ("resnet50", "replace_stride_with_dilation", "no", "expected a value of the type Optional"),
    ("resnet18", "replace_stride_with_dilation", [False, True, True], "Dilation > 1 not supported"),
    ("mobilenet_v3_small", "width_mult", 2.0, "expected one of"),
    ("googlenet", "aux_logits", True, "one output"),
    ("regnet_y_400mf", "stem_width", 16, "cannot be built without computing"),
]


@pytest.mark.parametrize(("name", "key", "value", "words"), REFUSED)
def test_an_option_that_does_not_fit_is_refused_by_its_name(name, key, value, words):
    with pytest.raises(OptionError, match=words) as refusal:
        build_model(name, 10, options={key: value})
    assert str(refusal.value).startswith(f"options.{key}=") and f" for {name}: expected " in str(refusal.value)


def test_of_several_options_that_the_library_refuses_all_are_named():
    with pytest.raises(OptionError, match=r"^options={stem_type: 'deep', output_stride: 9} for .*\(8, 16, 32\)"):
        build_model("timm/resnet18", 10, options={"stem_type": "deep", "output_stride": 9})


@pytest.mark.parametrize("name", ["timm/resnet10t", "resnet18"])
def test_no_value_of_any_option_ends_in_anything_but_a_network_or_its_refusal(name):
    for key in constructor_parameters(type(build_model(name, 3))):
        for value in (0, "x", [0, 0, 0, 0]):
            try:
                with torch.device("meta"):
                    build_model(name, 3, options={key: value})
            except OptionError as error:
                assert str(error).startswith(f"options.{key}=") and str(error).isprintable()


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_classifiers_are_built_without_them(name):
    with torch.device("meta"):
        model = build_model(name, 7, "en")
    check_output(model, partial(Classification().check_output, classes=7), [(224, 224)], [(224, 224)])
    assert not [place for place, _ in model.named_modules() if "aux" in place.lower()]


class Odd(nn.Module):
    """A network whose output is not one tensor (images, classes)."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: torch.Tensor) -> object:
        return x.mean((2, 3)) if not self.training else self.output


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Odd((torch.zeros(2, 3), torch.zeros(2, 3))), r"one tensor \(2, 3\) for 2 images; found a tuple in training"),
        (Odd({"logits": torch.zeros(2, 3)}), "found a dict"),
        (Odd(torch.zeros(2, 4)), r"found a tensor \(2, 4\)"),
        (Odd(torch.zeros(2, 3, 1)), r"found a tensor \(2, 3, 1\)"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 40), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "^32 pixels in training: expected a size",
        ),
    ],
)
def test_what_is_no_classifier_of_a_size_is_a_value_error_that_says_why(model, words):
    three_classes = partial(Classification().check_output, classes=3)
    with pytest.raises(ValueError, match=words):
        check_output(model, three_classes, [(32, 32)], [(64, 64)])
    check_output(model, three_classes, [], [(64, 64)])
