"""What an experiment leaves: a table beside the paper's, findings with their verdicts, a figure and its exact
settings.
"""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch

from lol_core.errors import LoLError
from lol_core.learning.verdict import Difference

PAPER = "https://arxiv.org/abs/2410.04207"
PACKAGES = ("torch", "numpy", "scikit-learn", "pandas")


class Holds(StrEnum):
    """What the numbers say of a finding."""

    YES = "holds"
    NOT_CLEAR = "not clear"
    NO = "does not hold"


@dataclass(frozen=True)
class Finding:
    """Something the paper found, or a question of our own (in_paper false), and whether it is so here. here: the
    numbers that say so.
    """

    paper: str
    holds: Holds
    here: str
    in_paper: bool = True


def verdict(gap: Difference) -> Holds:
    """Whether something that should be positive is: by its whole interval, or not clearly."""
    return Holds.YES if gap.low > 0 else Holds.NO if gap.high < 0 else Holds.NOT_CLEAR


def alike(gap: Difference, margin: float) -> Holds:
    """Whether a difference is smaller than a margin either way: by its whole interval, or not clearly."""
    if gap.low > margin or gap.high < -margin:
        return Holds.NO
    return Holds.YES if -margin < gap.low and gap.high < margin else Holds.NOT_CLEAR


def weakest(verdicts: Iterable[Holds]) -> Holds:
    """Of what must hold together."""
    return max(verdicts, key=list(Holds).index)


def with_interval(gap: Difference) -> str:
    """ "+0.012 (-0.003 to +0.027)"; without an interval where none was measured."""
    if pd.isna(gap.value):
        return "not defined (a split without a score)"
    interval = "one seed, no interval" if pd.isna(gap.low) else f"{gap.low:+.3f} to {gap.high:+.3f}"
    return f"{gap.value:+.3f} ({interval})"


