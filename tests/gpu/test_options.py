"""Options of train.py on a small set: each run has to end with exit code 0 and a finite loss."""

import math
import tempfile
from pathlib import Path

from gpu.results import Report, Setup
from gpu.small_run import log_rows, prepared

RUNS = {
    "float16 with a gradient scaler": ["train.precision=float16"],
    "bfloat16, EMA, accumulation, clipping": [
        "train.precision=bfloat16",
        "train.ema_decay=0.9",
        "train.accumulation=2",
        "train.clip_norm=1",
    ],
    "float16, EMA, accumulation, clipping, bn": [
        "norm.name=bn",
        "train.precision=float16",
        "train.ema_decay=0.9",
        "train.accumulation=2",
        "train.clip_norm=1",
    ],
    "bfloat16, torch.compile": ["train.precision=bfloat16", "train.compile=true"],
}
TINY = "bfloat16, EMA, accumulation, clipping"


def test_options(setup: Setup, report: Report) -> None:
    """All runs at once."""
    with tempfile.TemporaryDirectory() as temporary:
        place = prepared(setup, Path(temporary))
        chosen = {name: keys for name, keys in RUNS.items() if name == TINY or not setup.tiny}
        started = {name: place.train(str(i), *keys) for i, (name, keys) in enumerate(chosen.items())}
        failures = 0
        for number, (name, process) in enumerate(started.items()):
            code, rows = process.wait(), log_rows(place.run_folder(str(number)))
            loss = float(rows[-1]["train_loss"]) if rows else math.nan
            failures += code != 0 or not math.isfinite(loss)
            shown = {"exit code": code, "last loss": loss, "last line": place.last_words(str(number))[-45:]}
            report.row("train.py with EN on generated images", options=name, **shown)
        report.figure("failures", failures)
