"""What is told of LoRAs that all began at one start of A, beside what is told of those that each began at their own:
how much of what models lack is chance of the start, and how much is LoRAs to learn from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.errors import TaskError
from lol_core.experiments.comparison import (
    INTERVAL,
    SHUFFLING,
    by_split,
    cells,
    chart,
    intervals,
    settings,
    with_half_widths,
)
from lol_core.experiments.context import Context
from lol_core.experiments.curve import APART, OTHERS, SETTING, WIDE
from lol_core.experiments.kernel import Side, kernels, squares
from lol_core.experiments.orders import READ, told
from lol_core.experiments.question import Question
from lol_core.experiments.result import Finding, Result, verdict, with_interval
from lol_core.experiments.search import Setting
from lol_core.experiments.table3 import CLASSES_QUESTION
from lol_core.experiments.table5 import SOURCES_QUESTION
from lol_core.experiments.trials import KERNEL, Trials
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.recipes import IMAGENETTE
from lol_core.finetuning.rows import sort_by_lora
from lol_core.finetuning.start import Start
from lol_core.learning.verdict import over_seeds

TITLE = "From one start: LoRAs whose A began at the same draw"
COUNTS = {"emojinette": 600, "glosses": 200}
"""Sample zoo → LoRAs, the first of it. One takes about 2 seconds of one core, in Glosses 20."""
ASKED = {
    "classes": (CLASSES_QUESTION, (Start.COMMON, Start.FROZEN), (200, None)),
    "sources": (SOURCES_QUESTION, (Start.COMMON,), (None,)),
}
"""What is told → of which question, from which starts beside their own, by how many training LoRAs (None: all)."""
TITLES = {Start.OWN: "own start", Start.COMMON: "one start", Start.FROZEN: "one start, A frozen"}
MODELS = (*(variant for variant in OTHERS if variant.model != "dense"), WIDE, APART)
MLP, COLUMNS = OTHERS[0].name, READ[Side.COLUMNS]
STATEMENTS = {
    "GL-net of width 64 tells more": lambda one, own: one[WIDE.name] - own[WIDE.name],
    "an MLP on the factors as they are stored tells more": lambda one, own: one[MLP] - own[MLP],
    "the product kernel's lead over GL-net of width 64 is smaller": lambda one, own: (
        (own[KERNEL] - own[WIDE.name]) - (one[KERNEL] - one[WIDE.name])
    ),
    "the lead of ΔWΔWᵀ over ΔW in ridge regression is smaller": lambda one, own: (
        (own[COLUMNS] - own[KERNEL]) - (one[COLUMNS] - one[KERNEL])
    ),
    "GL-net of width 64 still tells more than that MLP": lambda one, own: one[WIDE.name] - one[MLP],
}
"""What may be so of LoRAs from one start → the difference that says it, of scores by split from one start and from
their own.
"""
Asked = dict[tuple[Start, int | None], tuple[Trials, pd.DataFrame]]
"""Start, training LoRAs → the fits, and the scores of models and kernels by split."""


def run(context: Context) -> Result:
    parts, findings, trials = [], [], []
    made: dict[str, dict[str, Any]] = {}
    models = (OTHERS[0], WIDE) if context.small else MODELS
    for what, (question, starts, sizes) in ASKED.items():
        asked: Asked = {}
        for start in (Start.OWN, *starts[: 1 if context.small else None]):
            zoo = zoo_of(context, question, start)
            for known in sizes[-1:] if context.small else sizes:
                each = Trials(
                    replace(question, name=f"starts-{question.name}-{start}"),
                    zoo,
                    replace(context.budget, known=known),
                    context.folder,
                    models=models,
                )
                each.run(context.reporter, context.workers)
                read = second_order(each)
                names = [*each.variants, KERNEL]
                asked[start, known] = each, by_split(each, question.score, *names).assign(**read)
                rows = pd.concat([intervals(each, question.score), with_half_widths(read, each.test_share)])
                parts.append(cells(f"{what}, {TITLES[start]}, {counted(each)} LoRAs", rows))
                if start is not Start.OWN:
                    made[zoo.name] = {"fingerprint": zoo.fingerprint, "LoRAs": len(zoo)}
                elif known is None:
                    trials.append(each)
        findings += judged(what, asked)
    table = pd.concat(parts, ignore_index=True)
    shown = str(table["column"].iloc[-1])
    about = settings(trials, context.budget) | {"zoos": made}
    return Result("starts", TITLE, table, findings, NOTES, chart(table, shown), about)


def counted(trials: Trials) -> int:
    return len(trials.prepared(WIDE.name, Setting(1e-3), 0).split["train"])


def zoo_of(context: Context, question: Question, start: Start) -> Source:
    """The first LoRAs of a sample zoo, or the same ones fine-tuned from one start of A, made now as far as they are
    missing: by the recipe of the sample zoo, from the same data, with the same draws of everything else.
    """
    count = 12 if context.small else COUNTS[question.zoo]
    sample = Zoo.open(context.samples / question.zoo)
    if start is Start.OWN:
        return replace(sample, labels=sample.labels.loc[sample.ids[:count]].reindex(sample.ids))
    folder = context.work / "starts" / f"{question.zoo}-{start}-{count}"
    make = _glosses if question.zoo == "glosses" else _emojinette
    make(context, folder, start, count)
    sort_by_lora(folder / "labels.csv")
    made = Zoo.open(folder)
    if [Path(id).stem for id in made.ids] != [Path(id).stem for id in sample.ids[:count]]:
        raise TaskError(f"{folder}: not the first {count} LoRAs of {question.zoo}. Some could not be fine-tuned.")
    return made


def _emojinette(context: Context, folder: Path, start: Start, count: int) -> None:
    from lol_core.finetuning.image_zoos import ImageZoo  # imports diffusers
    from lol_core.finetuning.picture_data import write_things
    from lol_core.finetuning.pictures import Drawings

    recipe = replace(IMAGENETTE.with_settings(context.samples / "emojinette" / "recipe.json"), start=start)
    if context.small:
        recipe = replace(recipe, steps=(2,))
    data = folder.parent / "things"
    if not (data / "train").is_dir():
        write_things(data, Drawings(context.samples / "pictures" / "drawings.json"))
    zoo = ImageZoo(folder, recipe, str(context.samples / "small-diffusion"))
    machine = Machine(context.workers, stack=16)
    for _ in zoo.build(data, count, machine, context.reporter.part(0, 1, f"{folder.name}: ")):
        pass


def _glosses(context: Context, folder: Path, start: Start, count: int) -> None:
    from lol_core.finetuning.glosses import Encoder, build  # imports peft

    questions = pd.read_csv(context.samples / "glosses" / "questions.csv")
    folder.mkdir(parents=True, exist_ok=True)
    if context.small:
        questions = questions.groupby(["split", "source"]).head(1)
    questions.to_csv(folder / "questions.csv", index=False)
    reporter = context.reporter.part(0, 1, f"{folder.name}: ")
    for _ in build(Encoder.place(), folder, count, context.workers, reporter=reporter, start=start):
        pass


def second_order(trials: Trials) -> dict[str, list[float]]:
    """The score of ridge regression on ΔWΔWᵀ at each split."""
    fit = trials.prepared(WIDE.name, Setting(1e-3), 0)
    matrices = kernels(squares(fit.factors.batch(trials.labelled), Side.COLUMNS))
    score = trials.question.score
    return {COLUMNS: [told(trials, seed, matrices, score)[0] for seed in range(trials.budget.seeds)]}


def judged(what: str, asked: Asked) -> list[Finding]:
    findings = []
    for statement, difference in STATEMENTS.items():
        for start in dict.fromkeys(start for start, _ in asked if start is not Start.OWN):
            gaps: dict[str, Any] = {}
            for known in (known for begun, known in asked if begun is start):
                trials, one = asked[start, known]
                values = difference(one, asked[Start.OWN, known][1])
                gaps[f"{counted(trials)} LoRAs"] = over_seeds(values.tolist(), trials.test_share, len(STATEMENTS))
            words = "; ".join(f"{with_interval(gap)} with {count}" for count, gap in gaps.items())
            findings.append(
                Finding(
                    f"From {TITLES[start]}, {statement}: {what}.",
                    verdict(list(gaps.values())[-1]),
                    f"accuracy {words}.",
                    in_paper=False,
                )
            )
    return findings


NOTES = [
    "LoRAs from one start are those of the sample zoos fine-tuned again: the same recipe, data, and draws of everything"
    " but the start of A, which is one draw for all, as PEFT makes it; B begins at 0. Frozen, A is not trained, so that"
    " ΔW = B A of LoRAs that differ in B alone. Both rows and starts are of the same LoRAs by number, the first of the"
    " zoo, and splits are the same. The judged difference is that of all training LoRAs. One start was drawn for each"
    " zoo; intervals speak of other splits, not of other starts.",
    f"All models have one setting, which was not searched ({SETTING} accuracy); size apart adds TuckerNet's unit norm,"
    " log-size branch and linear skip (docs/methods.md). Ridge regression on the product kernel and on ΔWΔWᵀ chooses"
    " its kernel and its ridge on the validation LoRAs.",
    f"What is judged was settled before any score of theirs was seen. {INTERVAL} {SHUFFLING} Intervals of differences"
    f" are widened for the {len(STATEMENTS)} of a zoo and start (Bonferroni).",
]
