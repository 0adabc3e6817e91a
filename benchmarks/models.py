"""GL-net's forward and backward pass, and the preprocessing of SVD and O-Align, against plain loops over modules, at
the geometry of Stable Diffusion 1.4's attention: `python -m benchmarks.models`. And how GL-net's time grows.

Synthetic factors: they are no LoRAs. Seconds of processor time on one thread, taken in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measure import Claim, alternately, exponent, seconds
from lol_core.core.batch import Batch, WeightSpec, turned
from lol_core.core.groups import GL
from lol_core.core.header import ModuleHeader
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.symmetry import sample_for
from lol_core.experiments.paper import FIVE
from lol_core.insight.invariance import Study
from lol_core.learning.models import make_model
from lol_core.learning.models.gl_net import GLNet, GLNetConfig

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


def square(modules: int, side: int, rank: int) -> WeightSpec:
    return WeightSpec(tuple(ModuleHeader(f"m{i}", side, side, rank) for i in range(modules)))


def factors(spec: WeightSpec, loras: int = LORAS) -> Batch:
    generator = torch.Generator().manual_seed(0)
    U, V = (
        tuple(
            turned(torch.randn(len(i), loras, spec.rank, shape[side], generator=generator)) for shape, i in spec.groups
        )
        for side in (0, 1)
    )
    return Batch(spec, U, V, torch.full((loras, len(spec.modules)), spec.rank))


def loop_of(model: GLNet, batch: Batch) -> Callable[[], None]:
    """The same network with a parameter for every module and `nn.Linear` as the head's first layer."""
    batch = batch.map(Tensor.contiguous)
    stacks = [
        [(nn.Parameter(Phi.detach()), nn.Parameter(Psi.detach())) for Phi, Psi in zip(y.Phi, y.Psi, strict=True)]
        for y in model.first
        if isinstance(y.Phi, Tensor) and isinstance(y.Psi, Tensor)
    ]
    first = nn.Linear(model.n_features(), WIDTH)
    first.load_state_dict(model.head.latent[0].state_dict())
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


def gl_net(batch: Batch, width: int = WIDTH) -> tuple[GLNet, Callable[[], None]]:
    """A model and a forward and backward pass of it."""
    model = make_model("gl_net", batch.spec, 1, GLNetConfig(width=WIDTH, equivariant_width=width))
    assert isinstance(model, GLNet)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(batch).square().mean().backward()

    return model, step


