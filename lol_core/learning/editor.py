"""An editor: a GL-equivariant network that is trained to change what a predictor reads from a LoRA.

It gives the direction of a change, a tangent vector at ΔW; how far to go is for `insight.editing` to say. Three things
are asked of a direction, at a random length: that the frozen predictor reads the wish, that its other readings stay,
and that it goes where the collection's LoRAs go with the label. Without the third it learns what talks the predictor
into the wish and is not seen in what a LoRA does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import softplus

from lol_core.collections.durable import contiguous, replace_file
from lol_core.core.batch import Batch
from lol_core.core.fixed_rank import FixedRank, Tangent
from lol_core.core.making import MAKING
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import CheckpointError, ModelError, TaskError
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.goal import Goal
from lol_core.learning.members import Members
from lol_core.learning.models.gl_equivariant import GLEquivariantConfig, GLEquivariantNet
from lol_core.learning.tasks import Task

FILE = "editor.safetensors"
"""In the folder of the checkpoint that it was trained with."""
TINY = 1e-30
START = 0.02
"""Of the crossings' coefficients at first: from 0 there is no direction to improve."""


@dataclass(frozen=True)
class EditorConfig:
    """epochs: over the predictor's training part; sizes: of a change in training, as shares of ‖ΔW‖; others: weight of
    the squared changes of other outputs; pairs: weight of the covariance with the label; compared: LoRAs that it is
    estimated from at each step.
    """

    epochs: int = 25
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    atoms: int = 128
    sizes: tuple[float, float] = (0.1, 0.6)
    others: float = 0.02
    pairs: float = 100.0
    compared: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Editor:
    """net: takes as wishes 1 for an output that should grow, −1 for one that should fall, 0 for the others; made: the
    creation time of its checkpoint.
    """

    net: GLEquivariantNet
    made: str

    def belongs_to(self, checkpoint: Checkpoint) -> bool:
        """Whether it was trained with this checkpoint."""
        return self.made == checkpoint.created and self.net.spec == checkpoint.spec

    def change(self, point: FixedRank, wishes: Tensor) -> Tangent:
        """The tangent part of U (Ṽ − V)ᵀ + (Ũ − U) Vᵀ for what the network makes of balanced factors; it depends
        on ΔW alone, not on its factors. wishes: (B, outputs).
        """
        dtype = self.net.p.dtype
        batch = point.batch()
        made = self.net(batch.map(lambda factor: factor.to(dtype)), wishes.to(dtype))
        parts = []
        for U, V, U2, V2, P, Q in zip(batch.U, batch.V, made.U, made.V, point.P, point.Q, strict=True):
            dU, dV = U2.double() - U, V2.double() - V
            parts.append((dU @ (V.mT @ Q) + U @ (dV.mT @ Q), dV @ (U.mT @ P) + V @ (dU.mT @ P)))
        return point.project(parts)

    def save(self, folder: Path) -> None:
        """Beside a checkpoint, whole or not at all, in float16. Raises CheckpointError."""
        about = {"made": self.made, "config": json.dumps(asdict(self.net.config))}
        tensors = contiguous({name: tensor.half() for name, tensor in self.net.state_dict().items()})
        try:
            replace_file(folder / FILE, lambda new: save_file(tensors, new, about))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / FILE}: the editor cannot be written ({error}).") from error

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> Editor:
        """The one beside a checkpoint. Raises CheckpointError when there is none, or that of another model."""
        path = (checkpoint.folder or Path()) / FILE
        command = f"lol editor {checkpoint.folder} --of COLLECTION"
        again = f"Train one: `{command} --force`."
        if checkpoint.folder is None or not path.is_file():
            raise CheckpointError(
                f"{checkpoint.title} has no editor, a network trained to edit with it. Train one: `{command}`."
            )
        try:
            with safe_open(path, "pt") as file:
                about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            with MAKING:
                net = GLEquivariantNet(checkpoint.spec, GLEquivariantConfig(**json.loads(about["config"])))
            net.load_state_dict(tensors)
            editor = cls(net.eval().requires_grad_(False), about["made"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: cannot be read as an editor ({error}). {again}") from error
        if not editor.belongs_to(checkpoint):
            raise CheckpointError(f"{path} was trained with another model than the one beside it. {again}")
        return editor


def train_editor(
    checkpoint: Checkpoint,
    members: Members,
    config: EditorConfig = EditorConfig(),
    *,
    reporter: Reporter = SILENT,
    history: list[dict[str, float]] | None = None,
) -> Editor:
    """An editor trained with a frozen predictor on LoRAs of the predictor's training part. history: takes a row of the
    three losses for each step.

    Raises TaskError when labels are missing, ModelError when the predictor has no gradient, Stopped.
    """
    task = checkpoint.task
    if missing := [name for name in task.targets if name not in members.labels]:
        raise TaskError(f"The collection has no labels {', '.join(missing)}, which an editor is trained with.")
    usable = task.usable(members.labels).to_numpy()
    if usable.sum() < 2:
        raise TaskError(f"{usable.sum()} of the LoRAs have the labels {', '.join(task.targets)}; an editor needs 2.")
    places = torch.from_numpy(np.flatnonzero(usable))
    points = FixedRank.of(members.batch[places].map(Tensor.double))
    goals = [Goal(task, output, 1.0) for output in range(task.outputs)]
    labels = torch.stack([torch.from_numpy(goal.numbers(members.labels[usable])) for goal in goals], 1)
    draws = torch.Generator().manual_seed(config.seed)
    with MAKING, torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        net = GLEquivariantNet(checkpoint.spec, GLEquivariantConfig(wishes=task.outputs, atoms=config.atoms))
        for name, weight in net.named_parameters():
            if name.endswith("of_context.weight") and name.startswith("crossings"):
                torch.nn.init.normal_(weight, std=START)
    editor = Editor(net, checkpoint.created)
    weights = list(net.parameters())
    steps = config.epochs * max(1, len(labels) // config.batch_size)
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    size = points.norm.mean()
    for step in range(steps):
        rows = torch.randint(len(labels), (config.batch_size,), generator=draws)
        asked = _Asked.draw(checkpoint.task, labels[rows], draws)
        change = editor.change(points[rows], asked.wishes)
        low, high = config.sizes
        lengths = (low + (high - low) * torch.rand(len(rows), generator=draws)) * points.norm[rows]
        norm = change.norm.clamp_min(TINY)
        wish, others = asked.losses(checkpoint, goals, points[rows], change.times(lengths / norm))
        compared = torch.randperm(len(labels), generator=draws)[: config.compared]
        of = Members(members.batch[places[compared]], members.labels.iloc[:0])
        centred = labels[compared] - labels[compared].mean(0)
        shares = (centred / centred.square().sum(0).clamp_min(TINY)).T[asked.output]
        along = asked.sign * (of.inner(change, points[rows]) * shares).sum(1)
        pairs = -(along / norm / size).mean()
        loss = wish + config.others * others + config.pairs * pairs
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            weight.grad = slope
        optimizer.step()
        schedule.step()
        if history is not None:
            history.append({"wish": wish.item(), "others": others.item(), "pairs": pairs.item()})
        reporter.count("Training the editor: step", step + 1, steps)
        reporter.check("No editor was kept.")
    return Editor(net.eval().requires_grad_(False), checkpoint.created)


@dataclass(frozen=True)
class _Asked:
    """A wish for each LoRA of a batch. output: (B,), its place; sign: (B,), 1 to grow; wishes: (B, outputs), both."""

    output: Tensor
    sign: Tensor
    wishes: Tensor

    @classmethod
    def draw(cls, task: Task, labels: Tensor, generator: torch.Generator) -> _Asked:
        """See `Task.another`."""
        output, sign = task.another(labels, generator)
        return cls(output, sign, torch.zeros_like(labels).scatter(1, output[:, None], sign[:, None]))

    def losses(
        self, checkpoint: Checkpoint, goals: Sequence[Goal], points: FixedRank, change: Tangent
    ) -> tuple[Tensor, Tensor]:
        """How far the predictor is from the wish, and the mean square by which it reads the rest otherwise."""
        model = checkpoint.model.eval()

        def outputs(batch: Batch) -> Tensor:
            return model(batch.to(model.device, model.dtype)).cpu().double()

        with torch.no_grad():
            before = outputs(points.batch())
        after = outputs(points.plus(change))
        if not after.requires_grad:
            raise ModelError(f"{checkpoint.title} has no gradient, so nothing can be learnt from it.")
        own = torch.stack([goal.margin(after) for goal in goals], 1).gather(1, self.output[:, None])[:, 0]
        start = 0.0 if checkpoint.task.probabilities else before.gather(1, self.output[:, None])[:, 0]
        if checkpoint.task.exclusive:
            return softplus(-self.sign * own).mean(), own.new_zeros(())
        rest = torch.ones_like(after).scatter(1, self.output[:, None], 0.0)
        others = ((after - before).square() * rest).sum() / rest.sum().clamp_min(1)
        return softplus(-self.sign * (own - start)).mean(), others
