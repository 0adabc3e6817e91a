"""Editing: from a LoRA and a wished change of a label to a LoRA of the same modules, ranks and dialect.

Every method walks on the updates themselves (`core.fixed_rank`), so that R plays no part, and no further than a given
share of ‖ΔW‖. They differ in the direction:

- gradient: at every step that in which the model's prediction grows fastest;
- linear: how the update of a collection's LoRAs goes with their labels, cov(ΔW, y), which for a yes/no label is the
  difference of the two means; weights2weights (Dravid et al. 2024) fits its directions by least squares instead;
- pattern: the same with the model's gradient in place of labels: Σᵢ ⟨∇, ΔWᵢ⟩ ΔWᵢ, the covariance of the collection
  times the gradient, which turns a filter that reads into a pattern that is there (Haufe et al. 2014);
- random: a random combination of the collection's LoRAs, the control.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.collections.source import Source
from lol_core.core.batch import Batch, stack, unstack
from lol_core.core.fixed_rank import FixedRank, Line, Tangent
from lol_core.core.groups import GL
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter
from lol_core.core.symmetry import promises
from lol_core.errors import ModelError, TaskError
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.models.modulewise import left_product
from lol_core.learning.tasks import Binary, Multiclass, Regression, Task

STEPS = 10
MOST = 1000
"""LoRAs of a collection that directions are made of."""
TINY = 1e-30
TRIALS, CLOSE = 8, 1e-3
"""How often the length of a step is tried, and how near to its radius it comes."""


class Method(StrEnum):
    LINEAR = "linear"
    PATTERN = "pattern"
    GRADIENT = "gradient"
    RANDOM = "random"


NEEDS = {Method.LINEAR: "a collection with labels", Method.PATTERN: "a collection", Method.RANDOM: "a collection"}
"""What a method needs beside the model."""


@dataclass(frozen=True)
class Goal:
    """A wished change: one output of a task, and the value it should have (a yes/no label 0 or 1; a number; for classes
    1, the class itself being the output).
    """

    task: Task
    output: int
    value: float

    @classmethod
    def parse(cls, task: Task, text: str) -> Goal:
        """Such as Smiling=1, clip_score=2, class=dog. Raises TaskError, which says what can be wished."""
        name, _, wish = text.partition("=")
        if isinstance(task, Multiclass) and name == task.targets[0] and wish in task.classes:
            return cls(task, task.classes.index(wish), 1.0)
        if not isinstance(task, Multiclass) and name in task.targets:
            try:
                value = float(wish)
            except ValueError:
                value = math.nan
            if value in (0, 1) if isinstance(task, Binary) else math.isfinite(value):
                return cls(task, task.targets.index(name), value)
        raise TaskError(f"{text!r} is no wish for this model. It can be {', '.join(wishes_of(task))}.")

    @property
    def name(self) -> str:
        if isinstance(self.task, Multiclass):
            return f"{self.task.targets[0]}={self.task.classes[self.output]}"
        return f"{self.task.targets[self.output]}={self.value:g}"

    @property
    def reading(self) -> str:
        """What `read` reads: the probability of a label or of a class, or a number."""
        if isinstance(self.task, Regression):
            return self.task.targets[self.output]
        return f"p({self.name if isinstance(self.task, Multiclass) else self.task.targets[self.output]})"

    def signs(self, outputs: Tensor) -> Tensor:
        """Whether each LoRA's output should grow (1) or fall (−1): (B, outputs) → (B,)."""
        if isinstance(self.task, Regression):
            encoded = (self.value - self.task.mean[self.output]) / self.task.std[self.output]
            return torch.where(outputs[:, self.output] < encoded, 1.0, -1.0)
        return torch.full((len(outputs),), 1.0 if self.value == 1 else -1.0)

    def margin(self, outputs: Tensor) -> Tensor:
        """What grows with the output: a logit, a number, or a class's log-odds against the others: (B,)."""
        own = outputs[:, self.output]
        if not isinstance(self.task, Multiclass):
            return own
        others = [i for i in range(outputs.shape[1]) if i != self.output]
        return own - outputs[:, others].logsumexp(1)

    def read(self, predictions: np.ndarray) -> np.ndarray:
        """What predictions (B, outputs) say of it, see `reading`: (B,)."""
        return predictions[:, self.output]

    def numbers(self, labels: pd.DataFrame) -> np.ndarray:
        """The label of each LoRA as a number: (N,)."""
        encoded = self.task.encode(labels)
        if isinstance(self.task, Multiclass):
            return (encoded == self.output).double().numpy()
        return encoded[:, self.output].double().numpy()


