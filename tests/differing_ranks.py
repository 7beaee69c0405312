"""Run as ranks: a command of the project with options that only rank 1 is given."""

import os
import runpy
import sys

script, only_rank_1, *arguments = sys.argv[1:]
extra = only_rank_1.split() if os.environ["RANK"] == "1" else []
sys.argv = [script, *arguments, *extra]
runpy.run_path(script, run_name="__main__")
