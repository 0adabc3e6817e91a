"""Forward and backward pass of W2T, MVProbe, the probe views and Dense, and TuckerNet's features, beside plain loops,
at the geometry of Stable Diffusion 1.4's attention: `python -m benchmarks.others`.

Dense is measured at an eighth of the widths: at all of them its weights alone take 23 GB. W2T begins from its triplets
and TuckerNet ends with its features, as training computes both once. Synthetic factors: they are no LoRAs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Claim, alternately
from benchmarks.models import LORAS, RANK, WIDTH, attention, factors
from lol_core.core.batch import Batch, WeightSpec
from lol_core.learning.models import make_model
from lol_core.learning.models.base import ModelConfig

Loop = tuple[Callable[[], Tensor], list[nn.Parameter]]
"""A forward pass, and the parameters that it has in place of the model's; none where it has the same."""
SHRUNK = 8
"""Dense's widths are divided by it."""


def pairs(batch: Batch) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Group, place in it, U (B, n, r) and V (B, m, r) of every module."""
    for g, (U, V) in enumerate(zip(batch.U, batch.V, strict=True)):
        yield from ((g, k, U[:, k], V[:, k]) for k in range(U.shape[1]))


def plain(layer: nn.Module) -> nn.Linear:
    """A wide layer as `nn.Linear`."""
    state = layer.state_dict()
    linear = nn.Linear(state["weight"].shape[1], len(state["weight"]))
    linear.load_state_dict(state)
    return linear


def dense(model: Any, batch: Batch) -> Loop:
    first = plain(model.head.latent[0])

    def forward() -> Tensor:
        features = torch.cat([(U @ V.mT).flatten(1) for _, _, U, V in pairs(batch)], 1)
        out: Tensor = model.head.out(model.head.latent[1:](first(features)))
        return out

    return forward, [*first.parameters()]


def views(model: Any, batch: Batch) -> Loop:
    """Each module's own probes and encoders, times its factors."""
    first = plain(model.head.latent[0])
    maps = [
        [[nn.Parameter(p[k].detach()) for p in model.views[g].parameters()] for k in range(U.shape[1])]
        for g, U in enumerate(batch.U)
    ]

    def forward() -> Tensor:
        features = []
        for g, k, U, V in pairs(batch):
            p_n, p_n2, p_m, p_m2, e_n, e_n2, e_m, e_m2 = maps[g][k]
            G_U, G_V = (factor.double().mT @ factor.double() for factor in (U, V))
            norm = (G_U * G_V).sum((-1, -2), keepdim=True).sqrt()
            G_U, G_V = (G_U / norm).to(U), (G_V / norm).to(U)
            seen = (
                (e_n @ U) @ (p_m @ V).mT,
                (e_m @ V) @ (p_n @ U).mT,
                (e_n2 @ U) @ G_V @ (p_n2 @ U).mT,
                (e_m2 @ V) @ G_U @ (p_m2 @ V).mT,
            )
            features += [view.flatten(1) for view in seen]
        out: Tensor = model.head.out(model.head.latent[1:](first(torch.cat(features, 1))))
        return out

    return forward, [*first.parameters(), *(p for group in maps for module in group for p in module)]


def mvprobe(model: Any, batch: Batch) -> Loop:
    """ΔW of each LoRA's module, and its four views, as the paper writes them."""
    first = plain(model.head.latent)

    def forward() -> Tensor:
        rows = []
        for U, V in zip(*(side[model.group][:, model.inside] for side in (batch.U, batch.V)), strict=True):
            X, encoded = U @ V.mT, []
            for branch, Y in zip(model.views, (X, X, X.mT, X.mT), strict=True):
                S = Y @ (Y.mT @ branch.probes) if branch.second else Y @ branch.probes
                S = (S - S.mean()) / (S.std() + 1e-8)
                encoded.append((branch.encoder.weight @ S).relu().mT.flatten())
            rows.append(torch.cat(encoded))
        out: Tensor = model.head.out(first(torch.stack(rows)))
        return out

    return forward, [*first.parameters()]


