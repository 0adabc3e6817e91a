"""Editing: from a LoRA and a wished change of a label to a LoRA of the same modules, ranks and dialect.

Every method walks on the updates themselves (`core.fixed_rank`), so that R plays no part, and no further than a given
share of ‖ΔW‖. They differ in the direction:

- gradient: at every step that in which the model's prediction grows fastest;
- linear: how the update of a collection's LoRAs goes with their labels, cov(ΔW, y), which for a yes/no label is the
  difference of the two means; weights2weights (Dravid et al. 2024) fits its directions by least squares instead;
- pattern: the same with the model's gradient in place of labels: Σᵢ ⟨∇, ΔWᵢ⟩ ΔWᵢ, the covariance of the collection
  times the gradient, which turns a filter that reads into a pattern that is there (Haufe et al. 2014);
- equivariant: what a network from LoRAs to LoRAs gives, which was trained to edit, at every step (`learning.editor`);
- random: a random combination of the collection's LoRAs, the control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.core.batch import stack, unstack
from lol_core.core.fixed_rank import FixedRank, Line, Tangent
from lol_core.core.groups import GL
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter
from lol_core.core.symmetry import promises
from lol_core.errors import ModelError, TaskError
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.editor import Editor
from lol_core.learning.goal import Goal
from lol_core.learning.members import Members

STEPS = 10
TINY = 1e-30
TRIALS, CLOSE = 8, 1e-3
"""How often the length of a step is tried, and how near to its radius it comes."""


class Method(StrEnum):
    LINEAR = "linear"
    PATTERN = "pattern"
    GRADIENT = "gradient"
    EQUIVARIANT = "equivariant"
    RANDOM = "random"


NEEDS = {Method.LINEAR: "a collection with labels", Method.PATTERN: "a collection", Method.RANDOM: "a collection"}
"""The members that a method needs beside the model."""


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
        """‖ΔW − ΔW₀‖ of each module of `lora`, the largest first."""
        return self.gaps.iloc[self.reached].sort_values(ascending=False)

    @property
    def reached(self) -> int:
        """The step that the wish ends at: the first whose reading has come to the wished number, else the last."""
        return len(self.loras) - 1 if self.goal.task.probabilities or self._passed is None else self._passed

    @property
    def met(self) -> bool:
        """Whether the model reads the wish from `lora`: the label, the class before the others, or the number."""
        last = self.predictions[self.reached]
        if self.goal.task.exclusive:
            return int(last.argmax()) == self.goal.output
        if self.goal.task.probabilities:
            return abs(self.goal.value - last[self.goal.output]) < 0.5
        return self._passed is not None

    @property
    def _passed(self) -> int | None:
        """The first step whose reading lies on the other side of the wished number."""
        gaps = self.goal.read(self.predictions) - self.goal.value
        passed = np.flatnonzero(np.sign(gaps) != np.sign(gaps[0]))
        return int(passed[0]) if len(passed) else None

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
    editor: Editor | None = None,
    steps: int = STEPS,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> list[Edit]:
    """Each LoRA changed towards the goal until its update has moved by size · ‖ΔW‖, after step k of `steps` by k/steps
    of that: all methods move equally far. Modules that the model does not read, DoRA magnitudes, scales and dtypes stay
    as they are; the factors come back balanced.

    members: LoRAs of the collection that the model was trained on, for the methods that NEED them; editor: for the
    method EQUIVARIANT, trained with this checkpoint; seed: of the method RANDOM.

    Raises ModelError when a LoRA does not fit the model, the model is not GL-invariant, or has no gradient there;
    TaskError when the method lacks what it NEEDS or nothing can be moved; Stopped.
    """
    if not 0 < size < inf or steps < 1:
        raise TaskError(f"An edit has a finite size above 0 and at least one step; found {size:g} and {steps}.")
    if not promises(checkpoint.model.symmetry, GL):
        raise ModelError(
            f"{checkpoint.title} depends on R and not on ΔW alone, so that its gradient says nothing of the LoRA."
            " Choose a GL-invariant model, such as GL-net."
        )
    batch = stack(loras, checkpoint.spec, torch.float64)
    start = point = FixedRank.of(batch)
    if method is Method.EQUIVARIANT:
        direction = _learnt(checkpoint, start, goal, editor)
    else:
        direction = _direction(checkpoint, start, goal, method, members=members, seed=seed)
    points = [start]
    for number in range(1, steps + 1):
        point = _onto_sphere(
            start, point, direction(point), number / steps * size * start.norm, unmoved=_unmoved(method)
        )
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


def _onto_sphere(start: FixedRank, point: FixedRank, change: Tangent, radius: Tensor, *, unmoved: str) -> FixedRank:
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
    checkpoint: Checkpoint, start: FixedRank, goal: Goal, method: Method, *, members: Members | None, seed: int
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


def _learnt(
    checkpoint: Checkpoint, start: FixedRank, goal: Goal, editor: Editor | None
) -> Callable[[FixedRank], Tangent]:
    if editor is None or not editor.belongs_to(checkpoint):
        raise TaskError(f"The method {Method.EQUIVARIANT} needs an editor that was trained with {checkpoint.title}.")
    wishes = torch.zeros(len(start.like), goal.task.outputs, dtype=torch.float64)
    wishes[:, goal.output] = goal.signs(_outputs(checkpoint, start)).double()
    return lambda point: editor.change(point, wishes)


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
