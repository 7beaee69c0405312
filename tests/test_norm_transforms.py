"""Every normalizer under torch.func's transforms: derivatives, forward and reverse, and samples one by one."""

import copy

import pytest
import torch
from norm_cases import every_norm, images, randomized
from torch.func import functional_call, grad, jvp, vmap

from en.norm import RunningNormalizer

WEIGHTS = images(1, 6, 4, 5, seed=2, dtype=torch.float64)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def loss_of(layer):
    """A function of (parameters, x), with buffers of its own: torch.func refuses to change those it does not see."""

    def loss(parameters, x):
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        return (functional_call(layer, (parameters, buffers), (x,)) * WEIGHTS).square().sum()

    return loss


def autograd_of(layer, x):
    """What torch.autograd says, from the layer's own form: the gradients by parameter and that of x."""
    twin, x = copy.deepcopy(layer), x.clone().requires_grad_()
    loss = (twin(x) * WEIGHTS).square().sum()
    *grads, dx = torch.autograd.grad(loss, [*twin.parameters(), x])
    return dict(zip(dict(twin.named_parameters()), grads, strict=True)), dx


@every_norm
@every_mode
def test_a_gradient_by_torch_func_equals_autograds(name, training):
    layer, x = randomized(name, 6).double().train(training), images(3, 6, 4, 5, dtype=torch.float64)
    got = grad(loss_of(layer), (0, 1))({name: p.detach() for name, p in layer.named_parameters()}, x)
    torch.testing.assert_close(got, autograd_of(layer, x))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # by torch's own jvp
@every_norm
@every_mode
def test_a_forward_derivative_equals_a_finite_difference(name, training):
    layer, x = randomized(name, 6).double().train(training), images(3, 6, 4, 5, dtype=torch.float64)
    parameters, step = {name: p.detach() for name, p in layer.named_parameters()}, 1e-6
    towards = ({name: torch.randn_like(p) for name, p in parameters.items()}, torch.randn_like(x))
    after, before = (
        loss_of(layer)(
            {name: p + sign * step * towards[0][name] for name, p in parameters.items()}, x + sign * step * towards[1]
        )
        for sign in (1, -1)
    )
    _, slope = jvp(loss_of(layer), (parameters, x), towards)
    torch.testing.assert_close(slope, (after - before) / (2 * step), rtol=1e-5, atol=1e-5)


@every_norm
def test_samples_mapped_by_vmap_come_out_as_one_by_one(name):
    layer, x = randomized(name, 6).eval(), images(3, 6, 4, 5)
    one_by_one = torch.stack([layer(sample[None])[0] for sample in x])
    torch.testing.assert_close(vmap(lambda sample: layer(sample[None])[0])(x), one_by_one)


@every_norm
def test_gradients_by_sample_equal_those_of_each_sample_alone(name):
    layer, x = randomized(name, 6).double().eval(), images(3, 6, 4, 5, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    got = vmap(grad(lambda p, sample: loss_of(layer)(p, sample[None])), (None, 0))(parameters, x)
    for n, sample in enumerate(x):
        alone, _ = autograd_of(layer, sample[None])
        torch.testing.assert_close({name: rows[n] for name, rows in got.items()}, alone)


@every_norm
def test_vmap_in_training_is_refused_where_running_averages_would_have_to_be_taken_and_leaves_them_alone(name):
    layer, x = randomized(name, 6).train(), images(3, 6, 4, 5)
    buffers = copy.deepcopy(dict(layer.named_buffers()))
    if not isinstance(layer, RunningNormalizer):
        assert vmap(lambda sample: layer(sample[None])[0])(x).shape == x.shape
        return
    with pytest.raises(
        RuntimeError, match=r"^running averages cannot be taken under vmap: expected evaluation mode, layer\.eval\(\)$"
    ):
        vmap(lambda sample: layer(sample[None])[0])(x)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in layer.named_buffers())