def wishes_of(task: Task) -> list[str]:
    """What can be wished of a model, as `Goal.parse` takes it."""
    if isinstance(task, Multiclass):
        return [f"{task.targets[0]}={name}" for name in task.classes]
    if isinstance(task, Binary):
        return [f"{target}={value}" for target in task.targets for value in (1, 0)]
    return [f"{target}=NUMBER" for target in task.targets]


def unmet(task: Task, prediction: np.ndarray) -> str:
    """The first wish for a label or a class that is not so already by a prediction: (outputs,)."""
    for wish in wishes_of(task):
        goal = Goal.parse(task, wish)
        if abs(goal.value - prediction[goal.output]) > 0.5:
            return wish
    return wishes_of(task)[0]


@dataclass(frozen=True)
class Members:
    """LoRAs of a collection that directions are made of. batch: all of them; labels: a row for each, in order."""

    batch: Batch
    labels: pd.DataFrame

    @classmethod
    def of(cls, checkpoint: Checkpoint, source: Source, reporter: Reporter = SILENT) -> Members:
        """Those that a model was trained on, at most MOST: what it is tried on later takes no part. Raises TaskError
        when fewer than two of them are in the collection, and Stopped.
        """
        ids = [id for id in checkpoint.split["train"] if id in source.by_id][:MOST]
        if len(ids) < 2:
            raise TaskError(
                f"{source.name} holds {len(ids)} of the LoRAs that {checkpoint.title} was trained on, and directions"
                f" are made of those. Open the collection it was trained on, {checkpoint.zoo}, or choose the method"
                f" {Method.GRADIENT}."
            )
        loras = []
        for i, id in enumerate(ids):
            reporter.count("Reading: LoRA", i + 1, len(ids))
            reporter.check("Nothing was edited.")
            loras.append(source.load(id))
        targets = [target for target in checkpoint.task.targets if target in source.labels]
        return cls(stack(loras, checkpoint.spec), source.labels.loc[ids, targets])

    def along(self, weights: Tensor, at: FixedRank) -> Tangent:
        """The tangent part of Σᵢ wᵢ ΔWᵢ at a point, from the factors. weights: (B, N)."""
        each = weights.float().repeat_interleave(self.batch.rank, 1)[:, None, :, None]
        parts = []
        for (U, V), P, Q in zip(self._columns, at.P, at.Q, strict=True):
            of_Q = left_product(U, left_product(V.mT, Q.float()) * each)
            of_P = left_product(V, left_product(U.mT, P.float()) * each)
            parts.append((of_Q.double(), of_P.double()))
        return at.project(parts)

    def inner(self, change: Tangent, at: FixedRank) -> Tensor:
        """⟨change, ΔWᵢ⟩ of every member: (B, N)."""
        total = torch.zeros(len(at.like), len(self.batch) * self.batch.rank)
        for (U, V), P, Q, A, B in zip(self._columns, at.P, at.Q, change.A, change.B, strict=True):
            a, p = (left_product(U.mT, side.float()) for side in (A, P))
            b, q = (left_product(V.mT, side.float()) for side in (B, Q))
            total += (a * q + p * b).sum((1, 3))
        return total.unflatten(1, (len(self.batch), self.batch.rank)).sum(2).double()

    @cached_property
    def _columns(self) -> list[tuple[Tensor, Tensor]]:
        """All members' columns side by side: (L, n, N r) and (L, m, N r) for each group."""
        sides = ([side.permute(1, 2, 0, 3).flatten(2) for side in of] for of in (self.batch.U, self.batch.V))
        return list(zip(*sides, strict=True))


