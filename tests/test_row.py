"""A row of log.jsonl: what is written is read, and of what is damaged the rest."""

import json
import math

from en.runs.read import read_log
from en.runs.row import INCIDENTS, NAMES, Row
from en.runs.scores import Scores

WRITTEN = Row(
    step=30, epoch=1.5, train_loss=0.5, lr=0.1, images_per_second=None, data_wait=0.25, seconds=2.0, resolution=32,
    damaged=1, left_out=2, scaler_skipped=3, images=20, scores=Scores({"top1": 40.0}, {"by_class": [1.0, None]}),
)  # fmt: skip


def test_a_row_is_read_as_it_was_written_but_for_lists(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps(WRITTEN.content()) + "\n")
    (read,) = read_log(tmp_path)
    assert all(getattr(read, name) == getattr(WRITTEN, name) for name in NAMES)
    assert read.scores == Scores({"top1": 40.0}, {})


def test_a_row_holds_its_names_in_their_order_with_the_metrics_before_the_images_and_lists_last():
    names = [*WRITTEN.content()]
    assert names == [*NAMES[:-1], "top1", "images", "by_class"] and NAMES[-1] == "images"
    assert {*INCIDENTS} < {*NAMES} and "step" not in Row(epoch=2).content()


def test_a_row_that_lacks_numbers_is_read_for_the_others_and_one_without_an_epoch_not_at_all(tmp_path, capsys):
    rows = ['{"epoch": 2, "seconds": "x", "train_loss": NaN, "top1": 5, "top5": 1e400}', '{"seconds": 3.0}', "{"]
    (tmp_path / "log.jsonl").write_text("\n".join(rows))
    (row,) = read_log(tmp_path, silent=True)
    assert capsys.readouterr().err == ""
    assert row.epoch == 2 and math.isnan(row.seconds) and math.isnan(row.train_loss)
    assert row.scores.values == {"top1": 5.0}
    assert len(read_log(tmp_path)) == 1 and capsys.readouterr().err.count("not a whole row: left out") == 2
