"""Figure 4: models that know rank 4 only, asked about LoRAs of ranks 1 to 32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from lol_core.collections.zoo import Zoo
from lol_core.core.batch import Batch, concatenate, shared_spec, stack
from lol_core.core.progress import Reporter
from lol_core.experiments.comparison import INTERVAL, SHUFFLING, cells, settings, title_of, with_half_widths
from lol_core.experiments.context import Context
from lol_core.experiments.kept import Kept, Scores
from lol_core.experiments.kernel import kernel_ridge, kernels
from lol_core.experiments.paper import FIVE
from lol_core.experiments.result import Finding, Result, verdict, weakest, with_interval
from lol_core.experiments.search import SHUFFLED, Variant
from lol_core.experiments.table3 import ATTRIBUTES_QUESTION
from lol_core.experiments.trials import CONTROLS, KERNEL, Trials
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.picture_data import write_people
from lol_core.finetuning.recipes import CELEBA
from lol_core.finetuning.rows import sort_by_lora
from lol_core.insight.plots import across
from lol_core.learning.evaluation import control_predictions, norm_features, structure_features
from lol_core.learning.fit import Fit
from lol_core.learning.verdict import Difference, over_seeds

TITLE = "Figure 4: models of rank 4 on LoRAs of other ranks"
RANKS = (1, 2, 4, 8, 16, 32)
KNOWN = 4
LOSS_OF_ACCURACY = 0.03
"""What may be lost at an unseen rank by a model that is said to generalise."""
PEOPLE = 100
FIXED, BY_RANK = f"alpha {KNOWN}", "alpha = rank"
ALPHAS = {FIXED: float(KNOWN), BY_RANK: None}
"""As the authors fine-tune, alpha the same at every rank; and the ablation, where the scale is 1 at every rank."""
Zoos = dict[str, dict[int, Zoo]]
Key = TypeVar("Key")
ANY_RANK = tuple(name for name, model in FIVE.items() if model.any_rank)
MACHINE = Machine(workers=2, stack=16)

if TYPE_CHECKING:
    from lol_core.finetuning.image_zoos import ImageZoo


def run(context: Context) -> Result:
    context = context.by_halving()
    ours = context.trials(ATTRIBUTES_QUESTION, ANY_RANK)
    zoos: Zoos = {}
    for alpha, rank, zoo in fine_tunes(context):
        zoos.setdefault(alpha, {})[rank] = zoo
    fingerprints = {
        alpha: {str(rank): zoo.fingerprint for rank, zoo in by_rank.items()} for alpha, by_rank in zoos.items()
    }
    kept = Kept(context.folder / "figure4.jsonl", ours.kept.about | {"fine-tunes": fingerprints})
    for seed in range(context.budget.seeds):
        steps = [
            *((name, False) for name in ANY_RANK),
            *((name, True) for name in ANY_RANK if seed == 0),
            ("controls", False),
        ]
        for name, shuffled in steps:
            if any((line["name"], line["seed"], line["shuffled"]) == (name, seed, shuffled) for line in kept.lines()):
                continue
            context.reporter.check("What was measured is kept; the same command goes on.")
            words = f"{name}{' on shuffled labels' if shuffled else ''}, seed {seed}: asked about every rank"
            context.reporter.show(words, seed / context.budget.seeds)
            fit = None if name == "controls" else ours.refit(name, seed, shuffled)
            for alpha, by_rank in zoos.items():
                scores = controls(ours, by_rank, seed) if fit is None else {name: scored(fit, by_rank)}
                kept.add(name=name, seed=seed, shuffled=shuffled, alpha=alpha, scores=scores)
    rows = [
        {"model": "shuffled labels" if line["shuffled"] else name, "seed": line["seed"], "alpha": line["alpha"]}
        | {"rank": int(rank)}
        | scores
        for line in kept.lines()
        if line["seed"] < context.budget.seeds
        for name, by_rank in line["scores"].items()
        for rank, scores in by_rank.items()
    ]
    measured = pd.DataFrame(rows)
    order = [*ANY_RANK, KERNEL, *CONTROLS]
    parts = []
    for alpha, (column, metric) in product(zoos, (("accuracy", "accuracy"), ("test loss", "log_loss"))):
        for rank in zoos[alpha]:
            at = measured[(measured["rank"] == rank) & (measured["alpha"] == alpha)].groupby("model")[metric]
            values = {str(name): each.tolist() for name, each in at}
            row = with_half_widths(values, ours.test_share).reindex(order)
            row.loc[SHUFFLED, "std"] = np.nan  # its values are of several models, not of several splits
            row.index = pd.Index([title_of(name) for name in order])
            parts.append(cells(f"{column}, {alpha}: rank {rank}", row))
    return Result(
        "figure4",
        TITLE,
        pd.concat(parts, ignore_index=True),
        findings(measured, ours.test_share),
        notes(context, zoos),
        drawn(measured),
        settings([ours], context.budget) | {"fine-tunes": kept.about["fine-tunes"]},
    )


def sizes(by_rank: dict[int, Zoo]) -> str:
    """‖ΔW‖ over all modules and the last training loss, each averaged over LoRAs, by rank."""

    def mean_norm(zoo: Zoo) -> float:
        loras = [zoo.load(id) for id in zoo.ids]
        return float(np.sqrt(np.exp(2 * norm_features(stack(loras, shared_spec(loras)))).sum(1)).mean())

    return ", ".join(
        f"{mean_norm(zoo):.1f} and {zoo.labels['final_train_loss'].mean():.2f} at rank {rank}"
        for rank, zoo in by_rank.items()
    )


def notes(context: Context, zoos: Zoos) -> list[str]:
    lost = {
        f"{alpha}, rank {rank}": len(pd.read_csv(zoo.folder / "failures.csv"))
        for alpha, by_rank in zoos.items()
        for rank, zoo in by_rank.items()
        if (zoo.folder / "failures.csv").is_file()
    }
    return [
        f"Mean ‖ΔW‖ and mean loss at the end of fine-tuning: with {FIXED} {sizes(zoos[FIXED])}; with {BY_RANK}"
        f" {sizes(zoos[BY_RANK])}."
        + (f" Not finite, and left out: {', '.join(f'{n} at {at}' for at, n in lost.items())}." if lost else ""),
        (
            "Each model is trained on the attributes of Faces (rank 4), with the settings that table 3's search chose"
            f" for them. The LoRAs asked about are fine-tunes of {2 if context.small else PEOPLE} people who are not in"
            " Faces, each at all six ranks from the same pictures and hyperparameters, by the recipe of Faces with"
            f" another rank: once with alpha {KNOWN} at every rank, as the authors keep it, and once with alpha equal"
            " to the rank. They are made by this command and not committed. MLP + SVD keeps the four"
            " largest singular values."
        ),
        (
            f"{INTERVAL} Intervals speak of other trainings of the models, not of other people: the people asked about"
            f" are the same at every seed. {SHUFFLING}"
        ),
        (
            "The paper's figure has no numbers to stand beside these. Loss is the binary cross-entropy, averaged over"
            " attributes."
        ),
    ]


def fine_tunes(context: Context) -> Iterator[tuple[str, int, Zoo]]:
    """Kind of alpha, rank, and the zoo of fine-tunes of people whom Faces does not hold, made now as far as it is
    missing.
    """
    from lol_core.finetuning.image_zoos import ImageZoo  # imports diffusers

    faces = context.samples / "faces"
    recipe = CELEBA.with_settings(faces / "recipe.json")
    known = len(pd.read_csv(faces / "labels.csv"))
    count, machine, ranks = (2, Machine(workers=1, stack=2), RANKS[::2]) if context.small else (PEOPLE, MACHINE, RANKS)
    if context.small:
        recipe = replace(recipe, steps=(2,), batch_sizes=(1,))
    folder = context.work / f"ranks-{count}"
    people = Unseen(folder / "people", count, known, machine)
    people.draw(context.reporter)
    base = str(context.samples / "small-diffusion")
    for (kind, alpha), rank in product(ALPHAS.items(), ranks):
        own = None if rank == KNOWN else alpha  # at the known rank both are the recipe of Faces
        place = folder / (f"rank-{rank}" if own is None else f"rank-{rank}-alpha-{own:g}")
        zoo = ImageZoo(place, replace(recipe, rank=rank, alpha=own), base)
        part = context.reporter.part(0, 1, f"Rank {rank}, {kind}: ")
        yield kind, rank, people.fine_tuned(zoo, part)


@dataclass(frozen=True)
class Unseen:
    """`count` people beyond the first `known`, whose pictures lie in a folder, and what fine-tunes them."""

    folder: Path
    count: int
    known: int
    machine: Machine

    def draw(self, reporter: Reporter) -> None:
        """Their pictures, once."""
        if not (self.folder / "identity_CelebA.txt").exists():
            write_people(self.folder, self.count, int(self.machine.workers), reporter, first=self.known + 1)

    def fine_tuned(self, zoo: ImageZoo, reporter: Reporter) -> Zoo:
        """Their LoRAs, made now as far as they are missing."""
        for _ in zoo.build(self.folder, self.count, self.machine, reporter, after=self.known):
            pass
        sort_by_lora(zoo.labels)
        return Zoo.open(zoo.folder)


def batch_of(zoo: Zoo, fit: Fit) -> Batch:
    return stack([zoo.load(id) for id in zoo.ids], fit.spec)


@torch.no_grad()
def scored(fit: Fit, zoos: Mapping[Key, Zoo]) -> dict[Key, Scores]:
    """Zoo → scores of a fitted model."""
    fit.model.eval()

    def scores(zoo: Zoo) -> Scores:
        outputs = fit.model(batch_of(zoo, fit).to(fit.device)).float().cpu()
        return dict(fit.task.score(zoo.labels, fit.task.decode(outputs)))

    return {key: scores(zoo) for key, zoo in zoos.items()}


def controls(trials: Trials, zoos: Mapping[Key, Zoo], seed: int) -> dict[str, dict[Key, Scores]]:
    """Name → zoo → scores, of what was fitted to the same LoRAs of Faces: a constant, structure, norms, and the
    product kernel.
    """
    fit = trials.prepared("gl_net", trials.budget.settings(Variant.of("gl_net"))[0], seed)
    faces, known = trials.zoo, fit.split["train"] + fit.split["validation"]
    own = fit.factors.batch(known)
    y = fit.task.numbers(fit.task.encode(faces.labels.loc[known]))
    train, validation = np.arange(len(fit.split["train"])), np.arange(len(fit.split["train"]), len(known))
    scores: dict[str, dict[Key, Scores]] = {}
    for key, zoo in zoos.items():
        batch = batch_of(zoo, fit)
        ids = [*known, *(f"held out {id}" for id in zoo.ids)]
        both = pd.concat(
            [faces.labels.loc[known, list(fit.task.targets)], zoo.labels[list(fit.task.targets)]]
        ).set_axis(ids)
        features = {
            "structure only": pd.DataFrame(
                structure_features([*(faces.by_id[id] for id in known), *(zoo.by_id[id] for id in zoo.ids)]), index=ids
            ),
            "norms only": pd.DataFrame(norm_features(concatenate([own, batch])), index=ids),
        }
        predicted = control_predictions(fit.task, both, known, ids[len(known) :], features=features, seed=seed)
        products = kernels(own, batch)
        values, _ = kernel_ridge(products, train, validation, np.arange(len(known), len(ids)), y=y)
        predicted[KERNEL] = fit.task.from_numbers(values)
        for name, p in predicted.items():
            scores.setdefault(name, {})[key] = dict(fit.task.score(zoo.labels, p))
    return scores


def drawn(measured: pd.DataFrame) -> go.Figure:
    panels = [
        part[["model", "seed", "rank"]].assign(panel=f"{name}, {alpha}", value=part[metric])
        for alpha, name, metric in (
            (FIXED, "accuracy", "accuracy"),
            (BY_RANK, "accuracy", "accuracy"),
            (FIXED, "test loss", "log_loss"),
        )
        for part in [measured[measured["alpha"] == alpha]]
    ]
    long = pd.concat(panels).groupby(["model", "panel", "rank"], sort=False)["value"].agg(["mean", "std"]).reset_index()
    long["model"] = long["model"].map(title_of)
    return across(long.rename(columns={"rank": "x"}), "rank of the LoRAs asked about")


def findings(measured: pd.DataFrame, test_share: float) -> list[Finding]:
    def sure(gaps: pd.Series) -> Difference:
        return over_seeds(gaps.tolist(), test_share)

    def by_seed(metric: str, alpha: str) -> pd.DataFrame:
        part = measured[measured["alpha"] == alpha]
        return part.pivot_table(index=["model", "seed"], columns="rank", values=metric)

    accuracy, loss = by_seed("accuracy", FIXED), by_seed("log_loss", FIXED)
    unseen = [rank for rank in map(int, accuracy.columns) if rank not in (1, KNOWN)]

    def fall(model: str, ranks: list[int], table: pd.DataFrame = accuracy) -> pd.Series:
        """By seed: accuracy at the known rank, less the worst at others."""
        return table[KNOWN][model] - table[ranks].min(axis=1)[model]

    def rise(model: str) -> pd.Series:
        """By seed: the mean loss at unseen ranks, less that at the known one."""
        return loss[unseen].mean(axis=1)[model] - loss[KNOWN][model]

    titles = {name: FIVE[name].title for name in ANY_RANK}
    both = {name: sure(fall(name, unseen)) for name in ("dense", "gl_net")}
    first = {name: sure(fall(name, [1])) for name in ("dense", "gl_net")}
    worse = {
        f"{what} than {titles[name]}'s": sure(by("svd") - by(name))
        for what, by in (("loss rises more", rise), ("worst accuracy falls more", lambda model: fall(model, unseen)))
        for name in ("gl_net", "dense")
    }
    with_rank = by_seed("accuracy", BY_RANK)
    deeper = {name: sure(fall(name, unseen, with_rank) - fall(name, unseen)) for name in ("dense", "gl_net")}
    return [
        Finding(
            "MLP + Dense and GL-net generalise to ranks they have not seen.",
            weakest(verdict(sure(LOSS_OF_ACCURACY - fall(name, unseen))) for name in both),
            "; ".join(
                f"{titles[name]}: accuracy {accuracy[KNOWN][name].mean():.3f} at rank {KNOWN}, less"
                f" {with_interval(gap)} at the worst of ranks {', '.join(map(str, unseen))}"
                for name, gap in both.items()
            )
            + f"; to generalise is to lose less than {LOSS_OF_ACCURACY}.",
        ),
        Finding(
            "They do less well at rank 1.",
            weakest(verdict(gap) for gap in first.values()),
            "; ".join(f"{titles[name]} loses {with_interval(gap)} at rank 1" for name, gap in first.items()) + ".",
        ),
        Finding(
            "MLP + SVD does not generalise as well.",
            weakest(map(verdict, worse.values())),
            f"{'; '.join(f'{words} by {with_interval(gap)}' for words, gap in worse.items())}. At rank {KNOWN} it is at"
            f" {accuracy[KNOWN]['svd'].mean():.3f}, hardly above a constant"
            f" ({accuracy[KNOWN]['constant'].mean():.3f}), so it has little to lose.",
        ),
        Finding(
            "With alpha equal to the rank, models lose more at ranks they have not seen than with alpha fixed.",
            weakest(verdict(gap) for gap in deeper.values()),
            "; ".join(
                f"{titles[name]}: {fall(name, unseen, with_rank).mean():+.3f} lost with alpha = rank,"
                f" {fall(name, unseen).mean():+.3f} with alpha {KNOWN} (difference {with_interval(gap)})"
                for name, gap in deeper.items()
            )
            + ". Whether the rank costs this, or that these fine-tunes are spoilt, was not told apart: no model was"
            " trained on them.",
            in_paper=False,
        ),
    ]
