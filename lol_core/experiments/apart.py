"""What TuckerNet does with size and direction, given to GL-net, together and singly: whether that is what TuckerNet
wins by.
"""

from __future__ import annotations

import pandas as pd

from lol_core.experiments.comparison import INTERVAL, SHUFFLING, cells, chart, differences, intervals, settings
from lol_core.experiments.context import Context
from lol_core.experiments.curve import APART, SETTING, WIDE, one_setting
from lol_core.experiments.models import ASKED
from lol_core.experiments.result import Finding, Result, verdict, with_interval
from lol_core.experiments.trials import Trials
from lol_core.learning.models.apart import Apart

TITLE = "Size apart from direction: TuckerNet's parts in GL-net"
COLUMNS = ("classes, accuracy", "sources, accuracy", "validation loss, R²")
SINGLY = {part: one_setting(64, f", {part}", apart=frozenset({part})) for part in Apart}
"""GL-net with one of the three parts."""
TAKEN_APART = COLUMNS[0]
"""Where the parts are asked singly."""


def run(context: Context) -> Result:
    columns = COLUMNS[: 1 if context.small else None]
    trials_of = {}
    for column in columns:
        singly = SINGLY.values() if column == TAKEN_APART else ()
        trials_of[column] = context.trials(ASKED[column][0], (WIDE, APART, *singly, "tucker"))
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
    findings += _singly(trials_of[TAKEN_APART])
    notes = [
        f"All GL-nets have one setting on every question ({SETTING} accuracy or R²), which was not searched; on the"
        " classes the first two were asked in the learning curves before. TuckerNet was searched as in the table of"
        " models, and shaped on seeds 0 to 2 of these.",
        f"{INTERVAL} {SHUFFLING} The {len(columns)} intervals of a comparison are widened to hold together"
        f" (Bonferroni), and so are the {len(SINGLY)} of the parts singly.",
    ]
    about = settings(list(trials_of.values()), context.budget)
    return Result("apart", TITLE, table, findings, notes, chart(table, columns[-1]), about)


def _singly(trials: Trials) -> list[Finding]:
    """Of each part, whether it is a gain by itself."""
    findings = []
    for part, variant in SINGLY.items():
        gain, left = (
            differences(trials, ASKED[TAKEN_APART][1], *pair, among=len(SINGLY))
            for pair in ((variant.name, WIDE.name), (APART.name, variant.name))
        )
        findings.append(
            Finding(
                f"GL-net gains by one part alone, {part}: {TAKEN_APART}.",
                verdict(gain),
                f"by {with_interval(gain)}; all three less it alone: {with_interval(left)}.",
                in_paper=False,
            )
        )
    return findings
