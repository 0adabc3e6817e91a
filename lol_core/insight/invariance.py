"""The invariance study: one LoRA under other factors, and what models make of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.core.batch import Batch, WeightSpec, shared_spec, stack
from lol_core.core.groups import GROUPS, PERMUTATION, Group, O
from lol_core.core.header import ModuleHeader
from lol_core.core.lora import LoRA
from lol_core.core.parametrisation import Parametrisation
from lol_core.core.progress import SILENT, Reporter
from lol_core.core.symmetry import (
    TOLERANCES,
    Carried,
    act,
    carried,
    for_spec,
    product_change,
    promises,
    relative_change,
    sample_for,
)
from lol_core.errors import LoLError
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.memory import BYTES_USED, check_memory, memory_needed
from lol_core.learning.models import LoLModel, make_model
from lol_core.learning.tasks import Task

NUMBERS_AT_ONCE = 20_000_000
"""Numbers that the copies of a LoRA take together when many R act on it at once."""
LARGEST = 2**28
"""Weights of an untrained model that is shown: a gigabyte, as much as is read in a fraction of a second for every R."""
CORNER = 48
"""Rows of U and V that are shown."""


class Outcome(StrEnum):
    """What a change of the prediction says of a model, given what it promises."""

    BROKEN = "BROKEN"
    HOLDS = "holds"
    MOVES = "moves, as it may"
    STILL = "hardly moved"


@dataclass(frozen=True, eq=False)
class Examined:
    """A model of the study; task None: untrained, so that its predictions mean nothing."""

    title: str
    model: LoLModel
    task: Task | None = None

    @property
    def short(self) -> str:
        return re.sub(r" → .*\((seed \d+)\)", r", \1", self.title).removesuffix(" (untrained)")

    @property
    def promise(self) -> str:
        return "nothing" if self.model.symmetry is None else self.model.symmetry.title

    @property
    def outputs(self) -> list[str]:
        return ["untrained output"] if self.task is None else list(self.task.columns)

    @property
    def numbers(self) -> int:
        """Read or formed for one LoRA, the more of both."""
        return max(self.model.n_features(), self.model.spec.parameters)

    def dial_ends(self, output: int, before: float) -> tuple[float, float]:
        """Where predictions mostly lie, and where it starts; untrained outputs around the start."""
        if self.task is None:
            reach = max(abs(before), 0.1)
            return before - reach, before + reach
        low, high = self.task.span(output)
        return min(low, before), max(high, before)

    def outcome(self, change: float, group: Group, dtype: torch.dtype) -> Outcome:
        moved = change > TOLERANCES[dtype]
        if promises(self.model.symmetry, group):
            return Outcome.BROKEN if moved else Outcome.HOLDS
        return Outcome.MOVES if moved else Outcome.STILL


@dataclass(frozen=True)
class Dial:
    """One model's prediction before and after R on a scale from low to high."""

    title: str
    unit: str
    low: float
    high: float
    before: float
    after: float
    verdict: str
    keeps: bool

    def place(self, value: float) -> float:
        """Where a value is on the scale, 0 at its low end and 1 at its high one; one beyond an end rests there."""
        return float(np.clip((value - self.low) / ((self.high - self.low) or 1), 0, 1))


@dataclass(frozen=True)
class Turn:
    """What one R did. table: a row for each model that could read the LoRA; problems: why others could not; moved: how
    far U, V and ΔW moved, relative; condition: the largest κ(R) of the modules.
    """

    before: Batch
    after: Batch
    table: pd.DataFrame
    dials: tuple[Dial, ...]
    problems: tuple[str, ...]
    moved: Mapping[str, float]
    condition: float

    @property
    def still(self) -> list[str]:
        """The models that did not take it for another LoRA."""
        return [dial.title for dial in self.dials if dial.keeps]


