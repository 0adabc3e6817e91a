"""Models that know the LoRAs of one base model, asked about LoRAs of others with the same shapes."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from safetensors.torch import load_file
from torch import Tensor

from lol_core.collections.zoo import Zoo
from lol_core.core.batch import Batch, shared_spec, stack
from lol_core.core.lora import LoRA
from lol_core.experiments.comparison import INTERVAL, SHUFFLING, cells, settings, title_of, with_half_widths
from lol_core.experiments.context import Context
from lol_core.experiments.figure4 import LOSS_OF_ACCURACY, MACHINE, Unseen, controls, scored
from lol_core.experiments.kept import Kept, Scores
from lol_core.experiments.kernel import kernel_ridge, kernels
from lol_core.experiments.paper import FIVE
from lol_core.experiments.result import Finding, Result, verdict, weakest, with_interval
from lol_core.experiments.search import SHUFFLED, Variant
from lol_core.experiments.table3 import ATTRIBUTES_QUESTION
from lol_core.experiments.trials import CONTROLS, KERNEL, Trials
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.recipes import CELEBA
from lol_core.insight.plots import across
from lol_core.learning.answers import Answers
from lol_core.learning.bootstrap import difference
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.models.gram import gram
from lol_core.learning.tasks import Task
from lol_core.learning.verdict import Difference, over_seeds

TITLE = "Across base models: Faces' models on LoRAs of its base's relatives"
PEOPLE, FOLDS = 200, 5
PICTURES = range(100_000, 104_000)
"""Numbers of pictures that the base of Faces was not trained on."""
ZOOS, CONTROLS_LINE = "zoos", "controls"
"""Names of lines: of what the zoos are, and of what is no model."""
LEARNT_THERE = f"{KERNEL}, learnt on that base's LoRAs"
CHANGED = {
    "moved": "distance of adapted weights, of their norm",
    "loss": "mean loss at the end of fine-tuning",
    "size": "mean ‖ΔW‖",
    "same person": "cosine of a person's ΔW there and on Faces' base",
    "two people": "cosine of two people's",
    "unlike": "called unlike those that GL-net knows",
    "accuracy": "accuracy of the committed GL-net",
    "lost": "by how much that is less than on its own base",
}
METRICS = {"accuracy": "accuracy", "AUC": "auc", "test loss": "log_loss"}


@dataclass(frozen=True)
class Relative:
    """A base with the shapes, the autoencoder and the tokenizer of the one that Faces was fine-tuned from. steps: of
    training, further from its weights or, `anew`, from nothing; with none it is that base itself.
    """

    name: str
    steps: int = 0
    anew: bool = False


OWN, NEAR, FAR, OTHER = RELATIVES = (
    Relative("its own base"),
    Relative("300 steps further", 300),
    Relative("3,000 steps further", 3000),
    Relative("another, from nothing", 2000, anew=True),
)


class Zoos:
    """The same people's LoRAs on every relative, made when they are first asked for."""

    def __init__(self, context: Context):
        self.context = context
        self.count = 2 if context.small else PEOPLE
        self.folder = context.work / f"bases-{self.count}"
        self.recipe = CELEBA.with_settings(context.samples / "faces" / "recipe.json")

    def place(self, name: str) -> Path:
        return self.folder / name.replace(",", "").replace(" ", "-")

    @cached_property
    def bases(self) -> dict[str, Path]:
        """Relative → its pipeline's folder, trained now as far as it is missing."""
        from lol_core.finetuning.base_model import BaseSettings  # imports diffusers
        from lol_core.finetuning.relatives import train_relative

        own, small = self.context.samples / "small-diffusion", self.context.small
        places = {OWN.name: own}
        for seed, relative in enumerate(RELATIVES[1:], 1):
            places[relative.name] = self.place(relative.name) / "base"
            train_relative(
                own,
                places[relative.name],
                self.place(relative.name) / "training",
                self.context.samples / "pictures" / "drawings.json",
                pictures=PICTURES[:64] if small else PICTURES,
                settings=BaseSettings(steps=2 if small else relative.steps, seed=seed),
                anew=relative.anew,
                reporter=self.context.reporter.part(0, 1, f"Base {relative.name}: "),
            )
        return places

    @cached_property
    def made(self) -> dict[str, Zoo]:
        """Relative → its zoo."""
        from lol_core.finetuning.image_zoos import ImageZoo  # imports diffusers

        recipe, machine = self.recipe, MACHINE
        if self.context.small:
            recipe, machine = replace(recipe, steps=(2,), batch_sizes=(1,)), Machine(workers=1, stack=2)
        known = len(pd.read_csv(self.context.samples / "faces" / "labels.csv"))
        people = Unseen(self.folder / "people", self.count, known, machine)
        people.draw(self.context.reporter)
        zoos = {}
        for name, base in self.bases.items():
            zoo = ImageZoo(self.place(name) / "zoo", recipe, str(base))
            part = self.context.reporter.part(0, 1, f"LoRAs of {name}: ")
            zoos[name] = people.fine_tuned(zoo, part)
        return zoos

    def described(self) -> dict[str, dict[str, Any]]:
        """Relative → fingerprint of its zoo; how far the adapted weights of the base lie from those of Faces' base, by
        their norm; the last training loss; ‖ΔW‖; the mean cosine of a person's ΔW there and on Faces' base, and of two
        people's; the share of LoRAs that Faces' committed GL-net calls unlike those it was trained on; its accuracy,
        and by how much it is less than on its own base: value, lower and upper end of the 95 % interval over people.
        """
        checkpoint = Checkpoint.load(self.context.samples / "checkpoints" / "faces-attributes-gl-net")
        batches = {name: _batch(zoo) for name, zoo in self.made.items()}
        weights = {name: self._adapted(base) for name, base in self.bases.items()}
        sizes = {name: np.sqrt(np.diag(gram(batch))) for name, batch in batches.items()}
        own, task = OWN.name, checkpoint.task
        right = {
            name: task.resampled("accuracy", zoo.labels, checkpoint.predict(_loras(zoo)))
            for name, zoo in self.made.items()
        }
        found = {}
        for name, batch in batches.items():
            cosines = gram(batch, others=batches[own]) / np.outer(sizes[name], sizes[own])
            same = float(np.diag(cosines).mean())
            found[name] = {
                "fingerprint": self.made[name].fingerprint,
                "moved": float((weights[name] - weights[own]).norm() / weights[own].norm()),
                "loss": float(self.made[name].labels["final_train_loss"].mean()),
                "size": float(sizes[name].mean()),
                "same person": same,
                "two people": float((cosines.sum() - np.trace(cosines)) / (cosines.size - len(cosines))),
                "unlike": float(Answers.of(checkpoint, self.made[name]).marks["outside"].mean()),
                "accuracy": float(right[name](np.ones((1, self.count)))[0]),
                "lost": astuple(difference(right[own], right[name], self.count, seed=0)),
            }
        return found

    def _adapted(self, base: Path) -> Tensor:
        """The weights that the LoRAs adapt, in one vector."""
        weights = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
        endings = tuple(f"{target}.weight" for target in self.recipe.targets)
        return torch.cat([weights[name].flatten().float() for name in sorted(weights) if name.endswith(endings)])