@dataclass(frozen=True)
class Edit:
    """The way of one LoRA: `loras` from the one given to the last step; predictions (steps + 1, outputs) of the model
    along it; moved: ‖ΔW − ΔW₀‖ / ‖ΔW₀‖ at each; gaps: ‖ΔW − ΔW₀‖ of each module, a row for each step.
    """

    goal: Goal
    method: Method
    loras: tuple[LoRA, ...]
    predictions: np.ndarray
    moved: tuple[float, ...]
    gaps: pd.DataFrame

    @property
    def by_module(self) -> pd.Series:
        """‖ΔW − ΔW₀‖ of each module at the end, the largest first."""
        return self.gaps.iloc[-1].sort_values(ascending=False)

    @property
    def reached(self) -> int:
        """The step that the wish ends at: the first whose reading has come to the wished number, else the last."""
        if not isinstance(self.goal.task, Regression):
            return len(self.loras) - 1
        gaps = self.goal.read(self.predictions) - self.goal.value
        passed = np.flatnonzero(np.sign(gaps) != np.sign(gaps[0]))
        return int(passed[0]) if len(passed) else len(self.loras) - 1

    @property
    def lora(self) -> LoRA:
        """The LoRA of that step."""
        return self.loras[self.reached]


def edit(
    checkpoint: Checkpoint,
    loras: Sequence[LoRA],
    goal: Goal,
    *,
    method: Method = Method.LINEAR,
    size: float = 0.5,
    members: Members | None = None,
    steps: int = STEPS,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> list[Edit]:
    """Each LoRA changed towards the goal until its update has moved by size · ‖ΔW‖, after step k of `steps` by k/steps
    of that: all methods move equally far. Modules that the model does not read, DoRA magnitudes, scales and dtypes stay
    as they are; the factors come back balanced.

    Raises ModelError when a LoRA does not fit the model, the model is not GL-invariant, or has no gradient there;
    TaskError when the method lacks what it NEEDS or nothing can be moved; Stopped.
    """
    if size <= 0 or steps < 1:
        raise TaskError(f"An edit has a size above 0 and at least one step; found {size:g} and {steps}.")
    if not promises(checkpoint.model.symmetry, GL):
        raise ModelError(
            f"{checkpoint.title} depends on R and not on ΔW alone, so that its gradient says nothing of the LoRA."
            " Choose a GL-invariant model, such as GL-net."
        )
    batch = stack(loras, checkpoint.spec, torch.float64)
    start = point = FixedRank.of(batch)
    direction = _direction(checkpoint, start, goal, method, members, seed)
    points = [start]
    for number in range(1, steps + 1):
        point = _onto_sphere(start, point, direction(point), number / steps * size * start.norm, _unmoved(method))
        points.append(point)
        reporter.count("Editing: step", number, steps)
        reporter.check("Nothing was edited.")
    whole = [loras if point is start else unstack(point.batch(), loras) for point in points]
    gaps = [point.distances(start) for point in points]
    names = [module.name for module in checkpoint.spec.modules]
    edits = []
    for b in range(len(loras)):
        way = tuple(step[b] for step in whole)
        moved = tuple(float(gap[b].norm() / start.norm[b]) for gap in gaps)
        of_modules = pd.DataFrame([gap[b].tolist() for gap in gaps], columns=names)
        edits.append(Edit(goal, method, way, checkpoint.predict(way), moved, of_modules))
    return edits


def _onto_sphere(start: FixedRank, point: FixedRank, change: Tangent, radius: Tensor, unmoved: str) -> FixedRank:
    """The point along a change whose distance from the start is the radius of each LoRA, (B,). Raises TaskError."""
    length, before = change.norm, start.distances(point).norm(dim=1)
    if (length <= TINY).any():
        raise TaskError(unmoved)
    line, reach = Line.of(point, change.times(1 / length)), radius - before
    for _ in range(TRIALS):
        trial = line.at(reach)
        after = start.distances(trial).norm(dim=1)
        if ((after - radius).abs() <= CLOSE * radius).all():
            break
        # after² = before² + 2 b reach + reach², were there no curvature: b from this trial, then the reach it needs
        b = (after.square() - before.square() - reach.square()) / (2 * reach)
        reach = (b.square() + radius.square() - before.square()).sqrt() - b
    return trial


def _direction(
    checkpoint: Checkpoint, start: FixedRank, goal: Goal, method: Method, members: Members | None, seed: int
) -> Callable[[FixedRank], Tangent]:
    """Where a method goes from a point."""
    signs = goal.signs(_outputs(checkpoint, start)).double()
    if method is Method.GRADIENT:
        return lambda point: _gradient(checkpoint, point, goal).times(signs)
    if members is None:
        raise TaskError(f"The method {method} needs {NEEDS[method]}: that which the model was trained on.")
    if method is Method.LINEAR:
        weights = signs[:, None] * torch.from_numpy(_label_weights(members, goal))
    elif method is Method.PATTERN:
        weights = signs[:, None] * members.inner(_gradient(checkpoint, start, goal), start)
    else:
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(len(start.like), len(members.batch), generator=generator, dtype=torch.float64)
    centred = weights - weights.mean(1, keepdim=True)
    return lambda point: members.along(centred, point)


def _label_weights(members: Members, goal: Goal) -> np.ndarray:
    """cov(·, y) as weights of the members, (N,). Raises TaskError when the labels say nothing."""
    target = goal.task.targets[goal.output if len(goal.task.targets) > 1 else 0]
    if missing := [name for name in goal.task.targets if name not in members.labels]:
        raise TaskError(f"The collection has no labels {', '.join(missing)}, which the method {Method.LINEAR} needs.")
    usable = goal.task.usable(members.labels).to_numpy()
    y = np.zeros(len(usable))
    y[usable] = goal.numbers(members.labels[usable])
    if y[usable].std() == 0:
        raise TaskError(f"{target!r} has one value for all LoRAs of the collection, so nothing goes with it.")
    return np.where(usable, y - y[usable].mean(), 0.0)


def _outputs(checkpoint: Checkpoint, point: FixedRank) -> Tensor:
    model = checkpoint.model.eval()
    with torch.no_grad():
        return model(point.batch().to(model.device, model.dtype)).cpu()


def _gradient(checkpoint: Checkpoint, at: FixedRank, goal: Goal) -> Tangent:
    """The Riemannian gradient of the goal's margin: the tangent part of ∇ = ∂ margin / ∂ ΔW.

    ∇ Q is the derivative by A at A = 0 of the margin of (P σ + A, Q), and ∇ᵀ P that by B of (P, Q σ + B).
    """
    model = checkpoint.model.eval()
    device, dtype = model.device, model.dtype
    scaled = [
        (P * sigma[..., None, :], Q * sigma[..., None, :]) for P, sigma, Q in zip(at.P, at.sigma, at.Q, strict=True)
    ]
    left = [P.to(device, dtype).requires_grad_() for P, _ in scaled]
    right = [Q.to(device, dtype).requires_grad_() for _, Q in scaled]
    P, Q = ([side.to(device, dtype) for side in sides] for sides in (at.P, at.Q))
    like = at.like.to(device)
    with torch.enable_grad():
        margins = [goal.margin(model(replace(like, U=tuple(U), V=tuple(V)))).sum() for U, V in ((left, Q), (P, right))]
        total = margins[0] + margins[1]
        if not total.requires_grad:
            raise ModelError(f"{checkpoint.title} has no gradient: nothing leads uphill. Choose GL-net, for example.")
        of_left, of_right = torch.autograd.grad(total, left), torch.autograd.grad(total, right)
    return at.project([(A.double().cpu(), B.double().cpu()) for A, B in zip(of_left, of_right, strict=True)])


def _unmoved(method: Method) -> str:
    if method is Method.GRADIENT:
        return "The model's prediction does not change with this LoRA, so no direction leads to the wish."
    return "An update is zero in every module, or the collection has no direction in it: there is nothing to move."
