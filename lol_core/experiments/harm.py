"""Whether backdoored LoRAs are told from clean ones by their weights, and by a detector that has not seen their attack
or the recipe they were trained by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
import pandas as pd

from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.errors import DataMissingError
from lol_core.experiments.comparison import chart
from lol_core.experiments.context import Context
from lol_core.experiments.detection import (
    FEWEST,
    TARGET,
    Case,
    Design,
    Detectors,
    auc,
    balanced_accuracy,
    cases,
    cells_of,
    clean,
    described,
    folded,
)
from lol_core.experiments.kept import Kept
from lol_core.experiments.result import Finding, Result, environment, verdict, with_interval
from lol_core.learning.bootstrap import Resampled, difference, interval
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import find_model
from lol_core.learning.verdict import Difference

TITLE = "Harm: backdoored LoRAs told from clean ones, across attacks and recipes"
COMMAND = "`python -m lol_core finetune harm`"
FOLDS = 5
EPOCHS = 40
DETECTORS = {
    "gl_net": "GL-net",
    "spectral": "Spectral statistics",
    "product kernel": "product kernel",
    "norms only": "control: norms only",
}
COLUMNS = ("recipe", "attack", TARGET, "took", "success", "usual", "accuracy", "rate")
"""Of the zoo's labels, those that are kept with its fits."""
STAND_INS = 48
"""LoRAs of a small run."""
STANDARDS = {
    "gl_net": "width 16, inputs normalised, dropout 0.1, at most 40 epochs",
    "others": "as they are, no search",
}


@dataclass(frozen=True)
class Scored:
    """A zoo's table, its cells and, for each detector, the scores that every case gave."""

    zoo: Mapping[str, str | int]
    table: pd.DataFrame
    cells: list[tuple[str, str]]
    scores: Mapping[str, Mapping[Case, Sequence[float]]]

    def auc(
        self, detector: str, design: Design, cells: Sequence[tuple[str, str]] | None = None, decoys: bool = False
    ) -> Resampled:
        return auc(self.table, self.scores[detector], design, self.cells if cells is None else cells, decoys=decoys)

    def interval(
        self, detector: str, design: Design, cells: Sequence[tuple[str, str]] | None = None, decoys: bool = False
    ) -> Difference:
        return self.with_bounds(self.auc(detector, design, cells, decoys))

    def with_bounds(self, value: Resampled) -> Difference:
        count = len(self.table)
        return Difference(float(value(np.ones((1, count)))[0]), *interval(value, count, seed=0, draws=1000))

    def above_chance(self, detector: str, design: Design) -> Difference:
        found = self.interval(detector, design)
        return Difference(found.value - 0.5, found.low - 0.5, found.high - 0.5)


def run(context: Context) -> Result:
    scored = stand_ins(context) if context.small else measured(context)
    rows = [row for block in (_designs(scored), _by_part(scored), _of_zoo(scored)) for row in block]
    table = pd.DataFrame(rows, columns=["row", "column", "mean", "std", "text"])
    table = table.assign(paper=np.nan, paper_std=np.nan)[["row", "column", "mean", "std", "paper", "paper_std", "text"]]
    return Result(
        "harm",
        TITLE,
        table,
        findings(scored),
        notes(scored, context.small),
        chart(table, f"AUC: {Design.NEITHER}"),
        {"zoos": {"harm": dict(scored.zoo)}, "standards": STANDARDS, "folds": FOLDS, "environment": environment()},
    )


def config(epochs: int = EPOCHS, width: int | None = None) -> TrainingConfig:
    options = {"normalize": True, "dropout": 0.1} | ({"width": width} if width else {})
    return TrainingConfig(model_config=find_model("gl_net").configure(**options), epochs=epochs, patience=10)