def _loras(zoo: Zoo) -> list[LoRA]:
    return [zoo.load(id) for id in zoo.ids]


def _batch(zoo: Zoo) -> Batch:
    loras = _loras(zoo)
    return stack(loras, shared_spec(loras))


def learnt_there(zoo: Zoo, task: Task) -> Scores:
    """Scores of ridge regression on the product kernel of a zoo, every LoRA told by what was fitted to the others:
    `FOLDS` folds, of which one is asked and one validates.
    """
    products = kernels(_batch(zoo))
    y = task.numbers(task.encode(zoo.labels))
    folds = np.array_split(np.random.default_rng(0).permutation(len(y)), min(FOLDS, len(y)))
    values = np.empty_like(y)
    for i, asked in enumerate(folds):
        validation = folds[i - 1]
        known = np.setdiff1d(np.arange(len(y)), np.concatenate([asked, validation]))
        known = known if len(known) else validation
        values[asked], _ = kernel_ridge(products, known, validation, asked, y=y)
    return dict(task.score(zoo.labels, task.from_numbers(values)))


def run(context: Context) -> Result:
    ours = context.trials(ATTRIBUTES_QUESTION)
    zoos = Zoos(context)
    about = {"relatives": [asdict(each) for each in RELATIVES], "people": zoos.count}
    kept = Kept(context.folder / "bases.jsonl", ours.kept.about | about)
    measure(ours, zoos, kept)
    lines = [line for line in kept.lines() if line["seed"] < context.budget.seeds]
    found = next(line["found"] for line in lines if line["name"] == ZOOS)
    measured = pd.DataFrame(
        {"model": "shuffled labels" if line["shuffled"] else name, "seed": line["seed"], "base": base} | scores
        for line in lines
        for name, by_base in line["scores"].items()
        for base, scores in by_base.items()
    )
    order = [*FIVE, KERNEL, *CONTROLS, LEARNT_THERE]
    lost = {base: Difference(*np.array(each["lost"], float)) for base, each in found.items()}  # NaN is null there
    parts = []
    for base, each in found.items():
        values = {title: (each[name], np.nan) for name, title in CHANGED.items() if name != "lost"}
        values[CHANGED["lost"]] = lost[base].value, (lost[base].high - lost[base].low) / 2
        parts.append(cells(f"bases: {base}", pd.DataFrame.from_dict(values, "index", columns=["mean", "std"])))
    for title, metric in METRICS.items():
        for base in found:
            of_base = measured[measured["base"] == base].groupby("model")[metric]
            row = with_half_widths({str(name): each.tolist() for name, each in of_base}, ours.test_share).reindex(order)
            row.loc[SHUFFLED, "std"] = np.nan  # its values are of several models, not of several splits
            row.index = pd.Index([name if name == LEARNT_THERE else title_of(name) for name in order])
            parts.append(cells(f"{title}: {base}", row))
    return Result(
        "bases",
        TITLE,
        pd.concat(parts, ignore_index=True),
        findings(measured, ours.test_share),
        notes(zoos, lost),
        drawn(measured, list(found)),
        settings([ours], context.budget) | {"fine-tunes": {base: each["fingerprint"] for base, each in found.items()}},
    )


