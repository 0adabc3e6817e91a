"""What TuckerNet does with size and direction, given to GL-net: whether that is what TuckerNet wins by."""

from __future__ import annotations

import pandas as pd

from lol_core.experiments.comparison import INTERVAL, SHUFFLING, cells, chart, differences, intervals, settings
from lol_core.experiments.context import Context
from lol_core.experiments.curve import APART, SETTING, WIDE
from lol_core.experiments.models import ASKED
from lol_core.experiments.result import Finding, Result, verdict, with_interval

TITLE = "Size apart from direction: TuckerNet's parts in GL-net"
COLUMNS = ("classes, accuracy", "sources, accuracy", "validation loss, R²")


def run(context: Context) -> Result:
    columns = COLUMNS[: 1 if context.small else None]
    trials_of = {column: context.trials(ASKED[column][0], (WIDE, APART, "tucker")) for column in columns}
    table = pd.concat(
        [cells(column, intervals(trials, ASKED[column][1])) for column, trials in trials_of.items()], ignore_index=True
    )
    findings = []
    for column, trials in trials_of.items():
        gain, left = (
            differences(trials, ASKED[column][1], *pair, among=len(columns))
            for pair in ((APART.name, WIDE.name), ("tucker", APART.name))
        )
        findings.append(
            Finding(
                f"GL-net gains by unit norm, a branch for sizes and a linear skip: {column}.",
                verdict(gain),
                f"by {with_interval(gain)}; TuckerNet less this GL-net: {with_interval(left)}.",
                in_paper=False,
            )
        )
    notes = [
        f"Both GL-nets have one setting on every question ({SETTING} accuracy or R²), which was not searched; on the"
        " classes it was asked in the learning curves before. TuckerNet was searched as in the table of models, and"
        " shaped on seeds 0 to 2 of these.",
        f"{INTERVAL} {SHUFFLING} The {len(columns)} intervals of a comparison are widened to hold together"
        " (Bonferroni).",
    ]
    about = settings(list(trials_of.values()), context.budget)
    return Result("apart", TITLE, table, findings, notes, chart(table, columns[-1]), about)
