"""Two LoRAs merged into one, by every method: what the merge still does of both, and what another gauge changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lol_core.collections.describe import content_digest
from lol_core.core.geometry import distance, norm
from lol_core.core.lora import LoRA
from lol_core.experiments.comparison import with_half_widths
from lol_core.experiments.context import Context
from lol_core.experiments.kept import Kept
from lol_core.experiments.merge_readings import PLACES, READINGS, SEEDS, Pair, Reading
from lol_core.experiments.result import Finding, Holds, Result, environment, verdict, weakest, with_interval
from lol_core.insight.learned import MERGERS
from lol_core.insight.merge_report import CONDITION, turned
from lol_core.insight.merging import Method, merge
from lol_core.insight.plots import merged_and_turned
from lol_core.learning.merger import Merger
from lol_core.learning.verdict import Difference, over_seeds

TITLE = "Merging two LoRAs: what remains of both, and what the gauge changes"
PAIRS = {"faces": 30, "emojinette": 20, "glosses": 24}
"""Of each zoo; a merge is read in seconds, and more pairs make the intervals narrower. No learned merger was trained on
one of their LoRAs, and those that are left must do for that.
"""
DENSITY = 0.5
EQUAL = 1e-5
"""‖ΔW − ΔW′‖ / ‖ΔW‖ below which two merges count as the same."""
BASE, OWN = "the base model", "one of the two LoRAs"


@dataclass(frozen=True)
class Way:
    """A row of the table. weight: of both LoRAs; cut: whether the merge has the rank of the two, or theirs together."""

    title: str
    method: Method
    weight: float = 1.0
    cut: bool = True

    def merged(self, loras: Sequence[LoRA]) -> LoRA:
        rank = max(loras[0].ranks) if self.cut else None
        return merge(loras, [self.weight] * len(loras), rank, self.method, density=DENSITY).lora


SUM = Way("ΔW: sum", Method.SUM)
MEAN = Way("ΔW: mean", Method.SUM, 0.5)
KNOTS = Way("ΔW: KnOTS-TIES", Method.KNOTS)
LEARNED = Way("ΔW: learned", Method.LEARNED)
AVERAGED = Way("factors: averaged", Method.LINEAR, 0.5)
WAYS = (
    Way("ΔW: sum, of both ranks together", Method.SUM, cut=False),
    SUM,
    MEAN,
    Way("ΔW: TIES", Method.TIES_SVD),
    Way("ΔW: DARE-TIES", Method.DARE_TIES_SVD),
    KNOTS,
    LEARNED,
    Way("factors: summed", Method.LINEAR),
    AVERAGED,
    Way("factors: TIES", Method.TIES),
)
SMALL = (SUM, AVERAGED)


def run(context: Context) -> Result:
    readings = [
        reading(context.samples, context.work / "merges", context.small, context.reporter) for reading in READINGS
    ]
    rows = [row for each in readings for row in _measured(each, context)]
    table = pd.DataFrame(rows)
    return Result(
        "merges",
        TITLE,
        _cells(readings, table),
        _findings(readings, table),
        _notes(readings, table),
        _figure(readings, table),
        {
            "zoos": {each.zoo_name: {"fingerprint": each.zoo.fingerprint, "LoRAs": len(each.zoo)} for each in readings},
            "pairs": PAIRS,
            "density": DENSITY,
            "mergers": {each.zoo_name: Merger.load(MERGERS / f"{each.zoo_name}.json").about for each in readings},
            "environment": environment(),
        },
    )


def moved(a: LoRA, b: LoRA) -> float:
    """‖ΔW_a − ΔW_b‖ / ‖ΔW_a‖ over all modules."""
    gap = sum(distance(x, b[x.name]) ** 2 for x in a.layers) ** 0.5
    return float(gap / sum(norm(x) ** 2 for x in a.layers) ** 0.5)


def _measured(reading: Reading, context: Context) -> list[dict[str, Any]]:
    """What was read of every merge, from the two LoRAs and with the second in another gauge; made now as far as it is
    missing. A merge that the gauge does not move is the same merge, and is not read twice.
    """
    pairs = reading.pairs(1 if context.small else PAIRS[reading.zoo_name])
    about = {"fingerprint": reading.zoo.fingerprint, "density": DENSITY, "small": context.small}
    kept = Kept(context.folder / "merges.jsonl", about)
    known = {_key(line): line for line in kept.lines() if line["zoo"] == reading.zoo_name}
    merger = content_digest(file := MERGERS / f"{reading.zoo_name}.json", file.stat().st_size)
    rows: list[dict[str, Any]] = []

    def ask(pair: Pair, title: str, gauge: str, lora: LoRA | None) -> dict[str, Any]:
        line = {"zoo": reading.zoo_name, "pair": [pair.one, pair.two], "way": title, "gauge": gauge}
        line |= {"merger": merger} if title == LEARNED.title else {}
        if _key(line) not in known:
            words = f"{reading.zoo_name}: pair {pairs.index(pair) + 1} of {len(pairs)}, {title}"
            context.reporter.show(words, pairs.index(pair) / len(pairs))
            context.reporter.check("What was read is kept; the same command goes on.")
            score, second = reading.read(lora, pair)
            known[_key(line)] = line | {"score": score, "second": second}
            kept.add(**known[_key(line)])
        return known[_key(line)]

    for number, pair in enumerate(pairs):
        loras = [reading.zoo.load(id) for id in (pair.one, pair.two)]
        other = [loras[0], turned(loras[1], number)]
        rows.append(ask(pair, BASE, "own", None))
        rows += [
            ask(pair, OWN, gauge, lora) | {"gauge": "own"} for gauge, lora in zip(("one", "two"), loras, strict=True)
        ]
        for way in SMALL if context.small else WAYS:
            plain, again = way.merged(loras), way.merged(other)
            gap = moved(plain, again)
            rows.append(ask(pair, way.title, "own", plain))
            same = gap < EQUAL
            rows.append(
                (rows[-1] if same else ask(pair, way.title, "turned", again)) | {"gauge": "turned", "moved": gap}
            )
    return [row | {"pair": " ".join(row["pair"])} for row in rows]


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line["pair"]), line["way"], line["gauge"], line.get("merger")


def _by_pair(reading: Reading, table: pd.DataFrame, gauge: str, column: str = "score") -> pd.DataFrame:
    """(pairs, ways): the number of each; of the two LoRAs their mean."""
    part = table[(table["zoo"] == reading.zoo_name) & (table["gauge"] == gauge)]
    return part.pivot_table(index="pair", columns="way", values=column, sort=False)


def _cells(readings: Sequence[Reading], table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for each in readings:
        head = each.zoo_name.capitalize()
        for title, gauge, column in (
            (each.title, "own", "score"),
            (f"{each.title}, one turned", "turned", "score"),
            (each.second, "own", "second"),
            ("ΔW moved by the turn", "turned", "moved"),
        ):
            values = _by_pair(each, table, gauge, column)
            means = with_half_widths({str(way): values[way].tolist() for way in values}, 0.0)
            for way in (BASE, OWN, *(way.title for way in WAYS)):
                if way in means.index:
                    mean, std = means.loc[way]
                    rows.append((way, f"{head}: {title}", mean, std, np.nan, np.nan))
    return pd.DataFrame(rows, columns=["row", "column", "mean", "std", "paper", "paper_std"])


def _gap(reading: Reading, one: pd.Series, other: pd.Series, among: int) -> Difference:
    """By how much one is better than the other, over pairs."""
    gaps = one - other if not reading.less else other - one
    return over_seeds(gaps.tolist(), 0.0, among)


def _findings(readings: Sequence[Reading], table: pd.DataFrame) -> list[Finding]:
    there = set(table["way"])
    blind, factors = (
        [way.title for way in WAYS if way.title in there and way.method.invariant == kind] for kind in (True, False)
    )
    shifts = table[table["gauge"] == "turned"].groupby("way")["moved"]
    largest, least = shifts.max()[blind].max(), shifts.min()[factors].min()
    same = Finding(
        f"Merged by ΔW, a LoRA in another gauge gives the same merge to {EQUAL:g}; by factors it does not.",
        Holds.YES if largest < EQUAL < least else Holds.NO,
        f"with one LoRA of each pair turned by R of condition number {CONDITION:g}, the merge's ΔW moves by at most"
        f" {largest:.0e} of its norm by {', '.join(blind)}, and by at least {least:.2f} by {', '.join(factors)}.",
        in_paper=False,
    )
    own, again = ({each.zoo_name: _by_pair(each, table, gauge) for each in readings} for gauge in ("own", "turned"))

    def better(statement: str, one: str, other: str, others: Mapping[str, pd.DataFrame] = own) -> Finding:
        """Whether one way does better than another in every zoo. others: the table of the other."""
        gaps = {
            each.zoo_name: _gap(each, own[each.zoo_name][one], others[each.zoo_name][other], len(readings))
            for each in readings
        }
        words = "; ".join(f"{zoo.capitalize()} {with_interval(gap)}" for zoo, gap in gaps.items())
        return Finding(statement, weakest(map(verdict, gaps.values())), f"{words}.", in_paper=False)

    averaged, summed, knots, learned = AVERAGED.title, SUM.title, KNOTS.title, LEARNED.title
    findings = [
        same,
        better("Averaged factors lose by the turn.", averaged, averaged, again),
        better("The sum of ΔW, cut to the rank, does more of both than either LoRA.", summed, OWN),
        better(
            "The sum cut to the rank does more of both than averaged factors as they were fine-tuned.", summed, averaged
        ),
    ]
    if MEAN.title in there:
        findings.append(better("The mean of ΔW does more of both than the sum cut to the rank.", MEAN.title, summed))
    if knots in there:
        words = "KnOTS-TIES does more of both than the sum cut to the same rank."
        findings.insert(3, better(words, knots, summed))
        findings += [
            better("The learned merge does more of both than the sum cut to the same rank.", learned, summed),
            better("The learned merge does more of both than KnOTS-TIES.", learned, knots),
        ]
    return findings


def _notes(readings: Sequence[Reading], table: pd.DataFrame) -> list[str]:
    counts = {each.zoo_name: len(_by_pair(each, table, "own")) for each in readings}
    return [
        (
            "Numbers are means over pairs with half the width of their 95 % interval (Student's t over pairs, in which"
            f" no LoRA stands twice: {', '.join(f'{zoo.capitalize()} {n}' for zoo, n in counts.items())}); intervals of"
            " differences are paired and hold together over the three zoos."
        ),
        (
            f"Both LoRAs have the weight 1, in a mean ½; TIES, DARE and KnOTS keep {DENSITY:g} of the entries."
            " No method's setting was chosen by these scores. A first run of Faces held LoRAs fine-tuned as other"
            " words, which hardly draw their person; they were left out after a look at it. All but the first sum are"
            " cut to the rank of the two."
        ),
        (
            "The learned merge is a network for each zoo that weighs parts of the two ΔW by what no gauge changes,"
            " trained on pairs of LoRAs that stand in no pair here. On Faces it is trained so that the shipped GL-net"
            " reads the attributes of both and the merge stays near the sum; that GL-net was fitted to labels of LoRAs"
            " of the whole zoo, 45 of these 60 among them. On Emojinette it is trained by the fine-tuning loss on drawn"
            " pictures of either's classes (LoRAs of one class or three, none of the same classes as one here), on"
            " Glosses by the loss on validation questions of either's own sources. On Faces the fine-tuning loss on"
            " pictures of people with both attributes was tried first: it made a merge that drew less of both than the"
            " sum, on pairs that were held back for that, and was given up; the learning rate of what took its place"
            " was chosen there by its own goal."
        ),
        (
            "Faces: two people of whom each has an attribute that the other lacks, fine-tuned as the same word for a"
            " person, at rates and for times at which a LoRA draws its person; a judge that was trained on drawn people"
            f" reads {len(PLACES)} pictures of each merge. Emojinette: two LoRAs of two classes each, none in common; a"
            f" reader that was trained on drawn things reads {SEEDS} pictures, and a class counts as drawn where one of"
            " them shows it surely. Glosses: two fine-tunes with a validation loss in the better half; loss and"
            " accuracy on the test questions of sources that only one of them saw, averaged over the two sides. Neither"
            " judge nor reader ever saw a LoRA."
        ),
        (
            "“One turned”: the second LoRA of each pair rewritten by R ⋆ (U, V) = (UR, VR⁻ᵀ), a random R for each"
            " module. It draws the same pictures and answers the same; only a merge of factors can tell. Where the"
            f" merge's ΔW moved by less than {EQUAL:g} it was not read a second time."
        ),
    ]


def _figure(readings: Sequence[Reading], table: pd.DataFrame) -> go.Figure:
    parts = []
    for each in readings:
        for gauge in ("own", "turned"):
            values = _by_pair(each, table, gauge)
            means = with_half_widths({str(way): values[way].tolist() for way in values}, 0.0)
            panel = f"{each.zoo_name.capitalize()}: {each.title}"
            parts.append(means.rename_axis("row").reset_index().assign(panel=panel, turned=gauge == "turned"))
    return merged_and_turned(pd.concat(parts), [BASE, OWN, *(way.title for way in WAYS)])
