"""The benchmark of the normalizers: what it measures, by which tables, on a network that takes a moment."""

import json

import pytest
import torch

from en.benchmarks.norm import benchmark_norm, layers_of
from en.benchmarks.steps import SMALL, Setting


@pytest.mark.slow(reason="peak memory is that of interpreters that start cold")
def test_steps_are_measured_with_each_number_of_threads_and_mode_and_layers_by_their_maps(tmp_path, capsys):
    before, out = torch.get_num_threads(), tmp_path / "figures.json"
    try:
        benchmark_norm([SMALL], ["train", "infer"], ["nchw"], ["en"], "float32", False, "cpu", [1, 2], 1, out)
    finally:
        torch.set_num_threads(before)
    rows = json.loads(out.read_text())["rows"]
    steps = [row for row in rows if "best / BN" in row]
    assert {(row["threads"], row["mode"], row["normalizer"]) for row in steps} == {
        (threads, mode, name) for threads in (1, 2) for mode in ("train", "infer") for name in ("nn.BatchNorm2d", "en")
    }
    assert all(row["nchw ms"] > 0 and row["nchw / BN"] > 0 for row in steps)
    maps = [row for row in rows if row.get("measure") == "added by maps, ms" and row["mode"] == "train"]
    assert [row["maps"] for row in maps] == ["8 x 8", "4 x 4", "all"] * 2 and maps[2]["layers"] == 2
    assert maps[2]["en"] == maps[0]["en"] + maps[1]["en"] and maps[0]["BN ms"] > 0
    assert [row["normalizer"] for row in rows if row.get("measure") == "peak memory"] == ["nn.BatchNorm2d", "en"]
    printed = capsys.readouterr().out
    assert "a small network, train, nchw: what layers add to BN's, ms, by their maps" in printed


def test_layers_are_counted_by_the_shape_of_their_input():
    setting = Setting("resnet50", (2, 3, 64, 64), "channels_last", "float32", "cpu", False, "train")
    found = layers_of(setting)
    assert found[2, 64, 32, 32] == 1 and found[2, 2048, 2, 2] == 4 and sum(found.values()) == 53
