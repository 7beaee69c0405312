"""Run a suite: en-ablate SUITE [key=value ...]; also scripts/ablate.py.

Shows the plan, then runs what is missing of it, resumes what was interrupted and goes past what fails, and shows the
scores. Run it again to complete it; what has failed is tried again with --retry-failed, or once its configuration is
another one. Ctrl-C stops the runs with a checkpoint each. What a run prints goes to DIR/RUN.log.
"""

import argparse
import subprocess
from dataclasses import replace
from pathlib import Path

from en.errors import Parser, RunError, UserError, exit_on_error, warn, whole_number


def arguments_of_command() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", metavar="SUITE", type=Path, help="a YAML file, see configs/ablations/")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="over the configuration of every run")
    parser.add_argument("--base", metavar="CONFIG", type=Path, help="another configuration than the suite's")
    parser.add_argument("--out", metavar="DIR", type=Path, help="the folder of the runs, default runs/SUITE, or "
                        "runs/SUITE-CONFIG with --base")  # fmt: skip
    parser.add_argument("--at-once", metavar="N", type=whole_number(1, 1000), default=1, help="runs at the same time")
    parser.add_argument("--ranks", metavar="N", type=whole_number(1, 1000), help="processes of each run, "
                        "default one for each GPU, or one")  # fmt: skip
    parser.add_argument("--retry-failed", action="store_true", help="try again what has failed")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    parser.add_argument("--slurm", action="store_true", help="submit what is left as a job array of scripts/slurm.sh")
    parser.add_argument("--show", metavar="INDEX", type=whole_number(0, 10**6), help="print the arguments of "
                        "train.py for one run of the plan, counted from 0, a line each, and stop")  # fmt: skip
    return parser.parse_intermixed_args()


def ablate() -> None:
    arguments = arguments_of_command()

    from en.distributed.environment import refuse_tasks
    from en.suites.experiment import write_experiment
    from en.suites.launch import launcher_for, run_all
    from en.suites.plan import plan, variants_of
    from en.suites.state import costs_of, progress_of, seconds_left
    from en.suites.table import show_plan, show_scores

    names = [path.stem for path in (arguments.suite, arguments.base) if path]
    out = arguments.out or Path("runs") / "-".join(names)
    runs = plan(arguments.suite, out, arguments.overrides, arguments.base)
    if arguments.show is not None:
        if arguments.show >= len(runs):
            raise UserError(f"--show {arguments.show}: expected 0 to {len(runs) - 1}, the runs of {arguments.suite}")
        run = runs[arguments.show]
        print("\n".join([str(run.base), *run.overrides]))
        return
    launcher = launcher_for(arguments.at_once, arguments.ranks)
    progress = [progress_of(run) for run in runs]
    try:
        costs = costs_of(variants_of(runs))
    except UserError as error:
        if not arguments.dry_run:
            raise
        warn(f"{error}; no run would start, and the plan has no parameters and GMACs")
        costs = {}
    wanted = [replace(so_far, failure=None) for so_far in progress] if arguments.retry_failed else progress
    show_plan(runs, progress, costs, seconds_left(runs, wanted, arguments.at_once))
    open_ones = [(run, so_far) for run, so_far in zip(runs, wanted, strict=True) if not so_far.is_finished(run)]
    left, failed = ([run for run, so_far in open_ones if bool(so_far.failure) == has] for has in (False, True))
    if arguments.dry_run:
        return
    if not left:
        show_scores(runs, out)
        report_failures([run.name for run in failed], [], len(runs))
        return
    refuse_tasks("one process, which starts the suite's runs itself")
    write_experiment(out, runs)
    if arguments.slurm:
        submit(arguments, [runs.index(run) for run in left], out)
        return
    failed_now, stopped = run_all(left, launcher)
    show_scores(runs, out)
    report_failures([run.name for run in [*failed, *failed_now]], [run.name for run in stopped], len(runs))


def report_failures(failed: list[str], stopped: list[str], runs: int) -> None:
    """Raises RunError that says how to go on where some of so many runs failed or were stopped from outside.

    Args:
        failed, stopped: their names.
    """
    said = []
    if failed:
        said.append(f"{len(failed)} of {runs} runs failed: {', '.join(failed)}; --retry-failed tries them again")
    if stopped:
        said.append(f"{len(stopped)} of {runs} runs were stopped: {', '.join(stopped)}; the same command resumes them")
    if said:
        raise RunError("; ".join(said))


def submit(arguments: argparse.Namespace, indices: list[int], out: Path) -> None:
    """Hands runs of the plan to SLURM, an array's task each."""
    base = ["--base", str(arguments.base)] if arguments.base else []
    if not Path("scripts/slurm.sh").is_file():
        raise UserError("--slurm: expected scripts/slurm.sh here: the source tree's, adapted to the cluster")
    array = f"--array={','.join(map(str, indices))}%{arguments.at_once}"
    suite = [str(arguments.suite), *arguments.overrides, "--out", str(out), *base]
    try:
        subprocess.run(["sbatch", array, "scripts/slurm.sh", "--suite", *suite], check=True)
    except FileNotFoundError as error:
        raise UserError("--slurm: expected SLURM's command sbatch, found none") from error
    except subprocess.CalledProcessError as error:
        raise RunError(f"--slurm: sbatch ended with exit code {error.returncode}") from error


def main() -> None:
    exit_on_error(ablate)


if __name__ == "__main__":
    main()