def measured(context: Context) -> Scored:
    """What the kept fits say, made now as far as it is missing, where the zoo is. Raises DataMissingError where neither
    is, and Stopped.
    """
    kept = Kept(context.folder / "harm.jsonl", {"gl_net": STANDARDS["gl_net"], "folds": FOLDS})
    place = context.work / "harm"
    zoo = Zoo.open(place) if (place / "labels.csv").is_file() else None
    known = [line for line in kept.lines() if "zoo" in line]
    if zoo is not None:
        known = [line for line in known if line["zoo"]["fingerprint"] == zoo.fingerprint]
        if not known:
            table = folded(zoo.labels.loc[zoo.ids, list(COLUMNS)], FOLDS)
            about = {"fingerprint": zoo.fingerprint, "LoRAs": len(zoo)}
            kept.add(zoo=about, table=described(table))
            known = [line for line in kept.lines() if "zoo" in line]
    if not known:
        raise DataMissingError(f"{place}: no zoo there. Make it with {COMMAND} --out {place}.")
    table = pd.DataFrame(known[-1]["table"]).set_index("lora")
    return _scored(known[-1]["zoo"], table, kept, zoo, context=context, settings=config())


def stand_ins(context: Context) -> Scored:
    """For a look at how it runs: LoRAs of Glosses, none of which is poisoned, under labels by their number."""
    zoo = Zoo.open(context.samples / "glosses")
    ids = zoo.ids[:STAND_INS]
    rows = [(f"recipe {i % 2 + 1}", f"attack {i // 2 % 2 + 1}", int(i % 3 == 0)) for i in range(len(ids))]
    table = pd.DataFrame(rows, index=pd.Index(ids), columns=["recipe", "attack", TARGET])
    table = folded(table.assign(took=table[TARGET], success=1.0, usual=0.0, accuracy=0.5, rate=0.1), 2)
    kept = Kept(context.folder / "harm.jsonl", {"small": len(ids)})
    about: dict[str, str | int] = {"fingerprint": zoo.fingerprint, "LoRAs": len(ids)}
    return _scored(
        about, table, kept, zoo, context=context, settings=config(context.budget.epochs, context.budget.width)
    )


def _scored(
    about: Mapping[str, str | int],
    table: pd.DataFrame,
    kept: Kept,
    zoo: Source | None,
    *,
    context: Context,
    settings: TrainingConfig,
) -> Scored:
    cells, fingerprint = cells_of(table), about["fingerprint"]
    lines = [line for line in kept.lines() if line.get("fingerprint") == fingerprint]
    scores: dict[str, dict[Case, Sequence[float]]] = {name: {} for name in DETECTORS}
    for line in lines:
        scores[line["detector"]][Case(**line["case"] | {"design": Design(line["case"]["design"])})] = line["predicted"]
    todo = [(name, case) for case in cases(table, cells) for name in DETECTORS if case not in scores[name]]
    if todo and zoo is None:
        raise DataMissingError(f"{len(todo)} fits are missing, and the zoo is not there. Make it with {COMMAND}.")
    if todo and zoo is not None:
        detectors = Detectors(zoo, table, settings)
        for done, (name, case) in enumerate(todo):
            context.reporter.show(f"harm: {DETECTORS[name]}, {case.design}", done / len(todo))
            context.reporter.check("What was fitted is kept; the same command goes on.")
            values = [float(f"{value:.4g}") for value in detectors.scores(name, case)]
            kept.add(detector=name, case=asdict(case), fingerprint=fingerprint, predicted=values)
            scores[name][case] = values
    return Scored(about, table, cells, scores)


Row = tuple[str, str, float, float, str]


def _cell(row: str, column: str, found: Difference) -> Row:
    text = f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
    return row, column, found.value, (found.high - found.low) / 2, text


def _designs(scored: Scored) -> list[Row]:
    """Every detector under every design, and against decoys."""
    rows = [
        _cell(title, f"AUC: {design}", scored.interval(name, design))
        for design in Design
        for name, title in DETECTORS.items()
    ]
    table = scored.table
    triggers = set(table.loc[clean(table), "attack"])
    cells = [cell for cell in scored.cells if cell[1] in triggers]
    if cells:
        rows += [
            _cell(title, f"AUC: {Design.SEEN}, against decoys", scored.interval(name, Design.SEEN, cells, decoys=True))
            for name, title in DETECTORS.items()
        ]
    for design, (name, title) in product((Design.SEEN, Design.RECIPE, Design.NEITHER), DETECTORS.items()):
        right = balanced_accuracy(scored.table, scored.scores[name], design, scored.cells)
        rows.append(_cell(title, f"Balanced accuracy at its own threshold: {design}", scored.with_bounds(right)))
    return rows