@dataclass(frozen=True)
class Result:
    """One experiment's outcome.

    cells: a row for each number: row, column, mean, std (NaN for a single value), paper, paper_std (NaN where the
    paper has none), in the order in which they are shown; and text, where cells have words in place of a number.
    notes: what differs from the paper's experiment, a sentence each.
    """

    name: str
    title: str
    cells: pd.DataFrame
    findings: list[Finding]
    notes: list[str]
    figure: go.Figure
    settings: dict[str, Any]

    def write(self, folder: Path) -> Path:
        """Write table.csv, table.md, figure.json, settings.json and, where a browser is found to draw it,
        figure.png. Returns the folder made.
        """
        place = folder / self.name
        place.mkdir(parents=True, exist_ok=True)
        self.cells.to_csv(place / "table.csv", index=False, float_format="%.6g")
        (place / "figure.json").write_text(str(self.figure.to_json()))
        about = {
            "title": self.title,
            "notes": self.notes,
            "findings": [asdict(finding) for finding in self.findings],
            "settings": self.settings,
        }
        (place / "settings.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        (place / "table.md").write_text(self.markdown())
        draw(self.figure, place / "figure.png")
        return place

    @classmethod
    def read(cls, place: Path) -> Result:
        """What `write` left in a folder. Raises LoLError when it is not all there."""
        try:
            about = json.loads((place / "settings.json").read_text())
            figure = go.Figure(json.loads((place / "figure.json").read_text()))
            cells = pd.read_csv(place / "table.csv")
            return cls(
                place.name,
                about["title"],
                cells,
                [Finding(**kept | {"holds": Holds(kept["holds"])}) for kept in about["findings"]],
                about["notes"],
                figure,
                about["settings"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LoLError(
                f"{place}: no readable result there ({error}). Run `python -m lol_core experiment {place.name}`."
            ) from error

    def markdown(self) -> str:
        lines = [f"## {self.title}", ""]
        for heading, table in blocks(self.cells):
            lines += [*([f"**{heading}**", ""] if heading else []), markdown_table(table), ""]
        for heading, findings in self.judged:
            judged = [f"- **{finding.holds}**: {finding.paper} Here: {finding.here}" for finding in findings]
            lines += [f"**{heading}**", "", *judged, ""]
        lines += ["\n\n".join([*self.notes, self.source]), ""]
        return "\n".join(lines)

    @property
    def judged(self) -> list[tuple[str, list[Finding]]]:
        """The findings under what they are: those of the paper, and those of our own, as far as there are any."""
        ours, of_paper = (
            [finding for finding in self.findings if finding.in_paper is asked] for asked in (False, True)
        )
        both = [("The paper's findings", of_paper), ("Not asked in the paper", ours)]
        return [(heading, findings) for heading, findings in both if findings]

    @property
    def source(self) -> str:
        """Of which zoos, by their fingerprints, and by which command."""
        questions = self.settings.get("questions", {}).values()
        zoos = {question["zoo"]: question for question in questions} | self.settings.get("zoos", {})
        each = [f"{name} {zoo['fingerprint']} ({zoo['LoRAs']:,} LoRAs)" for name, zoo in zoos.items()]
        named = f"Zoos, with their fingerprints: {'; '.join(each)}. " if zoos else ""
        return f"{named}Again: `{self.command}`."

    @property
    def command(self) -> str:
        """The command that makes the result again."""
        return command(self.name, bool(self.settings.get("budget", {}).get("search")))


def command(name: str, searched: bool = False) -> str:
    """The command that runs an experiment in full and writes its page. searched: by successive halving."""
    return f"python -m lol_core experiment {name} --out docs --fits benchmarks/fits{' --halving' if searched else ''}"


def environment() -> dict[str, Any]:
    """What besides the seed decides the last digits."""
    return {"python": platform.python_version(), "threads": torch.get_num_threads(), "machine": platform.machine()} | {
        p: version(p) for p in PACKAGES
    }


def shown(cell: Mapping[Any, Any]) -> str:
    """A cell's words, or its number."""
    text = cell.get("text")
    return text if isinstance(text, str) else with_spread(cell["mean"], cell["std"])


def with_spread(mean: float, std: float, digits: int = 3) -> str:
    """ "0.123 ± 0.004"; "2e-07" for what would round to zero; a dash for what is not defined."""

    def number(value: float) -> str:
        return f"{value:.{digits}f}" if abs(value) < 1e-15 or abs(value) >= 0.5 * 10**-digits else f"{value:.0e}"

    return "–" if pd.isna(mean) else number(mean) + ("" if pd.isna(std) else f" ± {number(std)}")


def wide(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells as people read them: a row for each row, and for each column what was measured and, where there is
    one, the paper's number.
    """
    table = pd.DataFrame(index=pd.Index(cells["row"].unique(), name=""))
    for column, part in cells.groupby("column", sort=False):
        rows = part.set_index("row")
        values = {row: shown(cell) for row, cell in zip(rows.index, rows.to_dict("records"), strict=True)}
        table[column] = pd.Series(values, dtype=object).reindex(table.index).fillna("")
        if rows["paper"].notna().any():
            papers = {row: with_spread(cell["paper"], cell["paper_std"]) for row, cell in rows.iterrows()}
            table[f"{column} (paper)"] = pd.Series(papers).reindex(table.index).fillna("–")
    return table


def blocks(cells: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The tables that the cells make, as `wide`: one for all columns that begin with the same words and a colon,
    under those words.
    """
    heads = cells["column"].str.extract(r"^(?:(.*?): )?(.*)$").fillna("")
    return [
        (str(head), wide(part.assign(column=heads.loc[part.index, 1])))
        for head, part in cells.groupby(heads[0], sort=False)
    ]


def markdown_table(table: pd.DataFrame) -> str:
    head = "| | " + " | ".join(table.columns) + " |"
    rule = "|" + "---|" * (table.shape[1] + 1)
    return "\n".join(
        [
            head,
            rule,
            *(
                f"| {row} | " + " | ".join(values) + " |"
                for row, values in zip(table.index, table.to_numpy(), strict=True)
            ),
        ]
    )


def draw(figure: go.Figure, path: Path) -> bool:
    """The figure as PNG, where kaleido finds a browser; whether it did."""
    try:
        figure.write_image(path, width=900, height=figure.layout.height or 420, scale=2)
    except Exception:
        return False
    return True


def write_report(folder: Path) -> Path:
    """results.md beside the folder `results`: every experiment that was run, in order."""

    def order(name: str) -> tuple[int, str]:
        """Tables, figures, then what the paper does not have."""
        return ("tf".find(name[0]) % 3, name)

    names = sorted((place.parent.name for place in (folder / "results").glob("*/table.md")), key=order)
    body, found = [], []
    for name in names:
        place = folder / "results" / name
        found.append(Result.read(place))
        picture = f"\n![{name}](results/{name}/figure.png)\n" if (place / "figure.png").is_file() else ""
        body.append((place / "table.md").read_text() + picture)
    head = (
        f"# Results\n\nThe tables and figures of [*Learning on LoRAs*]({PAPER}), measured on the sample zoos, beside"
        " the paper's own numbers. The paper's zoos are larger and made of other models, so what can be compared is"
        " what was found, not the figures: [the paper's protocol beside ours](protocol.md). This page is written by"
        " `python -m lol_core experiment`; each folder in `results/` has the numbers and the settings.\n\n"
        "*Product kernel* is ridge regression on the inner products ⟨ΔW, ΔW′⟩, with every module's ΔW as it is or over"
        " its norm. The controls are a *constant* answer, a random forest on the *structure* of the file without"
        " weights, one on the *norms* log ‖ΔW‖ of every module, and the models themselves trained on *shuffled labels*;"
        " where an experiment has others it says so. A model's name, *GL-net* among them, means the model as the page"
        " in question trained it: searched by halving in tables 2 to 5, figures 3 and 4 and where a page says so, over"
        " a small grid of learning rates and normalised inputs, or with one setting, elsewhere. Scores of one page are"
        " not those of another.\n\n"
        "How many findings hold, of the paper and of other questions. A finding holds where its whole 95 % interval"
        " says so, does not hold where the whole interval says the opposite, and is not clear otherwise; what has no"
        " interval, such as the invariance of table 1, is judged by the number. The counts are no score: findings"
        " differ in weight and lean on the same zoos, and intervals are widened for how many there are only where an"
        " experiment says so, so that a few may hold by chance.\n\n"
    )
    path = folder / "results.md"
    path.write_text(f"{head}{markdown_table(overview(found))}\n\n" + "\n".join(body))
    return path


def overview(results: Sequence[Result]) -> pd.DataFrame:
    """A row for each experiment, a link to its heading: what became of the paper's findings, and of other questions."""

    def counted(findings: list[Finding]) -> str:
        counts = Counter(finding.holds for finding in findings)
        return ", ".join(f"{holds}: {counts[holds]}" for holds in Holds if counts[holds]) or "–"

    def anchor(title: str) -> str:
        return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")

    rows = {
        f"[{result.title}](#{anchor(result.title)})": {
            "found in the paper": counted([finding for finding in result.findings if finding.in_paper]),
            "asked here": counted([finding for finding in result.findings if not finding.in_paper]),
        }
        for result in results
    }
    return pd.DataFrame.from_dict(rows, "index")
