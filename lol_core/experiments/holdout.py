"""Models judged on LoRAs that were fine-tuned after every design and setting was frozen."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lol_core.experiments.comparison import chart
from lol_core.experiments.context import Context
from lol_core.experiments.frozen import Frozen
from lol_core.experiments.holdout_readings import (
    CANDIDATES,
    CONSTANT,
    FAMILIES,
    FAMILIES_APART,
    FAMILIES_ASKED,
    FIRST,
    JUDGED,
    NORMS,
    OURS,
    RIVALS,
    STAND_INS,
    TITLES,
    TRAININGS,
    Exam,
    Readings,
    measured,
)
from lol_core.experiments.models import ASKED
from lol_core.experiments.result import Finding, Holds, Result, environment, verdict, weakest, with_interval
from lol_core.learning.verdict import Difference

OFTEN = {1: "once", 3: "three times", 5: "five times"}
TITLE = "Held-out LoRAs: models judged on fine-tunes made after they were frozen"


def run(context: Context) -> Result:
    readings = measured(context)
    columns = list(readings.of)
    scores = {column: {name: readings.score(column, name) for name in readings.of[column]} for column in columns}
    shown = [name for name in TITLES if any(name in scores[column] for column in columns)]
    nothing = Difference(np.nan, np.nan, np.nan)
    rows = [
        (TITLES[name], column, found.value, (found.high - found.low) / 2, with_bounds(found))
        for column in columns
        for name, found in ((name, scores[column].get(name, nothing)) for name in shown)
    ]
    table = pd.DataFrame(rows, columns=["row", "column", "mean", "std", "text"])
    table = table.assign(paper=np.nan, paper_std=np.nan)[["row", "column", "mean", "std", "paper", "paper_std", "text"]]
    findings = [above(readings, column) for column in columns]
    findings += [parts(readings, column) for column in columns]
    findings += [goal(readings, name) for name in CANDIDATES]
    about = {
        "zoos": {f"held-out {name}": dict(zoo) for name, zoo in readings.zoos.items()},
        "models": {
            each.variant.title: {
                "trainings": each.trainings,
                "setting": each.variant.fixed.to_dict() if each.variant.fixed else "chosen by the committed fits",
            }
            for each in JUDGED
        },
        "environment": environment(),
    }
    return Result("holdout", TITLE, table, findings, notes(context, readings), chart(table, columns[0]), about)


NEW = (
    "Faces: people whom no zoo holds. Emojinette: pictures drawn anew; the subsets of classes are the first of the"
    " committed zoo, which has every subset, so that only pictures and seeds are new. Glosses: new draws of sources and"
    " hyperparameters, on the same questions."
)
MADE_OF = (
    f"{NEW} Those of Emojinette were made first; 83 of the 100 people had been asked about attributes then too, by two"
    " trainings of each model, in whose place five stand now."
)


def with_bounds(found: Difference) -> str:
    return "–" if np.isnan(found.value) else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def above(readings: Readings, column: str) -> Finding:
    """Whether TuckerNet is above each rival."""
    among = len(ASKED) * len(RIVALS)
    gaps = {title: readings.apart(column, OURS, name, among) for name, title in RIVALS.items()}
    norms = readings.apart(column, OURS, NORMS)
    return Finding(
        f"On held-out LoRAs TuckerNet is above GL-net and the product kernel: {column}.",
        weakest(verdict(gap) for gap in gaps.values()),
        f"{'; '.join(f'{title} {with_interval(gap)}' for title, gap in gaps.items())}. Above norms alone by"
        f" {with_interval(norms)}, not widened.",
        in_paper=False,
    )


def parts(readings: Readings, column: str) -> Finding:
    """Whether TuckerNet is above what has its unit norm, its branch for sizes and its linear skip."""
    names = [each.variant.name for each in JUDGED if dict(each.variant.options).get("apart")]
    asked = [name for name in names if name in readings.of[column]]
    among = sum(len(each.columns or ASKED) for each in JUDGED if each.variant.name in names)
    gaps = {TITLES[name]: readings.apart(column, OURS, name, among) for name in asked}
    return Finding(
        f"On held-out LoRAs TuckerNet is above models given its unit norm, log sizes and linear skip: {column}.",
        weakest(verdict(gap) for gap in gaps.values()),
        f"{'; '.join(f'{title} {with_interval(gap)}' for title, gap in gaps.items())}.",
        in_paper=False,
    )


def goal(readings: Readings, name: str) -> Finding:
    """Whether a model of our own is what was aimed at."""
    return aimed_at(readings, name, CANDIDATES[name])


def aimed_at(readings: Readings, name: str, title: str, of_differences: bool = False) -> Finding:
    """Whether a model is above its rivals in enough families of tasks, and in enough of them surely: by intervals that
    do not overlap, or by those of the differences.
    """
    clear, sure = readings.families(name)
    wanted, how = "with intervals apart", "with intervals that do not overlap"
    if of_differences:
        sure = readings.certain(name)
        wanted = how = "with every difference surely above zero"
    asked = [family for family, columns in FAMILIES.items() if all(name in readings.of.get(c, {}) for c in columns)]
    open_still = len(FAMILIES) - len(asked)
    enough = len(clear) >= FAMILIES_ASKED and len(sure) >= FAMILIES_APART
    possible = len(clear) + open_still >= FAMILIES_ASKED and len(sure) + open_still >= FAMILIES_APART
    return Finding(
        f"{title} is above GL-net and the product kernel on at least {FAMILIES_ASKED} of {len(FAMILIES)} families of"
        f" tasks, {wanted} on {FAMILIES_APART}.",
        Holds.YES if enough else Holds.NOT_CLEAR if possible else Holds.NO,
        f"by its mean above both GL-nets and the kernel in every question of {len(clear)} of {len(asked)} families"
        f" asked ({', '.join(clear) or 'none'}), {how} in {len(sure)} ({', '.join(sure) or 'none'}).",
        in_paper=False,
    )


def frozen_before(context: Context, readings: Readings, exam: Exam) -> str:
    """What stood when the LoRAs were made, in words, and what of it had changed when models were trained."""
    frozen, changed = Frozen.read(context.folder / exam.frozen), sorted(readings.changed or ())
    return (
        f"Before any of them was made, code and chosen settings were committed with their digests"
        f" (benchmarks/fits/{exam.frozen}, {frozen.digest}): which models, how they are trained, this rule of the goal."
    ) + (
        f" Files that differed from it when models were trained: {', '.join(changed)}."
        if changed
        else " All models were trained by that code."
    )


def notes(context: Context, readings: Readings) -> list[str]:
    if context.small:
        return [f"The LoRAs asked about are {STAND_INS} of a sample zoo, and not new."]
    fewer = {column: len(of[OURS]) for column, of in readings.of.items() if len(of[OURS]) < TRAININGS}
    missing = [column for columns in FAMILIES.values() for column in columns if column not in readings.of]
    asked = {name for of in readings.of.values() for name in of}
    never = [each.variant.title for each in JUDGED if each.variant.name not in asked]
    return [
        (
            f"The held-out zoos are made by {FIRST.command} and not committed. {MADE_OF}"
            " Recipes and base models are those of the sample zoos."
        ),
        frozen_before(context, readings, FIRST),
        (
            "Every model is trained on the committed zoo, each time on another split of it (the split's test part is"
            " not used), with the setting that the committed fits chose there, or one of its own, and asked once about"
            " the held-out LoRAs: "
            + "; ".join(
                f"{each.variant.title} {OFTEN[each.trainings]}" for each in JUDGED if each.variant.name in asked
            )
            + ". W2T and MVProbe have their authors' schedules, W2T with a warm-up of the whole model, MVProbe for 60"
            " epochs of the 500 in their text and with one module. They take long, and were to be asked only where"
            " TuckerNet's lead had been clear, MVProbe on the sources alone."
            + (
                f" The time ended after fewer splits for {'; '.join(f'{name}: {n}' for name, n in fewer.items())}."
                if fewer
                else ""
            )
            + (f" Not asked, for the same reason: {'; '.join(missing)}." if missing else "")
            + (f" So never asked: {'; '.join(never)}." if never else "")
            + " Size apart adds TuckerNet's unit norm, log-size branch and linear skip (docs/methods.md). The mean"
            " averages two models' predictions and costs both."
        ),
        (
            "In brackets the 95 % interval of a pigeonhole bootstrap (Owen, 2007) over held-out LoRAs and trainings at"
            " once; differences are of the same LoRAs and trainings, and those of a set of findings are widened to hold"
            " together, as many as there would be if every question were asked (Bonferroni). They speak of other LoRAs"
            " by the same recipes and of other splits of these zoos, not of other recipes or base models. A family"
            f" counts only where a model is above in all of its questions. {TITLES[CONSTANT].capitalize()}: the mean or"
            " the most frequent label."
        ),
    ]
