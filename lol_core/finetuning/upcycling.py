"""Sparse upcycling (Komatsuzaki et al. 2023, arXiv:2212.05055): a trained feed-forward is copied into experts, a router
is put before them, and they are trained on until they differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lol_core.core.progress import SILENT, Reporter
from lol_core.finetuning.glosses import Encoder, Questions

CHOSEN = 2
"""Experts of each token, as in Mixtral."""
RATE, EPOCHS, BATCH, BALANCE = 3e-4, 3, 16, 0.01


class Experts(nn.Module):
    """Copies of a feed-forward d → h → d as stacks of weights, laid out as Mixtral's: up_proj (E, h, d), down_proj
    (E, d, h), with biases.
    """

    def __init__(self, up: nn.Linear, down: nn.Linear, count: int):
        super().__init__()
        stacks = (torch.stack([t.detach()] * count) for t in (up.weight, up.bias, down.weight, down.bias))
        self.up_proj, self.up_bias, self.down_proj, self.down_bias = map(nn.Parameter, stacks)

    def forward(self, tokens: Tensor, gates: Tensor) -> Tensor:
        """tokens (k, d), gates (k, E), 0 where an expert was not chosen → (k, d)."""
        out = torch.zeros_like(tokens)
        # once, since PEFT computes an adapted stack at every access
        up, down = self.up_proj.unbind(), self.down_proj.unbind()
        for e in range(gates.shape[1]):
            chosen = gates[:, e].nonzero().squeeze(1)
            hidden = nn.functional.gelu(nn.functional.linear(tokens[chosen], up[e], self.up_bias[e]))
            each = nn.functional.linear(hidden, down[e], self.down_bias[e])
            out = out.index_add(0, chosen, each * gates[chosen, e, None])
        return out


class Mixture(nn.Module):
    """In place of a BERT layer's `output`, with nothing left in its `intermediate`: experts, their router, and the
    layer's own normalisation. Gates sum to one, so that it begins as the function it was copied from.
    """

    def __init__(self, layer: Any, count: int):
        super().__init__()
        self.experts = Experts(layer.intermediate.dense, layer.output.dense, count)
        self.router = nn.Linear(layer.output.dense.out_features, count, bias=False)
        nn.init.normal_(self.router.weight, std=0.02)
        self.LayerNorm = layer.output.LayerNorm
        self.chances = torch.empty(0)
        """(tokens, E): the router's, of the last call."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        tokens = hidden.flatten(0, -2)
        self.chances = self.router(tokens).softmax(-1)
        best, index = self.chances.topk(CHOSEN, -1)
        gates = torch.zeros_like(self.chances).scatter(-1, index, best / best.sum(-1, keepdim=True))
        return self.LayerNorm(self.experts(tokens, gates).reshape(hidden.shape) + residual)

    def balance(self) -> Tensor:
        """1 when every expert is chosen equally often, more when not (Fedus et al. 2022, Eq. (4))."""
        E = self.chances.shape[1]
        chosen = nn.functional.one_hot(self.chances.topk(CHOSEN, -1).indices, E).sum(1).float().mean(0) / CHOSEN
        return E * (chosen * self.chances.mean(0)).sum()


def mixture(encoder: Encoder, count: int) -> Mixture:
    """Put experts in place of the encoder's last feed-forward."""
    layer = encoder.model.encoder.layer[-1]
    layer.output, layer.intermediate = Mixture(layer, count), nn.Identity()
    found: Mixture = layer.output
    return found


def upcycle(
    encoder: Encoder,
    questions: Questions,
    folder: Path,
    count: int,
    *,
    measured_on: Questions,
    epochs: int = EPOCHS,
    reporter: Reporter = SILENT,
) -> dict[str, float]:
    """Train copies of the encoder's last feed-forward into experts on these questions, the encoder changed in place;
    `folder`/experts.safetensors and `folder`/measured.json. Says how far the experts are from their mean, and the loss
    before and after.
    """
    torch.manual_seed(0)
    experts = mixture(encoder, count)
    encoder.model.requires_grad_(False)
    trained = list(experts.parameters())
    for parameter in trained:
        parameter.requires_grad_(True)
    measured = {"loss before": float(measured_on.measure(encoder)[0].mean())}
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    batches = [b for _ in range(epochs) for b in torch.randperm(len(questions.source)).split(BATCH)]
    for i, batch in enumerate(batches):
        reporter.show("Experts are trained", i / len(batches))
        reporter.check("The same command begins with the experts again.")
        logits = questions.logits(encoder, batch)
        loss = nn.functional.cross_entropy(logits, logits.new_zeros(len(batch), dtype=torch.long))
        optimizer.zero_grad()
        (loss + BALANCE * experts.balance()).backward()
        optimizer.step()
    encoder.model.requires_grad_(False)
    measured |= {"loss after": float(measured_on.measure(encoder)[0].mean()), "balance": float(experts.balance())}
    for name in ("up_proj", "down_proj"):
        stack = getattr(experts.experts, name)
        mean = stack.mean(0)
        measured[f"{name} apart"] = float((stack - mean).norm(dim=(1, 2)).mean() / mean.norm())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    save_file(experts.state_dict(), folder / "experts.safetensors")
    return measured


def upcycled(encoder: Encoder, folder: Path, count: int) -> Encoder:
    """The encoder, changed in place, with the experts that `upcycle` kept in this folder."""
    mixture(encoder, count).load_state_dict(load_file(folder / "experts.safetensors"))
    encoder.model.requires_grad_(False)
    return encoder
