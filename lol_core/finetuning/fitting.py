"""One resumable training loop, which the parts of the base model and the scorer share."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lol_core.core.progress import SILENT, Reporter
from lol_core.learning.state import load_state, save_state

EMA_DECAY = 0.999


def fit(
    folder: Path,
    model: nn.Module,
    loss_of: Callable[[torch.Generator, int], Tensor],
    *,
    steps: int,
    rate: float,
    seed: int,
    reporter: Reporter = SILENT,
    saved_every: int = 200,
) -> nn.Module:
    """Minimise a loss with AdamW, a warm-up and a cosine to zero, and leave in the model the running average of its
    weights.

    `loss_of(generator, step)` draws its batch from that generator, which depends on the seed and the step alone: a run
    that was stopped goes on exactly. The state is kept in `folder`, the mean loss of each fifty steps in its curve.csv.
    Raises Stopped when the reporter says so, after a step that was kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2)
    average = [p.detach().clone() for p in parameters]
    first = 0
    if (state := load_state(folder)) is not None:
        tensors, progress = state
        first = progress["step"]
        with torch.no_grad():
            for name, p, a in zip(names, parameters, average, strict=True):
                p.copy_(tensors[f"model.{name}"])
                a.copy_(tensors[f"average.{name}"])
                optimizer.state[p] = {
                    "step": torch.tensor(float(first)),
                    "exp_avg": tensors[f"first.{name}"],
                    "exp_avg_sq": tensors[f"second.{name}"],
                }
    losses: list[float] = []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (0.03 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = loss_of(torch.Generator().manual_seed(seed * 1_000_003 + step), step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(EMA_DECAY, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean = sum(losses) / len(losses)
            losses.clear()
            with (folder / "curve.csv").open("a", newline="") as file:
                csv.writer(file).writerow([step + 1, f"{mean:.5f}"])
            reporter.show(f"step {step + 1:,} of {steps:,}, loss {mean:.4f}", (step + 1) / steps)
        if (step + 1) % saved_every == 0 or step + 1 == steps:
            moments = [optimizer.state[p] for p in parameters]
            tensors = {f"model.{n}": p.detach() for n, p in zip(names, parameters, strict=True)}
            tensors |= {f"average.{n}": a for n, a in zip(names, average, strict=True)}
            tensors |= {f"first.{n}": m["exp_avg"] for n, m in zip(names, moments, strict=True)}
            tensors |= {f"second.{n}": m["exp_avg_sq"] for n, m in zip(names, moments, strict=True)}
            save_state(folder, tensors, {"step": step + 1})
            reporter.check(f"Step {step + 1:,} of {steps:,} is kept; the same command goes on.")
    with torch.no_grad():
        for p, a in zip(parameters, average, strict=True):
            p.copy_(a)
    return model.eval()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """The number of threads that torch computes with, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
