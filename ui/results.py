"""An experiment's outcome on a page, and how many findings of all hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from lol_core.errors import LoLError
from lol_core.experiments.result import Finding, Holds, Result, blocks
from ui.figures import figure, take
from ui.keys import key
from ui.state import RESULTS
from ui.tables import show

MARKS = {
    Holds.YES: (":material/check_circle:", "green", "hold"),
    Holds.NOT_CLEAR: (":material/help:", "orange", "are not clear"),
    Holds.NO: (":material/cancel:", "red", "do not hold"),
}
"""Verdict on a finding → its icon, colour and plural."""


def kept_results(names: Iterable[str]) -> dict[str, Result]:
    """name → what the repository keeps of an experiment run in full; without those that were not."""
    results = {name: _read(RESULTS / name, _written(RESULTS / name)) for name in names}
    return {name: result for name, result in results.items() if result is not None}


def _written(place: Path) -> int | None:
    """When the last file of a result was written, in nanoseconds; None when it was not."""
    settings = place / "settings.json"
    return settings.stat().st_mtime_ns if settings.is_file() else None


@st.cache_resource(max_entries=64, show_spinner=False)
def _read(place: Path, written: int | None) -> Result | None:
    """Read again when it has been written again."""
    try:
        return Result.read(place)
    except LoLError:
        return None


def title_of(name: str) -> str:
    """What an experiment is called: Table 1, Figure 4, Two orders, …"""
    return (f"{name[:-1]} {name[-1]}" if name[-1].isdigit() else name.replace("_", " ")).capitalize()


def show_counts(results: Mapping[str, Result], names: Iterable[str]) -> None:
    """How many of the paper's findings hold, of each experiment."""
    rows = {}
    for name in names:
        holds = [finding.holds for finding in results[name].findings if finding.in_paper] if name in results else None
        title = results[name].title if name in results else title_of(name)
        rows[title] = {mark: pd.NA if holds is None else holds.count(mark) for mark in MARKS}
    counts = pd.DataFrame.from_dict(rows, orient="index").rename_axis("experiment").astype("Int64")
    text = ", ".join(f"{counts[mark].sum()} {plural}" for mark, (_, _, plural) in MARKS.items())
    title = f"Of the paper's findings {text}" if results else "Nothing has been run here yet"
    with st.expander(title, icon=":material/fact_check:", key=key("overview")):
        show(counts, "findings", index=True)


def show_result(result: Result, name: str) -> None:
    """Figure, tables, findings (the paper's first), notes and settings of one experiment."""
    text = f"{result.title}. {' '.join(finding.here for finding in result.findings)}"
    figure(result.figure, f"{name}_figure", text, result.cells)
    for i, (heading, table) in enumerate(blocks(result.cells)):
        if heading:
            st.markdown(f"**{heading[:1].upper()}{heading[1:]}**")
        show(table, f"{name}_table_{i}", index=True)
    take(lambda: result.cells, f"{name}_table")
    for heading, findings in result.judged:
        show_findings(heading, findings)
    for note in result.notes:
        st.caption(note)
    with st.expander("Settings", icon=":material/tune:", key=key(f"{name}_settings")):
        st.json(result.settings, expanded=1)


def show_findings(heading: str, findings: Sequence[Finding]) -> None:
    """What became of each, under how many hold."""
    counts = {mark: [finding.holds for finding in findings].count(mark) for mark in MARKS}
    words = {mark: f"{count} {mark if count == 1 else MARKS[mark][2]}" for mark, count in counts.items() if count}
    badges = " ".join(f":{MARKS[mark][1]}-badge[{text}]" for mark, text in words.items())
    st.markdown(f"**{heading}** {badges}")
    for finding in findings:
        icon, colour, _ = MARKS[finding.holds]
        st.markdown(f"{icon} :{colour}[**{finding.holds}**] · {finding.paper}  \n:gray[Here: {finding.here}]")
