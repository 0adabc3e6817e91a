"""Tables that grow by a row at a time."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd

from lol_core.collections.durable import replace_file


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One more row of a CSV table, written at once under the columns it has; numbers with six significant digits.

    A column that the row lacks stays empty. Raises ValueError when the row has a value that the table has no column
    for, and OSError when it cannot be written; the table is then as it was.
    """
    columns, text = list(row), io.StringIO(newline="")
    new = not path.is_file() or not path.stat().st_size
    if not new:
        with path.open(newline="") as file:
            columns = next(csv.reader(file))
    writer = csv.DictWriter(text, columns, restval="")
    if new:
        writer.writeheader()
    writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    with path.open("ab", buffering=0) as table:
        size, left = table.tell(), text.getvalue().encode()
        try:
            while left:
                left = left[table.write(left) :]
        except OSError:
            table.truncate(size)
            raise


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A CSV table in the place of the one that is there. Raises OSError when it cannot be written; that one stays."""
    replace_file(path, lambda new: table.to_csv(new, index=False))


def sort_by_lora(labels: Path) -> None:
    """The order in which processes finished is chance, and a zoo's fingerprint reads it."""
    write_table(labels, pd.read_csv(labels).sort_values("lora"))