def w2t(model: Any, batch: Batch) -> tuple[Callable[[], Tensor], Loop]:
    """Ours and the loop, from the triplets: the Transformer over ranks is called for every module."""
    head = model.head
    with torch.no_grad():
        features = model.features(model.normalized(batch))

    def loop() -> Tensor:
        tokens, at = list[Tensor](), 0
        for count, rank, n, m in head.shapes:
            for _ in range(count):
                rows = features[:, at : (at := at + rank * (n + m + 1))].unflatten(1, (rank, -1))
                u, v, sigma = rows[..., :n], rows[..., n:-1], rows[..., -1]
                present = torch.ones_like(sigma, dtype=torch.bool)
                x = head.over_ranks(head.projectors[len(tokens)](u, v, sigma, present), src_key_padding_mask=~present)
                tokens.append(head.pool(x, sigma, present))
        places = head.layers.weight[head.layer_numbers] + head.kinds.weight[head.kind_numbers]
        x = head.over_modules(head.norm(torch.stack(tokens, 1) + places))
        out: Tensor = head.out(head.last((head.score(x).softmax(1) * x).sum(1)))
        return out

    return lambda: head.out(head.latent(features)), (loop, [])


def tucker(model: Any, batch: Batch) -> Callable[[], Tensor]:
    """The features module by module: QR of both factors, the invariants, and of these the chosen ones."""

    def upper(H: Tensor) -> Tensor:
        i, j = torch.triu_indices(H.shape[1], H.shape[1])
        return (H @ H.mT)[:, i, j] * torch.where(i == j, 1.0, 2**0.5)

    def forward() -> Tensor:
        directions, sizes = [], []
        for g, k, U, V in pairs(batch):
            left, right, chosen, center = (
                model.get_buffer(f"{name}_{g}")[k] for name in ("left", "right", "chosen", "center")
            )
            R_U, R_V = (torch.linalg.qr(factor, mode="r").R for factor in (U, V))
            values = torch.linalg.svdvals(R_U @ R_V.mT)
            norm = values.norm(dim=-1)[:, None, None]
            a, b = left.mT @ U, right.mT @ V
            parts = [(a @ b.mT / norm).flatten(1), upper(a @ R_V.mT / norm), upper(b @ R_U.mT / norm)]
            directions.append((torch.cat(parts, 1)[:, chosen] - center) / model.get_buffer("spread"))
            shares = (values / norm[:, 0]).clamp(min=1e-4).log()
            sizes += [norm[:, 0].log(), shares]
        standard = (torch.cat(sizes, 1) - model.get_buffer("size_mean")) / model.get_buffer("size_std")
        return torch.cat([*directions, standard], 1)

    return forward


def stepping(forward: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Callable[[], None]:
    """A forward and backward pass."""

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        forward().square().mean().backward()

    return step


def shrunk(spec: WeightSpec) -> WeightSpec:
    return WeightSpec(tuple(replace(module, n=module.n // SHRUNK, m=module.m // SHRUNK) for module in spec.modules))


def claims(quick: bool = False) -> list[Claim]:
    torch.set_num_threads(1)
    about = f"at {len(attention().modules)} modules, rank {RANK}, batch {4 if quick else LORAS}"
    return [claim_of(name, about, quick) for name in ("w2t", "mvprobe", "views", "dense", "tucker")]


def claim_of(name: str, about: str, quick: bool) -> Claim:
    rounds, count = (2, 4) if quick else (9, LORAS)
    batch = factors(shrunk(attention()) if name == "dense" else attention(), count)
    model = make_model(name, batch.spec, 1, ModelConfig(width=WIDTH) if name in ("dense", "views") else None)
    model.prepare(batch, torch.Generator().manual_seed(0))
    model.eval()  # nothing is drawn
    plain_batch = batch.map(Tensor.contiguous)
    if name == "tucker":
        calls = {"ours": lambda: model.features(batch), "loop": tucker(model, plain_batch)}
        with torch.no_grad():
            torch.testing.assert_close(calls["ours"](), calls["loop"](), rtol=1e-3, atol=1e-3)
            taken = alternately(calls, rounds)
        return Claim(
            f"{model.title}'s features {about}", 1.0, taken["ours"], taken["loop"], "a plain loop over modules"
        )
    if name == "w2t":
        ours, (loop, own) = w2t(model, batch)
    else:
        ours = partial(model, batch)
        loop, own = {"mvprobe": mvprobe, "views": views, "dense": dense}[name](model, plain_batch)
    torch.testing.assert_close(ours(), loop(), rtol=1e-3, atol=1e-3)
    shared = [*model.parameters()]
    taken = alternately({"ours": stepping(ours, shared), "loop": stepping(loop, own or shared)}, rounds)
    of = "LoRAs" if name == "mvprobe" else "modules"
    text = f"{model.title}, forward and backward {about}{f', widths / {SHRUNK}' if name == 'dense' else ''}"
    return Claim(text, 1.0, taken["ours"], taken["loop"], f"a plain loop over {of}")


def main() -> None:
    for claim in claims():
        print(f"{claim.text}: {claim.ratio:.2f} times {claim.against}")


if __name__ == "__main__":
    main()
