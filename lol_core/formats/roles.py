"""From factors to layers: how the tensors of a module multiply to ΔW.

Every dialect ends here. Tensors may live on the meta device, so that a probe runs the same code without reading
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from lol_core.core.header import Kind
from lol_core.core.lora import LoRALayer
from lol_core.core.parametrisation import (
    Hadamard,
    Kronecker,
    LowRank,
    Magnitude,
    Parametrisation,
    Tucker,
    Whole,
)
from lol_core.errors import LoRAFormatError

Fetch = Callable[[str], Tensor]


def assemble(
    name: str,
    tensors: Mapping[str, Tensor],
    *,
    alpha: float | None = None,
    rslora: bool = False,
    scale_rank: int | None = None,
    zero_alpha_is_absent: bool = False,
) -> LoRALayer:
    """The layer that these tensors (role → tensor) multiply to.

    alpha: from the configuration, unless an "alpha" tensor is among them. s = alpha/r, or alpha/√r with rsLoRA, or
    1 without alpha; `scale_rank` replaces the rank in that formula where the library divides by a configured rank.
    Raises LoRAFormatError when the shapes do not multiply.
    """
    if "alpha" in tensors:
        if tensors["alpha"].numel() != 1:
            raise LoRAFormatError(f"{name}: alpha has the shape {tuple(tensors['alpha'].shape)}; expected one number.")
        alpha = float(tensors["alpha"].float())
    if zero_alpha_is_absent and alpha == 0:
        alpha = None
    try:
        if "embedding_down" in tensors:
            parametrisation, rank = _embedding(tensors), tensors["embedding_down"].shape[0]
        elif "hada_w1_a" in tensors:
            parametrisation, rank = _hadamard(tensors), tensors["hada_w1_b"].shape[0]
        elif any(role.startswith("lokr_") for role in tensors):
            parametrisation, rank = _kronecker(tensors)
            if rank == 0 and scale_rank is None:  # both factors whole: LyCORIS applies no scale
                alpha = None
        else:
            parametrisation, rank = _linear_or_conv(tensors), tensors["down"].shape[0]
    except LoRAFormatError as error:
        raise LoRAFormatError(f"{name}: {error}") from error
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(f"{role} {tuple(t.shape)}" for role, t in tensors.items())
        raise LoRAFormatError(f"{name}: the factors do not multiply. Found {shapes}.") from error
    rank = scale_rank or rank
    scale = 1.0 if alpha is None or rank == 0 else alpha / (rank**0.5 if rslora else rank)
    if "magnitude" in tensors:
        parametrisation = _with_magnitude(name, tensors["magnitude"], parametrisation)
    return LoRALayer(name, parametrisation, scale, alpha)


def _linear_or_conv(tensors: Mapping[str, Tensor]) -> Parametrisation:
    """ΔW = up · down; convolutions are flattened, LoCon's core (`mid`) stands between them."""
    down, up = tensors["down"], tensors["up"]
    if "mid" in tensors:
        return Tucker(up.flatten(1), tensors["mid"], down.flatten(1).T)
    if down.ndim == 2 and up.ndim == 2:
        return LowRank(up, down.T)
    return LowRank(up.flatten(1), down.flatten(1).T, (up.shape[0], *down.shape[1:]), Kind.CONV)


def _embedding(tensors: Mapping[str, Tensor]) -> Parametrisation:
    """PEFT embeddings: lora_embedding_A (r, tokens), lora_embedding_B (dim, r); the weight is (tokens, dim), so ΔW
    = (B A)ᵀ.
    """
    return LowRank(tensors["embedding_down"].T, tensors["embedding_up"], kind=Kind.EMBEDDING)


def _hadamard(tensors: Mapping[str, Tensor]) -> Parametrisation:
    """LoHa, ΔW = (w1a w1b) ∘ (w2a w2b), each product with a core in between where there is one."""

    def product(i: int) -> LowRank | Tucker:
        a, b = tensors[f"hada_w{i}_a"], tensors[f"hada_w{i}_b"]
        return Tucker(a.T, tensors[f"hada_t{i}"], b.T) if f"hada_t{i}" in tensors else LowRank(a, b.T)

    return Hadamard(product(1), product(2))


def _kronecker(tensors: Mapping[str, Tensor]) -> tuple[Parametrisation, int]:
    """LoKr, ΔW = W₁ ⊗ W₂, each whole or a product; also the rank of a factorised part (0 if none is)."""
    rank = 0

    def factor(i: int) -> Whole | LowRank | Tucker:
        nonlocal rank
        if f"lokr_w{i}" in tensors:
            return Whole(tensors[f"lokr_w{i}"])
        a, b = tensors[f"lokr_w{i}_a"], tensors[f"lokr_w{i}_b"]
        rank = b.shape[0]
        return Tucker(a.T, tensors["lokr_t2"], b.T) if i == 2 and "lokr_t2" in tensors else LowRank(a, b.T)

    first, second = factor(1), factor(2)
    if isinstance(first, Tucker):
        raise LoRAFormatError("The first factor of a Kronecker product has no core.")
    return Kronecker(first, second), rank


def _with_magnitude(name: str, magnitude: Tensor, of: Parametrisation) -> Magnitude:
    """DoRA's vector, flattened, and the axis it runs along: LyCORIS keeps the other dimensions at 1, PEFT writes
    outputs.
    """
    outputs, inputs = of.weight_shape[0], of.weight_shape[1]
    length = magnitude.numel()
    if length not in (outputs, inputs):
        raise LoRAFormatError(
            f"{name}: the DoRA magnitude has {length} entries; expected {outputs} (outputs) or {inputs} (inputs)."
        )
    along_inputs = length == inputs and (
        outputs != inputs or (magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[-1] == inputs)
    )
    return Magnitude(of, magnitude.reshape(-1), axis=1 if along_inputs else 0)
