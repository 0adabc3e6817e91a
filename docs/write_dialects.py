"""`python docs/write_dialects.py`: write the tables of docs/dialects.md anew, from what the readers declare."""

from __future__ import annotations

from pathlib import Path

from lol_core.formats import DIALECTS
from lol_core.formats.families import LYCORIS_FAMILIES, NEIGHBOURS, PEFT_FAMILIES

PAGE = Path(__file__).parent / "dialects.md"


def read_table() -> str:
    """Every family that is read: dialect, what it is, an example key, where its scale stands, who writes it."""
    rows = ["| dialect | family | a key | scale | written by |", "|---|---|---|---|---|"]
    rows += [
        f"| {dialect.name} | {row.family} | `{row.key}` | {row.scale} | {row.source} |"
        for dialect in DIALECTS
        for row in dialect.spellings
    ]
    return "\n".join(rows)


def refused_table() -> str:
    """Every family that is recognised and refused."""
    rows = ["| refused, by name | peft_type |", "|---|---|"]
    rows += [
        f"| {family.name} | {', '.join(family.peft_types)} |"
        for family in (*PEFT_FAMILIES, *LYCORIS_FAMILIES, *NEIGHBOURS)
    ]
    return "\n".join(rows)


def page(text: str) -> str:
    """The page with its tables between their marks brought up to date."""
    for mark, table in (("read", read_table()), ("refused", refused_table())):
        start, end = f"<!-- {mark}: written by docs/write_dialects.py -->", f"<!-- end of {mark} -->"
        head, _, rest = text.partition(start)
        _, _, tail = rest.partition(end)
        text = f"{head}{start}\n{table}\n{end}{tail}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
