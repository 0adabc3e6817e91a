"""GL-net's forward and backward pass, and the preprocessing of SVD and O-Align, against plain loops over modules, at
the geometry of Stable Diffusion 1.4's attention: `python -m benchmarks.models`. Synthetic factors: they are no LoRAs.

Seconds of processor time on one thread, so that another job on the machine changes little; the smallest of several.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.geometry import singular_values
from lol_core.core.header import ModuleHeader
from lol_core.learning.models import make_model
from lol_core.learning.models.gl_net import GLNet, GLNetConfig
from lol_core.learning.models.o_align import procrustes

RANK, LORAS, WIDTH, TEXT = 4, 32, 64, 768
BLOCKS = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] + [1280] * 3 + [640] * 3 + [320] * 3


def attention() -> WeightSpec:
    """128 modules: of every transformer block to_q, to_k, to_v and to_out of its self- and its cross-attention."""
    modules = []
    for block, width in enumerate(BLOCKS):
        for place, (first, second) in (("attn1", (width, width)), ("attn2", (TEXT, TEXT))):
            for name, m in (("to_q", width), ("to_k", first), ("to_v", second), ("to_out", width)):
                modules.append(ModuleHeader(f"{block}.{place}.{name}", width, m, RANK))
    return WeightSpec(tuple(modules))


def factors(spec: WeightSpec) -> Batch:
    generator = torch.Generator().manual_seed(0)
    U, V = (
        tuple(torch.randn(LORAS, len(i), shape[side], RANK, generator=generator) for shape, i in spec.groups)
        for side in (0, 1)
    )
    return Batch(spec, U, V, torch.full((LORAS, len(spec.modules)), RANK))


def seconds(call: Callable[[], object], times: int = 5) -> float:
    call()
    measured = []
    for _ in range(times):
        started = time.process_time()
        call()
        measured.append(time.process_time() - started)
    return min(measured)


def loop_of(model: GLNet, batch: Batch) -> Callable[[], None]:
    """The same network with a parameter for every module and `nn.Linear` as the head's first layer."""
    stacks = [
        [(nn.Parameter(Phi.detach()), nn.Parameter(Psi.detach())) for Phi, Psi in zip(y.Phi, y.Psi, strict=True)]
        for y in model.first
        if isinstance(y.Phi, Tensor) and isinstance(y.Psi, Tensor)
    ]
    first = nn.Linear(model.n_features(), WIDTH)
    parameters = [p for stack in stacks for pair in stack for p in pair] + [*first.parameters()]

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        products = [
            ((Phi @ U[:, k]) @ (Psi @ V[:, k]).mT).flatten(1)
            for stack, U, V in zip(stacks, batch.U, batch.V, strict=True)
            for k, (Phi, Psi) in enumerate(stack)
        ]
        model.head.out(model.head.latent[1:](first(torch.cat(products, 1)))).square().mean().backward()

    return step


def gl_net(spec: WeightSpec, batch: Batch) -> dict[str, float]:
    model = make_model("gl_net", spec, 1, GLNetConfig(width=WIDTH, equivariant_width=WIDTH))
    assert isinstance(model, GLNet)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(batch).square().mean().backward()

    return {"loop": seconds(loop_of(model, batch)), "ours": seconds(step)}


def each(batch: Batch, call: Callable[[int, Tensor, Tensor, int], object]) -> None:
    for g, (U, V) in enumerate(zip(batch.U, batch.V, strict=True)):
        for b in range(len(U)):
            for k in range(U.shape[1]):
                call(g, U[b, k], V[b, k], k)


@torch.no_grad()
def preprocessing(name: str, spec: WeightSpec, batch: Batch) -> dict[str, float]:
    model = make_model(name, spec, 1)
    model.prepare(batch, torch.Generator().manual_seed(0))

    def align(g: int, U: Tensor, V: Tensor, k: int) -> Tensor:
        Q = procrustes(U, V, model.get_buffer(f"template_U_{g}")[k], model.get_buffer(f"template_V_{g}")[k])
        return torch.cat([(U @ Q).flatten(), (V @ Q).flatten()])

    one = align if name == "o_align" else lambda g, U, V, k: singular_values(U, V)
    return {
        "loop": seconds(lambda: each(batch, one), 2),
        "ours": seconds(lambda: model.features(model.normalized(batch)), 3),
    }


def main() -> None:
    torch.set_num_threads(1)
    spec = attention()
    batch = factors(spec)
    rows = {"GL-net, forward and backward": gl_net(spec, batch)}
    rows |= {f"{name}, preprocessing": preprocessing(name, spec, batch) for name in ("svd", "o_align")}
    print(f"{len(spec.modules)} modules, rank {RANK}, {LORAS} LoRAs, width {WIDTH}")
    for title, row in rows.items():
        print(f"{title}: {row['ours']:.3f} s, a plain loop {row['loop']:.3f} s, {row['loop'] / row['ours']:.1f} times")


if __name__ == "__main__":
    main()
