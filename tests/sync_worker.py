"""Run under torchrun: `sync` normalizers on parts of a batch against the same layers on all of it in one process."""

import copy

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from en.norm import build_norm, convert_sync, replace_norm

AVERAGES = ("running_mean", "running_var", "num_batches_tracked")
SPLITS = {2: [(3, 3), (1, 5), (0, 6)], 3: [(2, 2, 2), (1, 2, 3), (3, 0, 3)]}


def replaced(name: str, group: dist.ProcessGroup | None) -> torch.nn.Sequential:
    """A network with nn.SyncBatchNorm over the group, and the normalizer in its place."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 6, 1), torch.nn.SyncBatchNorm(6, process_group=group)
    return replace_norm(torch.nn.Sequential(*layers).double(), name)


def main() -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for name in ("bn", "sn", "ssn", "en"):
        for sizes in SPLITS[world_size]:
            torch.manual_seed(0)
            whole = build_norm(name, 6).double()
            for parameter in whole.parameters():
                torch.nn.init.normal_(parameter)
            part = build_norm(name, 6, sync=True).double()
            part.load_state_dict(whole.state_dict())
            x = (3 * torch.randn(6, 6, 4, 4).double() + torch.randn(6, 6, 1, 1).double()).requires_grad_()
            weights = torch.randn(6, 6, 4, 4).double()
            start = sum(sizes[:rank])
            mine = slice(start, start + sizes[rank])
            x_mine = x.detach()[mine].clone().requires_grad_()

            expected = whole(x)
            (expected * weights).sum().backward()
            actual = part(x_mine)
            (actual * weights[mine]).sum().backward()

            torch.testing.assert_close(actual, expected[mine])
            torch.testing.assert_close(x_mine.grad, x.grad[mine])
            for (key, parameter), reference in zip(part.named_parameters(), whole.parameters(), strict=True):
                dist.all_reduce(parameter.grad)
                torch.testing.assert_close(parameter.grad, reference.grad, msg=lambda m, k=f"{name}.{key}": f"{k}: {m}")
            for buffer, reference in zip(part.buffers(), whole.buffers(), strict=True):
                torch.testing.assert_close(buffer, reference)
            before = copy.deepcopy(dict(part.named_buffers()))
            part(x_mine[:0]).sum().backward()  # empty on every rank
            assert all(torch.equal(part.get_buffer(key), before[key]) for key in AVERAGES)
            assert all(parameter.grad.isfinite().all() for parameter in part.parameters())
            alone = copy.deepcopy(part)
            alone.sync = False
            torch.testing.assert_close(part.eval()(x_mine), alone.eval()(x_mine))
    # Ranks whose first maps differ mix the same from their second step on, and in evaluation.
    layer = build_norm("en", 6, min_pixels=20)
    model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Conv2d(3, 6, 1), layer))
    model(torch.randn(2, 3, 5, 5 if rank == 0 else 2)).sum().backward()
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    assert layer.mixed == ("bn", "in", "ln") and int(layer.trained_pixels) == 25
    model.eval()(torch.randn(2, 3, 5, 5))
    assert layer.mixed == ("bn", "in", "ln")
    groups = [dist.new_group([each]) for each in range(world_size)]
    x, weights = (torch.randn(2, channels, 4, 4).double() + rank for channels in (3, 6))
    for name in ("bn", "sn", "en"):
        own, alone, together = (replaced(name, group) for group in (groups[rank], None, groups[rank]))
        alone[1].sync = False
        convert_sync(together)
        results = [model(x) for model in (own, alone, together)]
        for result in results:
            (result * weights).sum().backward()
        torch.testing.assert_close(results[0], results[1])
        torch.testing.assert_close(own[0].weight.grad, alone[0].weight.grad)
        assert not torch.allclose(results[0], results[2])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