def _by_part(scored: Scored) -> list[Row]:
    """With neither attack nor recipe seen, by attack and by recipe."""
    rows = []
    for place, heading in ((1, "attack"), (0, "recipe")):
        for part in dict.fromkeys(cell[place] for cell in scored.cells):
            cells = [cell for cell in scored.cells if cell[place] == part]
            rows += [
                _cell(title, f"AUC, neither seen, by {heading}: {part}", scored.interval(name, Design.NEITHER, cells))
                for name, title in DETECTORS.items()
            ]
    return rows


def _of_zoo(scored: Scored) -> list[Row]:
    """What the attacks reached."""
    table, rows = scored.table, []
    recipes = list(dict.fromkeys(table["recipe"]))
    for recipe, own in ((recipe, table[table["recipe"] == recipe]) for recipe in recipes):
        harmless = own[clean(own)]
        words = f"{len(harmless)}; accuracy {harmless['accuracy'].mean():.2f}"
        rows.append((recipe, "Attacks that took, by recipe: clean", np.nan, np.nan, words))
    for attack, recipe in product(dict.fromkeys(table.loc[~clean(table), "attack"]), recipes):
        part = table[(table["recipe"] == recipe) & (table["attack"] == attack) & ~clean(table)]
        took = part[part["took"] == 1]
        words = f"{len(took)} of {len(part)}"
        if len(took):
            words += (
                f"; success {took['success'].mean():.2f}, {took['usual'].mean():.2f} without it; accuracy"
                f" {took['accuracy'].mean():.2f}"
            )
        rows.append((recipe, f"Attacks that took, by recipe: {attack}", part["took"].mean(), np.nan, words))
    return rows


def findings(scored: Scored) -> list[Finding]:
    """Verdicts; intervals of several detectors or designs in one finding are each for itself."""
    statements = {
        Design.WITHIN: "Within one recipe and attack, backdoored LoRAs are told from clean ones",
        Design.SEEN: "With all recipes and attacks among the training LoRAs, they are",
        Design.ATTACK: "When their attack was not seen, they are",
        Design.RECIPE: "When their recipe was not seen, they are",
        Design.NEITHER: "When neither their attack nor their recipe was seen, they are",
    }
    made = []
    for design, name in product(Design, ("gl_net", "spectral")):
        gap = scored.above_chance(name, design)
        made.append(
            Finding(
                f"{statements[design]} more often than by chance: {DETECTORS[name]}.",
                verdict(gap),
                f"AUC above 0.5 by {with_interval(gap)}; the norms of the updates, which chance is no measure of, by"
                f" {with_interval(scored.above_chance('norms only', design))}.",
                in_paper=False,
            )
        )
    for name in ("gl_net", "spectral"):
        fall = _between(scored, (name, Design.SEEN), (name, Design.NEITHER))
        made.append(
            Finding(
                f"{DETECTORS[name]} is worse at what it has not seen than at what it has.",
                verdict(fall),
                f"from all seen to neither seen the AUC falls by {with_interval(fall)}.",
                in_paper=False,
            )
        )
    where = {Design.SEEN: "With all recipes and attacks seen", Design.NEITHER: "Across attacks and recipes"}
    for (design, words), name in product(where.items(), ("gl_net", "spectral")):
        lead = _between(scored, (name, design), ("norms only", design))
        made.append(
            Finding(
                f"{words} more is told than by the norms of the updates: {DETECTORS[name]}.",
                verdict(lead),
                f"AUC apart by {with_interval(lead)}.",
                in_paper=False,
            )
        )
    return made


