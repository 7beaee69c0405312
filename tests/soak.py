"""Kills and resumes runs for a given time; each has to end bit for bit like the run that was never killed."""

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from commands import succeed
from conftest import PER_CLASS, write_folders
from kill_loop import CASES, RECIPE, Place, differences, run_killed, run_untouched

MOST_KILLS = 6


def main(minutes: float, seed: int) -> int:
    """Returns the number of runs that ended differently."""
    draw, end = random.Random(seed), time.monotonic() + 60 * minutes
    runs = kills = mismatches = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "recipe.yaml").write_text(RECIPE)
        folders = write_folders(root / "images" / "clothes", PER_CLASS)
        succeed("scripts/prepare_data.py", folders, root / "betons", "--workers", 2)
        place = Place(root / "recipe.yaml", {"ffcv": root / "betons", "folder": folders})
        while time.monotonic() < end:
            case = draw.choice(CASES)
            whole, broken = root / "whole" / str(CASES.index(case)), root / "broken"
            if not whole.exists():
                run_untouched(place, case, whole)
            kills += run_killed(place, case, broken, draw, draw.randint(1, MOST_KILLS))
            runs += 1
            found = differences(whole, broken)
            mismatches += bool(found)
            for difference in found[:3]:
                print(f"MISMATCH: {case}: {difference}", flush=True)
            shutil.rmtree(broken)
            print(f"{case}: runs {runs}, kills {kills}, mismatches {mismatches}", flush=True)
    print(f"runs {runs}, kills {kills}, mismatches {mismatches}")
    return mismatches


if __name__ == "__main__":
    sys.exit(1 if main(float(sys.argv[1]), int(sys.argv[2])) else 0)
