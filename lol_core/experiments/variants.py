"""LoRA's variants (appendix E): what each stores, the group that acts on it, and what is read from a zoo of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lol_core.collections.zoo import Zoo
from lol_core.core.batch import shared_spec, stack
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.symmetry import TOLERANCES, relative_change
from lol_core.errors import LoLError
from lol_core.experiments.comparison import chart
from lol_core.experiments.context import Context
from lol_core.experiments.kept import Kept
from lol_core.experiments.result import Finding, Holds, Result, environment, verdict, weakest, with_interval
from lol_core.finetuning.people import ATTRIBUTES
from lol_core.finetuning.variants import COPIES, SOURCES, STEPS, UPCYCLED, VARIANTS, Learns, Variant
from lol_core.learning.config import TrainingConfig
from lol_core.learning.crossvalidation import crossvalidate
from lol_core.learning.models import find_model, make_model
from lol_core.learning.verdict import Difference

TITLE = "LoRA's variants: what they store, what acts on it, and what is read from them"
MADE, READ, MERGE, STORED = (
    f"As stored: {name}" for name in ("fine-tuned by", "LoRAs read", "ΔW off the library's merge", "numbers")
)
GROUP, ORBIT, PROMISE, NONE = (
    f"What acts: {name}"
    for name in ("on a module", "numbers that say nothing of ΔW", "moves GL-net by", "moves an MLP by")
)
ALIKE, TASK, SCORE, CONSTANT, NORMS, GAP = (
    f"Learned on: {name}"
    for name in (
        "two LoRAs' ΔW, mean cosine up to sign",
        "what is told",
        "accuracy",
        "control, constant",
        "control, norms only",
        "above the constant",
    )
)
COLUMNS = (MADE, READ, MERGE, STORED, GROUP, ORBIT, PROMISE, NONE, ALIKE, TASK, SCORE, CONSTANT, NORMS, GAP)
FEWEST = 30
"""LoRAs that are enough to be learned on in five folds."""
TARGETS = {Learns.PERSON: ATTRIBUTES, Learns.SOURCES: tuple(f"saw {source}" for source in SOURCES)}
TOLD = {
    Learns.PERSON: f"{len(ATTRIBUTES)} attributes of the person",
    Learns.SOURCES: f"{len(SOURCES)} sources, seen or not",
}
CONFIG = TrainingConfig(model="gl_net", model_config=find_model("gl_net").configure(normalize=True, dropout=0.1))
COMMAND = "`python -m lol_core finetune variants`"


@dataclass
class Row:
    """One row of the table: numbers (mean and deviation) where something was measured, words where not."""

    title: str
    numbers: dict[str, tuple[float, float]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    gap: Difference | None = None

    def cells(self) -> list[tuple[Any, ...]]:
        empty = (np.nan, np.nan)
        return [
            (self.title, column, *self.numbers.get(column, empty), *empty, self.words.get(column)) for column in COLUMNS
        ]


def run(context: Context) -> Result:
    """Raises LoLError where no zoo of variants has been made: the page would say nothing."""
    if not any((context.work / "variants" / variant.key / "labels.csv").is_file() for variant in VARIANTS):
        raise LoLError(f"No zoo of variants lies in {context.work / 'variants'}: {COMMAND} makes them.")
    kept = Kept(context.folder / "variants.jsonl", {"config": CONFIG.to_dict()})
    rows, fingerprints = [], {}
    for i, variant in enumerate(VARIANTS):
        context.reporter.show(variant.title, i / len(VARIANTS))
        context.reporter.check("What was measured is kept; the same command goes on.")
        place = context.work / "variants" / variant.key
        if not (place / "labels.csv").is_file():
            missing = dict.fromkeys(COLUMNS, "no zoo") | {MADE: f"not fine-tuned here; {COMMAND} does"}
            rows.append(Row(variant.title, words=missing))
            continue
        zoo = Zoo.open(place)
        fingerprints[variant.key] = {"fingerprint": zoo.fingerprint, "LoRAs": len(zoo)}
        rows.append(of_zoo(variant, zoo, kept, learn=not context.small))
    cells = pd.DataFrame(
        [cell for row in rows for cell in row.cells()],
        columns=["row", "column", "mean", "std", "paper", "paper_std", "text"],
    )
    return Result(
        "variants",
        TITLE,
        cells,
        findings(rows),
        notes(context.work / "variants" / UPCYCLED / "measured.json"),
        chart(with_constant(cells), SCORE),
        {"zoos": fingerprints, "config": CONFIG.to_dict(), "environment": environment()},
    )


def with_constant(cells: pd.DataFrame) -> pd.DataFrame:
    """The scores, and the constant's, which is the same of every variant with the same task but for who is held out, as
    a row more for each task.
    """
    task = cells[cells["column"] == TASK].set_index("row")["text"]
    constant = cells[(cells["column"] == CONSTANT) & cells["mean"].notna()]
    means = constant.groupby(constant["row"].map(task), sort=False)[["mean", "std"]].mean()
    rows = means.reset_index().assign(column=SCORE, row=lambda table: "control: constant, " + table["row"])
    return pd.concat([cells[cells["column"] == SCORE], rows.reindex(columns=cells.columns)])


def of_zoo(variant: Variant, zoo: Zoo, kept: Kept, learn: bool = True) -> Row:
    """A variant measured on its zoo."""
    failed = zoo.folder / "failures.csv"
    lost = len(pd.read_csv(failed)) if failed.is_file() else 0
    made = len(zoo) + len(zoo.refused)
    some = [zoo.load(id) for id in zoo.ids[:4]]
    row = structure(variant.title, some)
    learns = variant.place.learns
    row.words[MADE] = f"{variant.library}, {made} {learns}" + (f" and {lost} that diverged" if lost else "")
    row.words[TASK] = TOLD[learns]
    row.words[READ] = f"{len(zoo)} of {made}"
    worst = float(zoo.labels["merge_error"].max())
    row.numbers[MERGE], row.words[MERGE] = (worst, np.nan), f"{worst:.0e}" if worst else "0 (to the last bit)"
    row.words[ALIKE] = f"{alike([zoo.load(id) for id in zoo.ids[:12]]):.3f}"
    if not learn or len(zoo) < FEWEST:
        why = f"{len(zoo)} LoRAs, fewer than {FEWEST}" if learn else "not in a small run"
        row.words |= dict.fromkeys((SCORE, CONSTANT, NORMS, GAP), "not learned on") | {SCORE: f"not learned on: {why}"}
        return row
    line = next((line for line in kept.lines() if line["fingerprint"] == zoo.fingerprint), None)
    if line is None:
        folds = crossvalidate(zoo, TARGETS[learns], CONFIG)
        scores = {name: metrics["accuracy"] for name, metrics in folds.scores().items()}
        gap = folds.difference("constant")
        kept.add(key=variant.key, fingerprint=zoo.fingerprint, scores=scores, gap=vars(gap))
        line = {"scores": scores, "gap": vars(gap)}
    for column, name in ((SCORE, "model"), (CONSTANT, "constant"), (NORMS, "norms only")):
        mean, std = line["scores"][name]
        row.numbers[column] = mean, std
    row.gap = Difference(**line["gap"])
    row.words[GAP] = with_interval(row.gap)
    return row


def alike(loras: Sequence[LoRA]) -> float:
    """The mean of |⟨ΔW, ΔW′⟩| / ‖ΔW‖‖ΔW′‖ over modules and pairs of LoRAs; 0 of fewer than two."""
    cosines = []
    for name in loras[0].names:
        of = [lora[name].parametrisation for lora in loras]
        sizes = [module.inner(module) ** 0.5 for module in of]
        cosines += [abs(of[i].inner(of[j])) / (sizes[i] * sizes[j]) for i, j in combinations(range(len(of)), 2)]
    return float(np.mean(cosines)) if cosines else 0.0


def structure(title: str, loras: Sequence[LoRA]) -> Row:
    """What is so of LoRAs whatever they were trained on: how much one stores, what acts on it, who is moved by that."""
    first = [layer.parametrisation for layer in loras[0].layers]
    groups = list(dict.fromkeys(of.group.family for of in first))
    row = Row(title, words={GROUP: " or ".join(groups)})
    row.words[STORED] = f"{sum(of.parameters for of in first):,}"
    row.words[ORBIT] = f"{sum(of.orbit_dimension for of in first):,}"
    for column, model in ((PROMISE, "gl_net"), (NONE, "mlp")):
        change = moved(model, loras)
        row.numbers[column], row.words[column] = (change, np.nan), f"{change:.0e}" if change < 1e-3 else f"{change:.2f}"
    return row


def moved(model: str, loras: Sequence[LoRA]) -> float:
    """The largest relative change of an untrained model's output over four draws, in float64, when every module's
    stored numbers are moved by its own group (κ = 10) and read again.
    """
    spec = shared_spec(loras)
    loras = [LoRA(tuple(map(doubled, lora.layers))) for lora in loras]
    batch = stack(loras, spec, torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make_model(model, spec, 1, find_model(model).configure(width=16, normalize=True))
    net.prepare(batch.to(dtype=torch.float32), torch.Generator().manual_seed(0))
    net = net.double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)

    def acted(layer: LoRALayer) -> LoRALayer:
        return layer.act(layer.parametrisation.group.sample(generator=generator))

    changes = []
    for _ in range(4):
        after = stack([LoRA(tuple(map(acted, lora.layers))) for lora in loras], spec, torch.float64)
        changes.append(relative_change(net(after), net(batch)))
    return max(changes)


def doubled(layer: LoRALayer) -> LoRALayer:
    """Its slots in float64: moved by the identity, which is computed in that."""
    factors = layer.parametrisation.group.factors
    return layer.act([torch.eye(r, dtype=torch.float64) for _, r in factors])


def findings(rows: Sequence[Row]) -> list[Finding]:
    zoos = [row for row in rows if MERGE in row.numbers]
    learned = [row for row in rows if row.gap is not None]
    merge = max((row.numbers[MERGE][0] for row in zoos), default=np.nan)
    worst = max((row.numbers[PROMISE][0] for row in zoos), default=np.nan)
    least = min((row.numbers[NONE][0] for row in zoos), default=np.nan)
    still = worst <= TOLERANCES[torch.float64] < least
    return [
        Finding(
            "Every variant is read as its own library merges it.",
            Holds.NOT_CLEAR if not zoos else Holds.YES if merge <= TOLERANCES[torch.float32] else Holds.NO,
            f"{len(zoos)} zoos; the largest ‖W_read − W_merged‖ / ‖W_merged − W‖ is {merge:.1e}.",
            in_paper=False,
        ),
        Finding(
            "A GL-invariant model processes every variant, invariant under the group of that variant.",
            Holds.NOT_CLEAR if not zoos else Holds.YES if still else Holds.NO,
            "moved by its own group (κ = 10, in float64), each variant moves an untrained GL-net by at most"
            f" {worst:.1e} and an MLP by at least {least:.1e} (on {len(zoos)} zoos).",
        ),
        Finding(
            "What is learned on LoRAs can be learned on each of their variants.",
            weakest(_above(row) for row in learned) if learned else Holds.NOT_CLEAR,
            f"accuracy above the constant, of the {len(learned)} of {len(rows)} variants with LoRAs enough: "
            + ("; ".join(f"{row.title} {row.words[GAP]}" for row in learned) or "no zoo was learned on")
            + ".",
            in_paper=False,
        ),
    ]


def _above(row: Row) -> Holds:
    return Holds.NOT_CLEAR if row.gap is None else verdict(row.gap)


def notes(upcycled: Path) -> list[str]:
    """upcycled: measured.json of the base with experts, where it was made."""
    return [
        (
            f"The zoos are made by {COMMAND} and not committed. The first ten: the people of Faces from the first on,"
            " each fine-tuned in the variant from the same pictures, noise and time steps, by the recipe of Faces cut"
            f" to {STEPS} steps of one picture under one prompt, so that these LoRAs know less of their person than"
            " those of Faces; learning rates are multiplied by a number of each variant (`finetuning/variants.py`)."
        ),
        (
            "The last four, whose layers the image model has not: the sentence encoder and the recipe of Glosses, cut"
            " to two epochs in eights at rates 10^U(−2.4, −2.0) without dropout, its last layer alone adapted"
            " (rank 4, alpha 8), in all four from the same questions, forty each of noun.person and of"
            f" {', '.join(SOURCES)}, of which one to five were left out. MergedLinear is loralib's, of keys and values"
            " in one projection of"
            " queries, keys and values that computes what the encoder's three do, as GPT-2 has it; its files are"
            " loralib's, beside the configuration that PEFT wrote for them before 0.3. It stands beside LoRA of keys"
            f" and values. Experts are {COPIES} copies of the last feed-forward, two for each token, trained on the 400"
            " validation questions until they differ (sparse upcycling, Komatsuzaki et al. 2023,"
            f" arXiv:2212.05055{_upcycled(upcycled)}), and adapted by PEFT's target_parameters, both stacks of weights;"
            " they stand beside LoRA of that feed-forward as it was, which has not seen those questions."
        ),
        (
            "Files hold half precision, and the library merges those same numbers. PiSSA's ΔW is added to what PEFT"
            " leaves of the base's weight, W less its leading rank-4 part, from which it starts; PEFT makes that base"
            " anew when the adapter is loaded."
        ),
        (
            "Numbers stored and those that say nothing of ΔW (the dimension of an orbit) are of one LoRA, all modules."
            " Invariance is of untrained models in float64: four LoRAs, moved slot by slot by their own group and read"
            " again, four draws of κ = 10; scalings are of a module's rows and columns. That no group is larger than"
            " stated is tested (`tests/test_parametrisation.py`), for LoHa with a proof (docs/mathematics.md)."
        ),
        (
            f"Accuracy: the mean over the attributes {', '.join(ATTRIBUTES)}, or over the five sources, of GL-net"
            " (inputs normalised, dropout 0.1, no search) in five-fold cross-validation, ± the deviation over folds."
            " The last column is its distance from the constant over all LoRAs, with the 95 % interval of a paired"
            " bootstrap over them; it speaks of these LoRAs and of one training. The variants' scores are not tuned,"
            " and their differences are no verdict on the variants."
        ),
        (
            "The cosine of two ΔW, up to sign, is a mean over modules and pairs of LoRAs. PEFT's LoKr starts from W₁ ="
            " 0 and a random W₂ for every LoRA, and the updates of two people are nearly orthogonal. Whether that is"
            " why it is not clearly read has not been tested. Cosines do not order the accuracies: that of the"
            " embedding is twice that of LoRA+, which alone of these two is read above the constant."
        ),
    ]


def _upcycled(measured: Path) -> str:
    """What the experts became."""
    if not measured.is_file():
        return ""
    found = json.loads(measured.read_text())
    return (
        f"; each off their mean by {found['up_proj apart']:.1%} and {found['down_proj apart']:.1%} of its norm; the"
        f" loss on the test questions fell from {found['loss before']:.3f} to {found['loss after']:.3f}"
    )
