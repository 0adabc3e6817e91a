"""Tables that grow by a row at a time."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One more row of a CSV table, written at once under the columns it has; numbers with six significant digits.

    A column that the row lacks stays empty. Raises ValueError when the row has a value that the table has no column
    for.
    """
    columns = list(row)
    if path.is_file():
        with path.open(newline="") as file:
            columns = next(csv.reader(file))
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        if new:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
