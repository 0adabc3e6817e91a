"""Whether ridge regression tells more from ΔWΔWᵀ, or from ΔWᵀΔW, than from ΔW; and how far the A of each zoo's LoRAs
has left where it started, at random, of which ΔWΔWᵀ keeps least.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA
from lol_core.experiments.comparison import (
    INTERVAL,
    by_split,
    cells,
    chart,
    differences,
    halved,
    intervals,
    settings,
    with_half_widths,
)
from lol_core.experiments.context import Context
from lol_core.experiments.curve import APART, SETTING, WIDE, one_setting
from lol_core.experiments.holdout_readings import (
    DRAWS,
    FAMILIES,
    Reading,
    Readings,
    Trainings,
    asked_of,
    held_out,
)
from lol_core.experiments.kept import Kept
from lol_core.experiments.kernel import Side, kernel_ridge, kernels, squares
from lol_core.experiments.models import ASKED
from lol_core.experiments.result import Finding, Result, verdict, with_interval
from lol_core.experiments.search import Setting
from lol_core.experiments.table2 import FOLDED_QUESTION
from lol_core.experiments.table2 import QUESTION as CLIP_QUESTION
from lol_core.experiments.trials import KERNEL, Trials
from lol_core.finetuning.recipes import CELEBA, IMAGENETTE
from lol_core.learning.models.apart import Apart
from lol_core.learning.models.gl_net import Order
from lol_core.learning.verdict import over_seeds

TITLE = "Second order: what ΔWΔWᵀ tells, which keeps least of where A started"
READ = {Side.COLUMNS: "ridge: ΔWΔWᵀ", Side.ROWS: "ridge: ΔWᵀΔW"}
BOTH = "ridge: ΔW or ΔWΔWᵀ"
KEEPS = "What was measured is kept; the same command goes on."
SQUARED = {
    WIDE: one_setting(64, ", reading P Pᵀ", order=Order.COLUMNS.value),
    APART: one_setting(64, ", size apart, reading P Pᵀ", apart=frozenset(Apart), order=Order.COLUMNS.value),
}
"""A GL-net → the same whose head reads P Pᵀ in place of P = Φ ΔW Ψᵀ."""
GIVEN = "sources, accuracy"
"""Where those are asked: there GL-net is furthest behind."""
STARTED = {"faces": 200, "emojinette": 200, "glosses": 318}
"""Sample zoo → of how many of its LoRAs A is compared with its start."""


def run(context: Context) -> Result:
    context = context.by_halving()
    kept = Kept(context.folder / "orders.jsonl", {"of": "orders"})
    parts, findings, trials = [], [], []
    columns = dict(list(ASKED.items())[: 2 if context.small else None])
    for column, (question, score) in columns.items():
        question = FOLDED_QUESTION if question is CLIP_QUESTION else question
        models = ("gl_net",) if context.small else ("gl_net", "tucker")
        asked = context.trials(question, models)
        trials.append(asked)
        read = readings(asked, score, kept, context)
        rows = [intervals(asked, score), with_half_widths(read, asked.test_share)]
        parts.append(cells(column, pd.concat(rows)))
        scores = by_split(asked, score, KERNEL, *models).assign(**read)
        findings += judged(column, scores, asked.test_share, len(columns))
    nets = replace(context, budget=replace(context.budget, search=None), answered={})
    given = nets.trials(ASKED[GIVEN][0], (*SQUARED, *SQUARED.values()))
    trials.append(given)
    titles = [variant.title for pair in SQUARED.items() for variant in pair]
    parts.append(cells(GIVEN, intervals(given, ASKED[GIVEN][1]).loc[titles]))
    findings += squared(given)
    findings += afterwards(context, kept)
    started = starts(context, kept)
    table = pd.concat(parts, ignore_index=True)
    about = settings(trials, context.budget) | {"start of A": started}
    shown = chart(table, GIVEN if GIVEN in columns else next(iter(columns)))
    return Result("orders", TITLE, table, findings, notes(context, started), shown, about)


def readings(trials: Trials, score: str, kept: Kept, context: Context) -> dict[str, list[float]]:
    """Reading → its score at each split, those that are missing made."""
    about = {"question": trials.question.name, "zoo": trials.zoo.fingerprint, "LoRAs": len(trials.labelled)}

    def lines() -> list[dict[str, Any]]:
        return [line for line in kept.lines() if line["read"] == about and line["seed"] < trials.budget.seeds]

    if missing := sorted({*range(trials.budget.seeds)} - {line["seed"] for line in lines()}):
        context.reporter.show(f"{trials.question.name}: products of LoRAs", 0.0)
        fit = trials.prepared("gl_net", Setting(1e-3), 0)
        batch = fit.factors.batch(trials.labelled)
        matrices = {READ[side]: kernels(squares(batch, side)) for side in Side}
        matrices[BOTH] = kernels(batch) | {f"{name} ΔWΔWᵀ": of for name, of in matrices[READ[Side.COLUMNS]].items()}
        for seed in missing:
            context.reporter.check(KEEPS)
            read = {name: told(trials, seed, of, score) for name, of in matrices.items()}
            kept.add(
                read=about,
                seed=seed,
                scores={name: value for name, (value, _) in read.items()},
                picked={name: picked for name, (_, picked) in read.items()},
            )
    measured = sorted(lines(), key=lambda line: line["seed"])
    return {name: [line["scores"][name] for line in measured] for name in (*READ.values(), BOTH)}


def told(
    trials: Trials, seed: int, matrices: dict[str, np.ndarray], score: str
) -> tuple[float, dict[str, float | str]]:
    """The score of ridge regression at a split, chosen and fitted as for the product kernel."""
    fit = trials.prepared("gl_net", Setting(1e-3), seed)
    predicted, picked = trials.ridge(fit, matrices)
    return fit.task.score(trials.zoo.labels.loc[fit.split["test"]], predicted)[score], picked


def judged(column: str, scores: pd.DataFrame, test_share: float, among: int) -> list[Finding]:
    """scores: split × (model, kernel or reading)."""

    def gap(one: str, other: str) -> Any:
        return over_seeds((scores[one] - scores[other]).tolist(), test_share, among)

    columns, rows = READ[Side.COLUMNS], READ[Side.ROWS]
    more, net = gap(columns, KERNEL), gap(columns, "gl_net")
    tucker = f", TuckerNet by {with_interval(gap(columns, 'tucker'))}" if "tucker" in scores else ""
    return [
        Finding(
            f"Ridge regression tells more from ΔWΔWᵀ than from ΔW: {column}.",
            verdict(more),
            f"by {with_interval(more)}; from ΔWΔWᵀ more than from ΔWᵀΔW by {with_interval(gap(columns, rows))}.",
            in_paper=False,
        ),
        Finding(
            f"Ridge regression on ΔWΔWᵀ is above the searched GL-net: {column}.",
            verdict(net),
            f"{scores[columns].mean():.3f} against {scores['gl_net'].mean():.3f}; it exceeds GL-net by"
            f" {with_interval(net)}{tucker}.",
            in_paper=False,
        ),
    ]


def squared(trials: Trials) -> list[Finding]:
    """Of each GL-net, whether it gains by reading P Pᵀ in place of P."""
    findings = []
    for usual, variant in SQUARED.items():
        gain, left = (
            differences(trials, ASKED[GIVEN][1], *pair, among=len(SQUARED))
            for pair in ((variant.name, usual.name), (variant.name, KERNEL))
        )
        findings.append(
            Finding(
                f"{usual.title} gains by reading P Pᵀ in place of P = Φ ΔW Ψᵀ: {GIVEN}.",
                verdict(gain),
                f"by {with_interval(gain)}; it exceeds the product kernel by {with_interval(left)}.",
                in_paper=False,
            )
        )
    return findings


def afterwards(context: Context, kept: Kept) -> list[Finding]:
    """The first question again, of held-out LoRAs; none where none were ever made."""
    columns, findings = FAMILIES["language"][: 1 if context.small else None], []
    for column in columns:
        question, score = ASKED[column]
        known = any(line["read"].get("held-out") == column for line in kept.lines())
        fresh = held_out(context, question, known=known)
        if fresh is not None:
            _read_afterwards(context, kept, column, fresh)
        lines = [line for line in kept.lines() if line["read"].get("held-out") == column]
        lines = [line for line in lines if line["read"] == lines[-1]["read"]]
        if not lines:
            continue
        of = {
            name: [Reading.of(score, line["predicted"][name], line["truth"]) for line in lines]
            for name in (KERNEL, READ[Side.COLUMNS])
        }
        readings = Readings({}, {column: of}, None, 200 if context.small else DRAWS)
        columns_read, delta = (readings.score(column, name).value for name in (READ[Side.COLUMNS], KERNEL))
        gap = readings.apart(column, READ[Side.COLUMNS], KERNEL, len(columns))
        findings.append(
            Finding(
                f"On held-out LoRAs ridge regression tells more from ΔWΔWᵀ than from ΔW: {column}.",
                verdict(gap),
                f"{columns_read:.3f} against {delta:.3f} on {lines[0]['read']['LoRAs']} LoRAs that were made after"
                f" this page's readings (experiment holdout), {with_interval(gap)} by a bootstrap over LoRAs and"
                " trainings.",
                in_paper=False,
            )
        )
    return findings


def _read_afterwards(context: Context, kept: Kept, column: str, fresh: Source) -> None:
    question, score = ASKED[column]
    ids = asked_of(context, fresh)
    about = {"held-out": column, "fingerprint": fresh.fingerprint, "LoRAs": len(ids)}
    done = {line["seed"] for line in kept.lines() if line["read"] == about}
    for seed in (seed for seed in range(context.budget.seeds) if seed not in done):
        context.reporter.check(KEEPS)
        asked = Trainings(context, None, question, score, fresh, ids, seed)
        fit = asked.plain
        known = fit.split["train"] + fit.split["validation"]
        own, new = fit.factors.batch(known), asked.factors.batch(ids)
        y = fit.task.numbers(fit.task.encode(asked.trials.zoo.labels.loc[known]))
        cuts = np.split(np.arange(len(own) + len(new)), [len(fit.split["train"]), len(own)])
        predicted = {
            name: asked.shortened(fit.task.from_numbers(kernel_ridge(matrices, *cuts, y=y)[0]))
            for name, matrices in (
                (KERNEL, kernels(own, new)),
                (READ[Side.COLUMNS], kernels(*(squares(batch, Side.COLUMNS) for batch in (own, new)))),
            )
        }
        kept.add(read=about, seed=seed, truth=asked.truth, predicted=predicted)


def starts(context: Context, kept: Kept) -> dict[str, dict[str, float]]:
    """Zoo → the share of A that lies in the span of A's own start, the mean of LoRAs and modules, and the share that a
    start drawn anew would have.
    """
    found = {}
    for name, count in {"faces": 2}.items() if context.small else STARTED.items():
        zoo = Zoo.open(context.samples / name)
        about = {"start": name, "zoo": zoo.fingerprint, "LoRAs": count}
        if not (lines := [line for line in kept.lines() if line.get("read") == about]):
            context.reporter.check(KEEPS)
            context.reporter.show(f"{name}: where A started", 0.0)
            ids = zoo.ids[:count]
            shares = [
                [share_of_start(layer.V, A) for layer, A in pairs]
                for pairs in map(_paired, map(zoo.load, ids), _started(context, name, zoo, ids))
            ]
            chance = float(np.mean([layer.V.shape[1] / layer.V.shape[0] for layer in zoo.load(ids[0]).layers]))
            kept.add(read=about, seed=0, share=float(np.mean(shares)), chance=chance)
            lines = [line for line in kept.lines() if line.get("read") == about]
        found[name] = {"share": lines[0]["share"], "by chance": lines[0]["chance"], "LoRAs": count}
    return found


def share_of_start(V: torch.Tensor, start: torch.Tensor) -> float:
    """Of Aᵀ (m, r) what lies in the span of the columns of its start (m, r), by squares."""
    V, start = V.double(), start.double()
    return float((torch.linalg.qr(start).Q.mT @ V).square().sum() / V.square().sum())


def _paired(lora: LoRA, start: dict[str, torch.Tensor]) -> Iterator[tuple[Any, torch.Tensor]]:
    """Every module of a LoRA with the start of its A, transposed. start: module of the base → A."""
    for layer in lora.layers:
        (A,) = (A for name, A in start.items() if layer.name.endswith(name))
        yield layer, A.mT


def _started(context: Context, name: str, zoo: Zoo, ids: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """For each LoRA the A that its fine-tune began with, drawn again from its number."""
    numbers = [int(re.findall(r"\d+", id)[0]) for id in ids]
    if name == "glosses":
        from lol_core.finetuning.glosses import Encoder  # imports transformers

        encoder = Encoder.found()
        for number in numbers:
            model = encoder.new_lora(0.0, number)
            found = {k.split(".lora_A")[0]: A.detach().clone() for k, A in model.named_parameters() if ".lora_A" in k}
            yield {k.removeprefix("base_model.model."): A for k, A in found.items()}
            model.unload()
        return
    from lol_core.finetuning.dreambooth import Base  # imports diffusers

    recipe = {"faces": CELEBA, "emojinette": IMAGENETTE}[name].with_settings(zoo.folder / "recipe.json")
    base = Base(context.samples / "small-diffusion")
    for number in numbers:
        yield {module: A for module, (A, _) in base.fresh_factors(recipe, number).items()}


def notes(context: Context, started: dict[str, dict[str, float]]) -> list[str]:
    shares = "; ".join(
        f"{name} {of['share']:.2f} ({of['by chance']:.2f} by chance, {of['LoRAs']:,} LoRAs)"
        for name, of in started.items()
    )
    return [
        "⟨ΔWΔWᵀ, ΔW′ΔW′ᵀ⟩ = ‖ΔWᵀΔW′‖² is of second order in ΔW, the same for (U, V) and (UR, VR⁻ᵀ), and keeps of V only"
        " VᵀV. Ridge regression on it, on ⟨ΔWᵀΔW, ΔW′ᵀΔW′⟩ = ‖ΔWΔW′ᵀ‖² and on ⟨ΔW, ΔW′⟩ (the product kernel) is the"
        " same but for what it reads: each module's as it is or over its norm, and the ridge, chosen by the squared"
        " error on the validation LoRAs. The last reading chooses between ΔW and ΔWΔWᵀ too. Nothing else was searched.",
        "Where A started: fine-tunes draw A at random, each its own, and begin with B = 0 (ΔW = B A; U and V are B and"
        " Aᵀ up to scale). Of A, this share still lies in the span of that start, by squares, the mean of modules and"
        f" LoRAs: {shares}. Where it has hardly left it, rows of ΔW tell of chance, and ⟨ΔW, ΔW′⟩ = ⟨UᵀU′, VᵀV′⟩ weighs"
        " what columns have in common by what those starts have, which ΔWΔWᵀ does not. Fine-tunes from one start are"
        " asked about in *From one start* (experiment starts).",
        "Asked after TuckerNet, which reads ΔWΔWᵀ and ΔWᵀΔW beside ΔW, was seen to be ahead on the sources, and after"
        " these readings had been seen on the same splits: of the two products the one of columns is judged because it"
        f" was better there. {INTERVAL} Intervals of differences are widened for {len(ASKED)} questions (Bonferroni),"
        f" those on held-out LoRAs for {len(FAMILIES['language'])}.",
        f"GL-nets of width 64 have one setting ({SETTING} accuracy), which was not searched; size apart adds"
        " TuckerNet's unit norm, log-size branch and linear skip. Theirs are widened for two.",
        halved(context.budget),
    ]