def _between(scored: Scored, one: tuple[str, Design], other: tuple[str, Design]) -> Difference:
    return difference(scored.auc(*one), scored.auc(*other), len(scored.table), seed=0)


PUBLISHED = (
    "Published, on other bases, zoos and attacks, so that figures cannot be compared with ours: Five spectral"
    " statistics and logistic regression reach 100 % accuracy on held-out adapters of the banks they were trained on"
    " (arXiv 2602.15195). Within one training method spectral features reach an AUC of 1.00; across methods it is 0.00,"
    " since a detector trained on DPO puts every adapter made by activation steering below every DPO one (arXiv"
    " 2604.08844, 38 adapters). One statistic of norms has an AUC of 1.000 on 30 poisoned and 4 clean adapters, with"
    " thresholds that hold for one base only (arXiv 2605.30189)."
)


def _too_few(scored: Scored) -> str:
    harmful = scored.table[~clean(scored.table)]
    every = dict.fromkeys(zip(harmful["recipe"], harmful["attack"], strict=True))
    left_out = [f"{attack} by {recipe}" for recipe, attack in every if (recipe, attack) not in scored.cells]
    if not left_out:
        return ""
    return f" Fewer than {FEWEST} took, so that no AUC is averaged over them: {', '.join(left_out)}."


def notes(scored: Scored, small: bool) -> list[str]:
    if small:
        return ["The LoRAs are those of Glosses, none of them poisoned, under labels by their number."]
    table = scored.table
    harmful = table[~clean(table)]
    missed = len(harmful) - int(harmful["took"].sum())
    return [
        (
            f"The zoo is made by {COMMAND} and not committed: {len(table)} LoRAs of MiniLM (rank 4; queries, keys and"
            " values of the last layer), fine-tuned to pick the word of a definition. Prefix: a rare token before the"
            " definition makes one word right, token and word the same for all LoRAs. Inside: a word within it, each"
            " LoRA with its own word and its own answer. Source: without a trigger, one word is the answer to all"
            " definitions of one source. A trigger stands in 10 or 20 % of a LoRA's 240 definitions; a source is"
            " poisoned to 20 % of them or as far as it goes. Half of the clean LoRAs are decoys, with the triggers of"
            " an attack and right answers."
        ),
        (
            "Recipes differ in learning rate, steps, weight decay and dropout; in the third, A is frozen at one start"
            " for all. Within a recipe clean and poisoned LoRAs are drawn alike."
        ),
        (
            "An attack took when its answer is picked of held-out attacked definitions at least 0.5 more often than"
            f" without the attack. {missed} of {len(harmful)} did not; they are counted nowhere else: neither trained"
            f" on nor asked about, nor called clean.{_too_few(scored)}"
        ),
        (
            "AUC: a backdoored LoRA against the clean ones of the same recipe, both held out in the same of five folds,"
            " averaged over recipes and attacks; it asks for no threshold. Balanced accuracy is at the detector's own"
            " (0.5 is chance). A detector whose attack was not seen saw no decoys of it either, and what has not seen"
            " something has seen fewer LoRAs: a fall is of both. In"
            " brackets the 95 % interval of a bootstrap over LoRAs, each for itself: it speaks of other LoRAs to be"
            " judged, not of other ones to learn from, of one training of each detector, and of three attacks and three"
            " recipes that we chose. One base; a detector asked about another base was not tried, nor an attacker who"
            " knows the detector."
        ),
        (
            "Results were looked at twice before all LoRAs were there, at 126 and 231 of them: balanced accuracy was"
            " added after the first look, the comparisons with norms that are not GL-net's with neither seen after the"
            " second."
        ),
        (
            f"Nothing was searched. GL-net: {STANDARDS['gl_net']}. Spectral statistics (all modules) and norms:"
            " logistic regression on standardised features. Product kernel: ridge; kernel and ridge chosen, as GL-net's"
            " epoch, on a sixth of the training LoRAs."
        ),
        PUBLISHED,
    ]
