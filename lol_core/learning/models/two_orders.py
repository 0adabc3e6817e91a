"""Two-order kernel: ridge regression on exact inner products of ΔW, of ΔWΔWᵀ, and of sizes apart from both. Ours."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ModelError
from lol_core.learning.link import Link
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.gram import Measured, both_orders, measured
from lol_core.learning.models.registry import register

ORDERS = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))
"""Shares of ⟨ΔW, ΔW′⟩ and of ⟨ΔWΔWᵀ, ΔW′ΔW′ᵀ⟩."""
WIDTHS = (0.03, 0.3, 3.0)
"""γ of sizes: how soon they differ."""
WEIGHTS = (0.1, 1.0, 10.0)
"""β: how much sizes count."""
RIDGES = tuple(10.0**k for k in range(-4, 3))
CHOSEN_ON = 1500
"""LoRAs on which the kernel is chosen at most, of more by chance: it decomposes one matrix for every choice."""
MOST = 10_000
"""LoRAs: the decomposition of their kernel takes minutes, and eight times as long for twice as many."""


class Choice(NamedTuple):
    first: float
    second: float
    width: float
    weight: float


CHOICES = tuple(Choice(*order, width, weight) for order, width, weight in product(ORDERS, WIDTHS, WEIGHTS))


@register("two_orders")
class TwoOrders(LoLModel):
    """k(ΔW, ΔW′) = d + β s + β d s. d = a₁ d₁ + a₂ d₂: means over modules of ⟨ΔW, ΔW′⟩ and ⟨ΔWΔWᵀ, ΔW′ΔW′ᵀ⟩, each over
    its norms; s = exp(−γ ‖x − x′‖² / dim x), x: log ‖ΔW‖ of every module, standardised, and DoRA magnitudes.

    a, β, γ and the ridge have the lowest squared leave-one-out error of the training LoRAs, around the mean and the
    sizes of all, in closed form: no epoch, rate or width is to be chosen. It keeps its training LoRAs and compares with
    each of them, so that asking it about many takes long where they are many and large.
    """

    title = "Two-order kernel"
    symmetry = GL
    any_rank = True
    memorizes = True
    copies = 4  # as they come, as they are kept, and what a fit keeps of its best epoch and before the last
    squares = 8  # three parts, the kernel, what is added to it, and what its solution and decomposition hold
    gives_away = "U and V"
    searched = ({"normalize": False},)

    def __init__(self, spec: WeightSpec, outputs: int, config: ModelConfig):
        super().__init__(spec, outputs, config)
        sizes = len(spec.modules) + spec.magnitudes
        kept: dict[str, tuple[int, ...]] = {"sizes": (0, sizes), "duals": (0, outputs), "basis": (0, config.width)}
        for g, ((n, m), indices) in enumerate(spec.groups):
            L, r = len(indices), spec.rank
            shapes = (0, L, n, r), (0, L, m, r), (0, L, r, r), (0, L, 2)
            kept |= {f"{name}_{g}": shape for name, shape in zip(Measured._fields, shapes, strict=True)}
        self.remembered = tuple(kept)
        fixed = {"size_mean": torch.zeros(sizes), "size_std": torch.ones(sizes), "mean": torch.zeros(outputs)}
        fixed |= {"choice": torch.zeros(len(Choice._fields)), "link": torch.zeros((), dtype=torch.long)}
        for name, tensor in ({name: torch.zeros(shape) for name, shape in kept.items()} | fixed).items():
            self.register_buffer(name, tensor)

    def make_head(self, features: int, outputs: int) -> nn.Module:
        return nn.Identity()

    def n_features(self) -> int:
        return self.config.width

    @torch.no_grad()
    def memorize(
        self, batch: Batch, answers: Tensor, *, link: Link = Link.IDENTITY, reporter: Reporter = SILENT
    ) -> None:
        """Raises ModelError for more LoRAs than `MOST`."""
        if len(batch) > MOST:
            raise ModelError(f"{self.title} keeps its training LoRAs, at most {MOST:,}; found {len(batch):,}.")
        batch = self.normalized(batch)
        groups = measured(batch)
        for g, group in enumerate(groups):
            for name, tensor in group._asdict().items():
                self._set(f"{name}_{g}", tensor)
        x = self._sizes(batch, groups)
        self._set("size_mean", x.mean(0))
        self._set("size_std", torch.where((std := x.std(0, correction=0)) > 0, std, torch.ones_like(std)))
        self._set("sizes", self._standardised(x))
        parts = (*both_orders(self._known, reporter=reporter.part(0.0, 0.5)), self._apart(self.get_buffer("sizes")))
        y = link.numbers(answers).double()
        mean = y.mean(0)
        some = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))[:CHOSEN_ON].sort().values
        some = some.to(answers.device)
        best = (float("inf"), CHOICES[0], RIDGES[0])
        for done, choice in enumerate(CHOICES, 1):
            reporter.part(0.5, 1.0).count("Kernels tried:", done, len(CHOICES))
            reporter.check("Nothing was kept.")
            kernel = _kernel(choice, *(part[some][:, some] for part in parts))
            best = min(best, *((error, choice, ridge) for error, ridge in _left_out(kernel, y[some] - mean)))
        _, choice, ridge = best
        kernel = _kernel(choice, *parts)
        self._set("choice", torch.tensor(choice))
        self._set("mean", mean)
        self._set("link", torch.tensor(int(link)))
        reporter.check("Nothing was kept.")
        eye = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
        self._set("duals", torch.linalg.solve(kernel + ridge * eye, y - mean))
        reporter.check("Nothing was kept.")
        values, vectors = torch.linalg.eigh(kernel)
        leading = slice(-min(self.config.width, len(kernel)), None)
        basis = vectors[:, leading].flip(1) / values[leading].flip(0).clamp(min=1e-9).sqrt()
        self._set("basis", nn.functional.pad(basis, (0, self.config.width - basis.shape[1])))

    def _set(self, name: str, tensor: Tensor) -> None:
        known = self.get_buffer(name)
        setattr(self, name, tensor.to(known).contiguous())

    def _sizes(self, batch: Batch, groups: list[Measured]) -> Tensor:
        """(B, L), and magnitudes where there are any, in float64."""
        sizes = torch.cat([group.norms[..., 0] for group in groups], 1).log()
        return sizes if batch.magnitudes is None else torch.cat([sizes, batch.magnitudes.to(sizes)], 1)

    def _standardised(self, sizes: Tensor) -> Tensor:
        return (sizes - self.get_buffer("size_mean")) / self.get_buffer("size_std")

    @property
    def _known(self) -> list[Measured]:
        """The training LoRAs."""
        groups = range(len(self.spec.groups))
        return [Measured._make(self.get_buffer(f"{name}_{g}") for name in Measured._fields) for g in groups]

    def _apart(self, sizes: Tensor) -> Tensor:
        """‖x − x′‖² / dim x of some LoRAs and the training ones: (B, training), float64."""
        known = self.get_buffer("sizes").double()
        return torch.cdist(sizes.double(), known).square() / sizes.shape[1]

    def _compared(self, batch: Batch) -> Tensor:
        """k of each normalised LoRA with each training LoRA: (B, training), float64."""
        groups = measured(batch)
        apart = self._apart(self._standardised(self._sizes(batch, groups)))
        return _kernel(Choice(*self.get_buffer("choice").tolist()), *both_orders(groups, self._known), apart)

    def features(self, batch: Batch) -> Tensor:
        return self._compared(batch) @ self.get_buffer("basis").double()

    def embed(self, batch: Batch) -> Tensor:
        """Coordinates on the leading eigenvectors of the kernel, whose squares sum to the eigenvalues over the training
        LoRAs: (B, width).
        """
        self.check_input(batch)
        return self.features(self.normalized(batch)).to(self.dtype)

    def forward(self, batch: Batch) -> Tensor:
        return self.read(batch)[0]

    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.check_input(batch)
        compared = self._compared(self.normalized(batch))
        numbers = compared @ self.get_buffer("duals").double() + self.get_buffer("mean").double()
        outputs = Link(int(self.get_buffer("link"))).outputs(numbers)
        return outputs.to(self.dtype), (compared @ self.get_buffer("basis").double()).to(self.dtype)


def _kernel(choice: Choice, first: Tensor, second: Tensor, apart: Tensor) -> Tensor:
    direction = choice.first * first + choice.second * second
    size = choice.weight * (-choice.width * apart).exp()
    return direction + size + direction * size


def _left_out(kernel: Tensor, y: Tensor) -> Iterator[tuple[float, float]]:
    """The mean squared leave-one-out error of ridge regression, and the ridge, for each. With A = K + αI and c = A⁻¹y
    the residual of LoRA i is cᵢ / (A⁻¹)ᵢᵢ.
    """
    values, vectors = torch.linalg.eigh(kernel)
    turned, squared = vectors.T @ y, vectors.square()
    for ridge in RIDGES:
        inverse = 1 / (values.clamp(min=0) + ridge)
        residuals = vectors @ (turned * inverse[:, None]) / (squared @ inverse)[:, None]
        yield float(residuals.square().mean()), ridge
