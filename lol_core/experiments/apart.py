"""What TuckerNet does with size and direction, and what its bases are, given to GL-net, together and singly: whether
that is what TuckerNet wins by.
"""

from __future__ import annotations

import pandas as pd

from lol_core.experiments.comparison import INTERVAL, SHUFFLING, cells, chart, differences, intervals, settings
from lol_core.experiments.context import Context
from lol_core.experiments.curve import APART, SETTING, WIDE, one_setting
from lol_core.experiments.models import ASKED
from lol_core.experiments.result import Finding, Result, verdict, with_interval
from lol_core.experiments.trials import KERNEL, Trials
from lol_core.learning.models.apart import Apart
from lol_core.learning.models.layers import Start

TITLE = "Size apart from direction: TuckerNet's parts in GL-net"
COLUMNS = ("classes, accuracy", "sources, accuracy", "validation loss, R²")
SINGLY = {part: one_setting(64, f", {part}", apart=frozenset({part})) for part in Apart}
"""GL-net with one of the three parts."""
TAKEN_APART = COLUMNS[0]
"""Where the parts are asked singly."""
LEADING = {
    WIDE: one_setting(64, ", leading start", start=Start.LEADING.value),
    APART: one_setting(64, ", size apart, leading start", apart=frozenset(Apart), start=Start.LEADING.value),
}
"""A GL-net → the same whose Φ and Ψ start from TuckerNet's bases."""
STARTED = COLUMNS[1]
"""Where those are asked: of all questions TuckerNet is furthest ahead there."""


def run(context: Context) -> Result:
    columns = COLUMNS[: 1 if context.small else None]
    trials_of = {}
    for column in columns:
        more = {TAKEN_APART: SINGLY.values(), STARTED: LEADING.values()}.get(column, ())
        trials_of[column] = context.trials(ASKED[column][0], (WIDE, APART, *more, "tucker"))
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
    findings += _started(trials_of[STARTED]) if STARTED in trials_of else []
    notes = [
        f"All GL-nets have one setting on every question ({SETTING} accuracy or R²), which was not searched; on the"
        " classes the first two were asked in the learning curves before. TuckerNet was searched by the grid,"
        " and shaped on seeds 0 to 2 of these.",
        f"{INTERVAL} {SHUFFLING} The {len(columns)} intervals of a comparison are widened to hold together"
        f" (Bonferroni), and so are the {len(SINGLY)} of the parts singly, and the {len(LEADING)} of the start.",
        "Leading start: Φ and Ψ start from the leading directions of the training LoRAs' ΔW over their norms, which are"
        " TuckerNet's bases, and are trained on from there; asked last, when all else here had been seen.",
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


def _started(trials: Trials) -> list[Finding]:
    """Of each GL-net, whether it gains by starting from TuckerNet's bases."""
    findings = []
    for usual, variant in LEADING.items():
        gain, left, kernel = (
            differences(trials, ASKED[STARTED][1], *pair, among=len(LEADING))
            for pair in ((variant.name, usual.name), ("tucker", variant.name), (variant.name, KERNEL))
        )
        findings.append(
            Finding(
                f"{usual.title} gains by starting from TuckerNet's bases: {STARTED}.",
                verdict(gain),
                f"by {with_interval(gain)}; TuckerNet less it: {with_interval(left)}; it less the product kernel:"
                f" {with_interval(kernel)}.",
                in_paper=False,
            )
        )
    return findings