@dataclass(frozen=True)
class Passage:
    """R on its way through a model. moved: how far each of the names moved; off: how far it is from R acting on it,
    None where R does not act; stages: the equivariant ones among them.
    """

    names: tuple[str, ...]
    moved: tuple[float, ...]
    off: tuple[float | None, ...]
    stages: tuple[Carried, ...]

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"stage": self.names, "moved by R": self.moved, "differs from R ⋆ F(x)": self.off})

    def carrying(self, tolerance: float) -> int:
        """How many stages give R ⋆ F(x)."""
        return sum(stage.off <= tolerance for stage in self.stages)


@dataclass(frozen=True)
class Study:
    """One LoRA and the models that read it. problems: why others do not."""

    lora: LoRA
    models: tuple[Examined, ...]
    problems: tuple[str, ...] = ()
    _batches: dict[tuple[int, torch.dtype], Batch] = field(default_factory=dict)
    _twins: dict[str, LoLModel] = field(default_factory=dict)
    _first: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, lora: LoRA, trained: Mapping[str, Checkpoint], fresh: Mapping[str, type[LoLModel]]) -> Study:
        """trained: models by title; fresh: kinds, by name, of models with random weights to show beside them."""
        models, problems = [], []
        for title, checkpoint in trained.items():
            if reasons := checkpoint.spec.misfits(lora):
                problems.append(f"{title} cannot read this LoRA: {' '.join(reasons)}")
                continue
            try:
                checkpoint.model.check_input(stack([lora], checkpoint.spec))
                models.append(Examined(title, checkpoint.model, checkpoint.task))
            except LoLError as error:
                problems.append(f"{title}: {error}")
        untrained, left_out = fresh_models(lora, fresh)
        return cls(lora, (*models, *untrained), (*problems, *left_out))

    @property
    def spec(self) -> WeightSpec:
        return shared_spec([self.lora])

    @property
    def own_groups(self) -> str:
        """What acts on the numbers of this file, module by module, in words."""
        modules: dict[str, list[Parametrisation]] = {}
        for layer in self.lora.layers:
            modules.setdefault(layer.parametrisation.group.family, []).append(layer.parametrisation)
        parts = [
            f"{title} ({len(own)} module{'s' * (len(own) > 1)}: {sum(of.orbit_dimension for of in own):,} of"
            f" {sum(of.parameters for of in own):,} numbers say nothing of ΔW)"
            for title, own in modules.items()
        ]
        return f"On each module acts {'; '.join(parts)}. R is how that moves the pair U, V that models read."

    @property
    def equivariant(self) -> list[Examined]:
        """The models whose inside can be looked at."""
        return [examined for examined in self.models if examined.model.equivariant]

    def cost(self, count: int) -> int:
        """Numbers read for so many draws from each group."""
        return count * len(GROUPS) * sum(examined.numbers for examined in self.models)

    def start(self, dtype: torch.dtype, spec: WeightSpec | None = None) -> Batch:
        """The LoRA as a batch of one, by its own modules or those of a model."""
        spec = spec or self.spec
        place = (hash(spec), dtype)
        if place not in self._batches:
            self._batches[place] = stack([self.lora], spec, torch.float64).to(dtype=dtype)
        return self._batches[place]

    def model(self, examined: Examined, dtype: torch.dtype) -> LoLModel:
        """The model itself, or its twin in float64."""
        if dtype == torch.float32:
            return examined.model
        if examined.title not in self._twins:
            self._twins[examined.title] = copy.deepcopy(examined.model).double()
        return self._twins[examined.title]

    @torch.no_grad()
    def values(self, examined: Examined, batch: Batch) -> Tensor:
        """Predictions in the user's units (B, outputs), computed in the batch's precision."""
        outputs = self.model(examined, batch.dtype)(batch)
        return torch.from_numpy(examined.task.decode(outputs)) if examined.task else outputs.double()

    def first(self, examined: Examined, dtype: torch.dtype) -> Tensor:
        """Predictions of the LoRA as it is, (outputs,)."""
        place = examined.title, dtype
        if place not in self._first:
            self._first[place] = self.values(examined, self.start(dtype, examined.model.spec))[0]
        return self._first[place]

    def turn(self, R: tuple[Tensor, ...], group: Group, dtype: torch.dtype) -> Turn:
        """R ⋆ the LoRA, and what every model makes of it. R[g]: (1, L_g, r, r), by the LoRA's own modules."""
        before = self.start(dtype)
        after = act(R, before)
        rows, dials, problems = [], [], []
        turned = {before.spec: after}
        for examined in self.models:
            spec = examined.model.spec
            try:
                first = self.first(examined, dtype)
                if spec not in turned:
                    batch = self.start(dtype, spec)
                    turned[spec] = act(for_spec(R, before.spec, spec, batch.rank), batch)
                second = self.values(examined, turned[spec])[0]
            except LoLError as error:
                problems.append(f"{examined.title}: {error}")
                continue
            if not (first.isfinite().all() and second.isfinite().all()):
                problems.append(
                    f"{examined.title}: the weights are too large; what it predicts is not finite in {dtype}."
                )
                continue
            output = int(first.argmax()) if examined.task and examined.task.exclusive else 0
            one, two, change = float(first[output]), float(second[output]), relative_change(second, first)
            outcome, unit = examined.outcome(change, group, dtype), examined.outputs[output]
            keeps = change <= TOLERANCES[dtype]
            dials.append(
                Dial(examined.short, unit, *examined.dial_ends(output, one), one, two, str(outcome), keeps=keeps)
            )
            row = {"model": examined.title, "promises": examined.promise, "predicts": unit}
            rows.append(row | {"before R": one, "after R": two, "relative change": change, "verdict": str(outcome)})
        moved = {side: relative_change(_flat(after, side), _flat(before, side)) for side in ("U", "V")}
        moved["ΔW"] = product_change(after, before)
        condition = max(torch.linalg.cond(matrices).max().item() for matrices in R)
        return Turn(before, after, pd.DataFrame(rows), tuple(dials), tuple(problems), moved, condition)

    def changes(self, count: int, *, condition: float, dtype: torch.dtype, reporter: Reporter = SILENT) -> pd.DataFrame:
        """Relative changes of the predictions over `count` draws from each group: columns model, group, change."""
        parts = []
        for i, examined in enumerate(self.models):
            batch = self.start(dtype, examined.model.spec)
            before = self.values(examined, batch)
            block = max(1, min(count, NUMBERS_AT_ONCE // examined.numbers))
            for j, group in enumerate(GROUPS):
                share = (len(GROUPS) * i + j) / (len(GROUPS) * len(self.models))
                reporter.show(f"{examined.title}: {group.title}", share)
                generator = torch.Generator().manual_seed(0)
                for start in range(0, count, block):
                    many = batch[torch.zeros(min(block, count - start), dtype=torch.long)]
                    R = sample_for(many, group, condition=condition, generator=generator)
                    change = (self.values(examined, act(R, many)) - before).norm(dim=1) / before.norm().clamp(min=1e-30)
                    rows = {"model": examined.title, "group": group.title, "change": change.numpy()}
                    parts.append(pd.DataFrame(rows))
        return pd.concat(parts, ignore_index=True)

    def kept_promises(self, changes: pd.DataFrame, tolerance: float) -> tuple[pd.DataFrame, str]:
        """From `changes`: for each model what it promises and the largest change by group, in words; and which models
        broke a promise, or are moved by O(r) and not by permutations, in a sentence.
        """
        largest = changes.pivot_table("change", "model", "group", "max", sort=False)[[g.title for g in GROUPS]]
        marks = largest.map(lambda change: f"{'keeps still' if change <= tolerance else 'moves'} ({change:.1e})")
        marks.insert(0, "promises", [examined.promise for examined in self.models])
        moves = {group: dict(zip(largest.index, largest[group.title] > tolerance, strict=True)) for group in GROUPS}
        broken, odd = [], []
        for examined in self.models:
            title, promise = examined.title, examined.model.symmetry
            if any(promises(promise, group) and moves[group][title] for group in GROUPS):
                broken.append(title)
            if moves[O][title] and not moves[PERMUTATION][title]:
                odd.append(title)
        kept = f"All {len(self.models)} models kept what they promise."
        kept = f"**{', '.join(broken)} broke a promise.**" if broken else kept
        rest = f"Moved by O(r) but not by permutations: {', '.join(odd)}." if odd else ""
        return marks, f"{kept} {rest or 'None moves under O(r) but not under permutations.'}"

    def passage(self, examined: Examined, group: Group, dtype: torch.dtype) -> Passage:
        """A random R followed through an equivariant model."""
        batch, net = self.start(dtype, examined.model.spec), self.model(examined, dtype)
        R = sample_for(batch, group, condition=10.0, generator=torch.Generator().manual_seed(0))
        stages = carried(lambda x: net.stages(net.normalized(x)), batch, R)
        turned = act(R, batch)
        start = relative_change(*(torch.cat([_flat(x, "U"), _flat(x, "V")]) for x in (turned, batch)))
        end = relative_change(self.values(examined, turned), self.values(examined, batch))
        names = ("U, V", *(stage.name for stage in stages), "products Ũ Ṽᵀ", "prediction")
        moved = (start, *(stage.moved for stage in stages), stages[-1].product, end)
        return Passage(names, moved, (None, *(stage.off for stage in stages), None, None), tuple(stages))

    def corner(self, batch: Batch, module: ModuleHeader) -> dict[str, np.ndarray]:
        """The first rows of a module's U and V, and the corner of their product they make: of ΔW, unless that is a
        Kronecker product or has a DoRA magnitude.
        """
        g, place = _place(batch, module)
        product = "U Vᵀ" if module.factor_shapes or module.magnitude else "ΔW = U Vᵀ"
        u, v = batch.U[g][0, place, :CORNER].double(), batch.V[g][0, place, :CORNER].double()
        return {"U": u.numpy(), "V": v.numpy(), product: (u @ v.mT).numpy()}


def _flat(batch: Batch, side: str) -> Tensor:
    return torch.cat([factor.flatten() for factor in getattr(batch, side)])


def fresh_models(lora: LoRA, kinds: Mapping[str, type[LoLModel]]) -> tuple[list[Examined], list[str]]:
    """Models of some kinds with random weights, scaled to a LoRA, and why others are left out: they do not fit in
    memory, or would take seconds for every R. GL-net has two equivariant layers, so that σ is seen.
    """
    spec, models, left_out = shared_spec([lora]), list[Examined](), list[str]()
    batch = stack([lora], spec)
    for name, kind in kinds.items():
        title, config = f"{kind.title} (untrained)", kind.configure(width=32, equivariant_layers=2)
        try:
            weights = memory_needed(name, spec, 1, config, fitted=False) // BYTES_USED
            if weights > LARGEST:
                left_out.append(
                    f"{title} is left out: with {weights / 1e6:,.0f} million weights it is slow for every R."
                )
                continue
            check_memory(name, spec, 1, config, device=torch.device("cpu"), fitted=False)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = make_model(name, spec, 1, config)
        except LoLError as error:
            left_out.append(f"{title} is left out: {error}")
            continue
        model.prepare(batch, torch.Generator().manual_seed(0))
        models.append(Examined(title, model.eval()))
    return models, left_out


def matrix_of(R: Sequence[Tensor], batch: Batch, module: ModuleHeader) -> np.ndarray:
    """The R of a module, (k, k) for its rank k."""
    g, place = _place(batch, module)
    rank = int(batch.ranks[0, batch.spec.modules.index(module)])
    return R[g][0, place, :rank, :rank].numpy()


def _place(batch: Batch, module: ModuleHeader) -> tuple[int, int]:
    """The group that a module is in, and its place there."""
    position = batch.spec.modules.index(module)
    return next((g, indices.index(position)) for g, (_, indices) in enumerate(batch.spec.groups) if position in indices)