def measure(ours: Trials, zoos: Zoos, kept: Kept) -> None:
    """Add the lines that are missing; where none is, nothing is trained."""
    there = {(line["name"], line["seed"], line["shuffled"]) for line in kept.lines()}
    reporter = zoos.context.reporter
    if (ZOOS, 0, False) not in there:
        task = ours.prepared("gl_net", ours.budget.settings(Variant.of("gl_net"))[0], 0).task
        scores = {LEARNT_THERE: {name: learnt_there(zoo, task) for name, zoo in zoos.made.items()}}
        kept.add(name=ZOOS, seed=0, shuffled=False, scores=scores, found=zoos.described())
    for seed in range(zoos.context.budget.seeds):
        shuffling = [(name, True) for name in FIVE if seed == 0]
        for name, shuffled in (*((name, False) for name in FIVE), *shuffling, (CONTROLS_LINE, False)):
            if (name, seed, shuffled) in there:
                continue
            reporter.check("What was measured is kept; the same command goes on.")
            words = f"{name}{' on shuffled labels' if shuffled else ''}, seed {seed}: asked about every base"
            reporter.show(words, seed / zoos.context.budget.seeds)
            scores = (
                controls(ours, zoos.made, seed)
                if name == CONTROLS_LINE
                else {name: scored(ours.refit(name, seed, shuffled), zoos.made)}
            )
            kept.add(name=name, seed=seed, shuffled=shuffled, scores=scores)


def notes(zoos: Zoos, lost: dict[str, Difference]) -> list[str]:
    return [
        f"LoRAs of {zoos.count} people who are not in Faces, by its recipe, on four bases of one architecture: from the"
        " same pictures, hyperparameters and starts of A. Two are the base of Faces, U-Net and text encoder, trained"
        f" further on {len(PICTURES):,} new pictures of the same kinds, at a rate that begins at 1e-3 again; the last"
        f" was trained on these from nothing, for {OTHER.steps:,} steps. All have the same shapes, and one autoencoder"
        " and tokenizer, so a model that reads LoRAs finds nothing amiss. One base of each kind was trained, once, and"
        " the one from nothing knows less than the others, as the loss of its fine-tunes says. Bases of other widths"
        " were not asked: a map of n rows does not read them. The LoRAs are made by this command and not committed.",
        "How far the adapted weights of a base"
        f" ({', '.join(zoos.recipe.targets)}) lie from those of Faces' base stands beside the mean ‖ΔW‖ and the mean"
        " cosine of a person's ΔW there and on Faces' base, and of two people's. Unlike those that a model knows is"
        " what Predictions and `audit` call a LoRA that lies farther from the training LoRAs of the committed GL-net"
        " than 99 % of those held out, in its latent or in its norms; about 2 % would be by chance.",
        "Each model is trained on the attributes of Faces, with the settings that table 2's grid chose for them at each"
        f" seed. The last row is no model of Faces: the same ridge regression, fitted to {PEOPLE * 3 // FOLDS} of a"
        f" base's own LoRAs at a time and asked about others of that base, by {FOLDS} folds, once: at least so much is"
        " there to be told. AUC does not ask where an answer turns from no to yes: at .5 nothing is told, whatever a"
        " model is sure of.",
        "The committed GL-net is one training more, with settings of its own, asked after the rest was seen. On"
        f" its base trained {FAR.name} it loses {with_interval(lost[FAR.name])}, {NEAR.name}"
        f" {with_interval(lost[NEAR.name])}, here over people (paired bootstrap): that a model tells attributes as well"
        " there holds on the mean of trainings, not for each of them.",
        f"{INTERVAL} Intervals speak of other trainings of the models, not of other people or bases: those asked about"
        f" are the same at every seed. They are not widened for the number of findings. {SHUFFLING} All scores are"
        " means over the five attributes, of which a smile can hardly be told: what the others lose is a quarter more."
        " Loss is the binary cross-entropy.",
    ]