def bound(model: GLNet, batch: Batch) -> Callable[[], None]:
    """What the pass cannot do without: its multiplications, as products of matrices that stay in the cache, and the
    factors and weights read and the gradients written once, as copies.
    """
    modules, numbers = len(batch.spec.modules), batch.spec.parameters
    products = modules * WIDTH**2 * (WIDTH + batch.rank)
    count = round(len(batch) * (2 * WIDTH * numbers + 3 * products) / 512**3)
    a, b, product = (torch.randn(512, 512) for _ in range(3))
    read = torch.zeros(model.n_parameters)
    written, factors = torch.zeros_like(read), torch.zeros(len(batch) * numbers // 2)
    half = torch.zeros_like(factors)

    def step() -> None:
        for _ in range(count):
            torch.mm(a, b, out=product)
        written.copy_(read)
        half.copy_(factors)

    return step


def each(batch: Batch, call: Callable[[int, Tensor, Tensor, int], Tensor]) -> Tensor:
    """Features made module by module: (B, features)."""
    rows = []
    for b in range(len(batch)):
        pairs = [
            (g, U[b, k], V[b, k], k)
            for g, (U, V) in enumerate(zip(batch.U, batch.V, strict=True))
            for k in range(U.shape[1])
        ]
        rows.append(torch.cat([call(*pair) for pair in pairs]))
    return torch.stack(rows)


def preprocessing(name: str, batch: Batch, rounds: int) -> dict[str, list[float]]:
    model = make_model(name, batch.spec, 1)
    model.prepare(batch, torch.Generator().manual_seed(0))

    def align(g: int, U: Tensor, V: Tensor, k: int) -> Tensor:
        A, _, Bh = torch.linalg.svd(
            U.mT @ model.get_buffer(f"template_U_{g}")[k] + V.mT @ model.get_buffer(f"template_V_{g}")[k]
        )
        Q = A @ Bh
        return torch.cat([(U @ Q).flatten(), (V @ Q).flatten()])

    def spectrum(g: int, U: Tensor, V: Tensor, k: int) -> Tensor:
        R_U, R_V = (torch.linalg.qr(factor, mode="r").R for factor in (U, V))
        return torch.linalg.svdvals(R_U @ R_V.mT)

    one, plain = align if name == "o_align" else spectrum, batch.map(Tensor.contiguous)
    calls = {"loop": lambda: each(plain, one), "ours": lambda: model.features(model.normalized(batch))}
    with torch.no_grad():
        torch.testing.assert_close(calls["ours"](), calls["loop"](), rtol=1e-3, atol=1e-3)
        return alternately(calls, rounds)


def claims(quick: bool = False) -> list[Claim]:
    torch.set_num_threads(1)
    rounds, batch = (3 if quick else 15), factors(attention(), 4 if quick else LORAS)
    model, step = gl_net(batch)
    taken = alternately({"loop": loop_of(model, batch), "ours": step, "bound": bound(model, batch)}, rounds)
    about = f"at {len(batch.spec.modules)} modules, rank {RANK}, batch {len(batch)}, width {WIDTH}"
    found = [
        Claim(f"GL-net, forward and backward {about}", 2.0, taken["ours"], taken["loop"], "a plain loop over modules"),
        Claim(
            "GL-net within twice its bound",
            0.5,
            taken["ours"],
            taken["bound"],
            "its multiplications, and its numbers copied once",
        ),
    ]
    for name in ("svd", "o_align"):
        taken = preprocessing(name, batch, rounds)
        found.append(Claim(f"{name}, preprocessing {about}", 5.0, taken["ours"], taken["loop"], "a loop over modules"))
    return found


def answers(quick: bool = False) -> list[float]:
    """Seconds of the clock until the page Invariance knows what a new R does to a LoRA and its untrained models."""
    generator = torch.Generator().manual_seed(0)
    layers = (
        LoRALayer.pair(y.name, *(torch.randn(side, RANK, generator=generator) for side in (y.n, y.m)))
        for y in attention().modules
    )
    study = Study.of(LoRA(tuple(layers)), {}, FIVE)
    taken = []
    for _ in range(3 if quick else 15):
        R = sample_for(study.start(torch.float32), GL, generator=generator)
        taken.append(seconds(lambda: study.turn(R, GL, torch.float32), time.perf_counter))  # noqa: B023  called at once
    return taken[1:]  # the first also predicts for the LoRA as it is


def growth(quick: bool = False) -> dict[str, dict[str, object]]:
    """How the time of GL-net's forward and backward pass grows: exponents, with the samples they come from."""
    torch.set_num_threads(1)
    start = (8, 256, 4)
    sizes = {"modules": [8, 16, 32, 64], "n + m": [512, 1024, 2048, 4096], "rank": [4, 8, 16, 32]}
    found: dict[str, dict[str, object]] = {}
    for i, (what, values) in enumerate(sizes.items()):
        steps = {}
        for value in values[: 2 if quick else None]:
            shape = [*start]
            shape[i] = value // 2 if what == "n + m" else value
            steps[str(value)] = gl_net(factors(square(*shape), 16), 16)[1]
        taken = alternately(steps, 2 if quick else 9)
        found[what] = {"exponent": exponent([int(size) for size in taken], taken), "samples (s)": taken}
    return found


def main() -> None:
    for claim in claims():
        print(f"{claim.text}: {claim.ratio:.2f} times {claim.against}")


if __name__ == "__main__":
    main()
