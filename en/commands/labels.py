"""Give a set's training samples other labels: en-labels ROOT --rule RULE --rate SHARE; also scripts/label_data.py.

Writes ROOT/labels/NAME.csv, which the key data.labels=NAME trains with; the set stays as it is. With --from FILE the
labels are those of a table, of CIFAR-10N for one.
"""

import argparse
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from en.errors import Parser, UserError, exit_on_error, warn, whole_number

if TYPE_CHECKING:
    from en.data.labels import Sidecar

BY_RULE = ("symmetric", "symmetric-with-true", "pair", "asymmetric")
SHOWN = 20  # classes at most whose counts are a table, and pairs that are listed of more


def share(text: str) -> Fraction:
    """The `type` of an argument that is a share above 0 and up to 1, without rounding."""
    if not re.fullmatch(r"[0-9]*\.?[0-9]{1,12}", text) or not 0 < Fraction(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share above 0 and up to 1, such as 0.4")
    return Fraction(text)


def arguments_of_command() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="ROOT", type=Path, help="a prepared set, or class folders with train/")
    parser.add_argument("--rule", choices=BY_RULE, help="wrong labels: any other class; any class, the true one "
                        "among them; the next class; some classes taken for others, by default CIFAR-10's of the "
                        "literature")  # fmt: skip
    parser.add_argument("--rate", type=share, help="share of the samples, 0 to 1, to which the rule is applied")
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="of what is drawn, default 0")
    parser.add_argument("--pairs", metavar="FILE", type=Path, help="asymmetric: a line `class,other` a class")
    parser.add_argument("--from", dest="table", metavar="FILE", type=Path, help="a CSV file, or .csv.xz: a first line "
                        "of column names, then samples, their names in the first column")  # fmt: skip
    parser.add_argument("--column", help="of --from: that of the labels, where it has several")
    parser.add_argument("--name", help="of the file; default by rule, rate and seed, or by table and column")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of that name")
    return parser.parse_args()


def refuse_together(arguments: argparse.Namespace) -> None:
    """Raises UserError for arguments that do not go together."""
    rule, table = arguments.rule, arguments.table
    if (rule is None) == (table is None):
        raise UserError("--rule, --from: expected one of the two")
    if (rule is None) != (arguments.rate is None):
        raise UserError(f"--rate: expected {'none with --from' if rule is None else f'one with --rule {rule}'}")
    if arguments.column is not None and table is None:
        raise UserError(f"--column {arguments.column}: expected --from FILE with it")
    if arguments.pairs is not None and rule != "asymmetric":
        raise UserError(f"--pairs {arguments.pairs}: expected --rule asymmetric with it")
    name = arguments.name or "default"
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", name, re.ASCII) or name.endswith(".csv"):
        raise UserError(f"--name {name!r}: expected letters, digits, and . _ + - within, without .csv")


def label_data() -> None:
    arguments = arguments_of_command()
    refuse_together(arguments)
    from en.data.labels import sidecar_path, write_sidecar

    sidecar = made(arguments)
    name = arguments.name or default_name(arguments)
    path = sidecar_path(arguments.root, name)
    if path.exists() and not arguments.overwrite:
        raise UserError(f"{path}: exists: expected another --name, or --overwrite to replace it")
    write_sidecar(sidecar, path)
    if not sidecar.wrong:
        warn(f"{path}: no label is wrong")
    for line in described(sidecar):
        print(line)
    print(f"{path}: data.labels={name} trains with it")


def default_name(arguments: argparse.Namespace) -> str:
    if arguments.rule:
        return f"{arguments.rule}-{float(arguments.rate):g}-s{arguments.seed}"
    parts = [arguments.table.name.partition(".")[0], *([arguments.column] if arguments.column else [])]
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts), flags=re.ASCII)


def made(arguments: argparse.Namespace) -> "Sidecar":
    """The labels that are asked for, of the set's samples."""
    from en.data.labels import Sidecar
    from en.data.labels.rules import CIFAR10, RULES, by_names, relabel
    from en.data.labels.stored import open_stored
    from en.data.labels.table import labels_from, read_pairs

    with open_stored(arguments.root) as loader:
        names, classes, clean = loader.names(), loader.classes, loader.labels()
    origin: dict[str, Any] = {"set": loader.name}
    if arguments.table:
        given = labels_from(arguments.table, arguments.column, names, classes, clean)
        origin |= {"file": arguments.table.name} | ({"column": arguments.column} if arguments.column else {})
        return Sidecar(names, classes, clean, given, origin)
    origin |= {"rule": arguments.rule, "rate": float(arguments.rate), "seed": arguments.seed}
    if arguments.rule in RULES:
        givable = RULES[arguments.rule](len(classes))
    else:
        pairs = read_pairs(arguments.pairs) if arguments.pairs else CIFAR10
        where = f"--pairs {arguments.pairs}" if arguments.pairs else "--rule asymmetric without --pairs FILE"
        givable, origin["pairs"] = by_names(pairs, classes, where), pairs
    return Sidecar(names, classes, clean, relabel(names, clean, givable, arguments.rate, arguments.seed), origin)


def described(sidecar: "Sidecar") -> Iterator[str]:
    """Says how many labels are wrong, and which classes are given for which."""
    total, wrong = len(sidecar.names), sidecar.wrong
    yield f"{wrong:,} of {total:,} labels wrong, {100 * wrong / total:.2f} %"
    classes, counts = sidecar.classes, sidecar.counts
    if len(classes) <= SHOWN:
        width = max(map(len, [*classes, "clean / given", f"{counts.max()}"]))
        yield "  ".join(["clean / given".ljust(width), *(name.rjust(width) for name in classes)])
        for name, row in zip(classes, counts.tolist(), strict=True):
            yield "  ".join([name.ljust(width), *(str(count).rjust(width) for count in row)])
        return
    pairs = [pair for pair in sidecar.facts()["counts"] if pair[0] != pair[1]]
    for own, other, count in pairs[:SHOWN]:
        yield f"{count:7}  {own} as {other}"
    yield f"those are the {min(SHOWN, len(pairs))} most frequent pairs of {len(classes)} classes"


def main() -> None:
    exit_on_error(label_data)


if __name__ == "__main__":
    main()