def drawn(measured: pd.DataFrame, order: list[str]) -> go.Figure:
    shown = [*FIVE, KERNEL, "constant", LEARNT_THERE]
    measured = measured[measured["model"].isin(shown)].sort_values("model", key=lambda names: names.map(shown.index))
    long = pd.concat(
        measured[["model", "seed", "base"]].assign(panel=title, value=measured[metric])
        for title, metric in METRICS.items()
        if title != "AUC"
    )
    long = long.groupby(["model", "panel", "base"], sort=False)["value"].agg(["mean", "std"]).reset_index()
    long = long.assign(model=[name if name == LEARNT_THERE else title_of(name) for name in long["model"]])
    place = {base: float(2**i) for i, base in enumerate(order)}
    ticks = {place[base]: base.replace(" ", "<br>", 1) for base in order}
    return across(long.assign(x=long["base"].map(place)), "base of the LoRAs asked about", ticks=ticks)


def findings(measured: pd.DataFrame, test_share: float) -> list[Finding]:
    accuracy = measured.pivot_table(index=["model", "seed"], columns="base", values="accuracy")
    auc = measured[measured["base"] == OTHER.name].groupby("model")["auc"].mean()

    def sure(gaps: pd.Series) -> Difference:
        return over_seeds(gaps.tolist(), test_share)

    def fall(model: str, base: Relative) -> pd.Series:
        return (accuracy[OWN.name] - accuracy[base.name])[model]

    title = FIVE["gl_net"].title
    stays = [
        Finding(
            f"{title} tells attributes as well on LoRAs of its base trained {base.name}.",
            verdict(sure(LOSS_OF_ACCURACY - fall("gl_net", base))),
            f"accuracy {accuracy[OWN.name]['gl_net'].mean():.3f} on its own base, less"
            f" {with_interval(sure(fall('gl_net', base)))} there; as well is to lose less than {LOSS_OF_ACCURACY}.",
            in_paper=False,
        )
        for base in (NEAR, FAR)
    ]
    above = sure(accuracy[OTHER.name]["gl_net"] - accuracy[OTHER.name]["constant"])
    spectra = sure(fall("gl_net", OTHER) - fall("svd", OTHER))
    left = sure(accuracy[OTHER.name]["svd"] - accuracy[OTHER.name]["constant"])
    return [
        *stays,
        Finding(
            f"On LoRAs of another base of the same shapes {title} is still better than a constant.",
            verdict(above),
            f"by {with_interval(above)} in accuracy, with an AUC of {auc['gl_net']:.3f}; what is"
            f" learnt on that base's own LoRAs reaches {accuracy[OTHER.name][LEARNT_THERE].mean():.3f}, a constant"
            f" {accuracy[OTHER.name]['constant'].mean():.3f}.",
            in_paper=False,
        ),
        Finding(
            f"{FIVE['svd'].title}, which knows no directions of a base, loses less there than {title} and"
            " stays above a constant.",
            weakest([verdict(spectra), verdict(left)]),
            f"{title} loses {fall('gl_net', OTHER).mean():+.3f}, {FIVE['svd'].title}"
            f" {fall('svd', OTHER).mean():+.3f} (difference {with_interval(spectra)}), and is by"
            f" {with_interval(left)} from a constant there; it has little to lose, being at"
            f" {accuracy[OWN.name]['svd'].mean():.3f} on its own base, where a constant is at"
            f" {accuracy[OWN.name]['constant'].mean():.3f}.",
            in_paper=False,
        ),
    ]
