"""The report in a terminal: the table of what was measured, as wide as the terminal."""

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table as Grid
from rich.text import Text

from en.errors import in_one_line
from en.reports.report import Report
from en.reports.tables import Table

LEAST_COLUMNS = 2  # however narrow the terminal
ENDLESS = 1_000_000  # characters
MAX_WORD = 24  # characters that a column keeps together


def show(report: Report) -> None:
    """Prints the table of what was measured, and what is noteworthy of the runs, on stdout."""
    console = Console(highlight=False)
    for said in report.headlines:
        console.print(Text(said, style="bold"))
    for section in report.sections[:1]:
        for table in section.tables:
            show_table(table, console)
        for note in section.notes:
            console.print(Text(in_one_line(f"{note.lead}: {note.text}".removeprefix(": "))))
    console.print(Text(report.lead))


def show_table(table: Table, console: Console) -> None:
    """Prints the columns that fit into the terminal without a word cut in two, from the left, and names the others."""
    columns, endless = len(table.headings), console.options.update(max_width=ENDLESS)
    while columns > LEAST_COLUMNS and console.measure(grid(table, columns), options=endless).minimum > console.width:
        columns -= 1
    console.print(grid(table, columns))
    if left_out := table.headings[columns:]:
        console.print(Text(f"in the report also: {', '.join(left_out)}"))


def grid(table: Table, columns: int) -> Grid:
    """The first columns as rich shows them; names are text, never markup."""
    made = Grid(title=Text(table.title), title_justify="left")
    for at, heading in enumerate(table.headings[:columns]):
        justify: JustifyMethod = "right" if table.is_numeric(at) else "left"
        made.add_column(Text(heading), justify=justify, overflow="fold", min_width=least_width(table, at))
    for row in table.rows:
        made.add_row(*(Text(cell.text, style="bold" if cell.strong else "") for cell in row[:columns]))
    return made


def least_width(table: Table, column: int) -> int:
    """Computes the least width of a column at which numbers stand in one line and no word is cut."""
    cells = [row[column].text for row in table.rows]
    whole = cells if table.is_numeric(column) else [word for cell in cells for word in cell.split()]
    return min(MAX_WORD, max(map(cell_len, [*whole, *table.headings[column].split()])))
