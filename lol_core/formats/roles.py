"""From factors to layers: how the tensors of a module multiply to ΔW.

Every dialect ends here. Tensors may live on the meta device, so that a probe runs the same code without reading
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from lol_core.core.header import Kind
from lol_core.core.lora import LoRALayer
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
            layer, rank = _embedding(name, tensors), tensors["embedding_down"].shape[0]
        elif "hada_w1_a" in tensors:
            layer, rank = _hadamard(name, tensors), tensors["hada_w1_b"].shape[0]
        elif any(role.startswith("lokr_") for role in tensors):
            layer, rank = _kronecker(name, tensors)
            if rank == 0 and scale_rank is None:  # both factors whole: LyCORIS applies no scale
                alpha = None
        else:
            layer, rank = _linear_or_conv(name, tensors), tensors["down"].shape[0]
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(f"{role} {tuple(t.shape)}" for role, t in tensors.items())
        raise LoRAFormatError(f"{name}: the factors do not multiply. Found {shapes}.") from error
    rank = scale_rank or rank
    scale = 1.0 if alpha is None or rank == 0 else alpha / (rank**0.5 if rslora else rank)
    magnitude, axis = _magnitude(name, tensors.get("magnitude"), layer)
    return LoRALayer(
        name, layer.U, layer.V, scale, alpha, layer.kind, layer.weight_shape, magnitude, axis, layer.factor_shapes
    )


def _linear_or_conv(name: str, tensors: Mapping[str, Tensor]) -> LoRALayer:
    """ΔW = up · down; convolutions are flattened, and LoCon's Tucker core (`mid`) is multiplied into `down` (exact,
    rank unchanged).
    """
    down, up = tensors["down"], tensors["up"]
    if "mid" in tensors:
        mid = tensors["mid"].float()
        down = torch.einsum("ab...,bi->ai...", mid, down.float().flatten(1))
    if down.ndim == 2 and up.ndim == 2:
        return LoRALayer(name, up, down.T)
    weight_shape = (up.shape[0], *down.shape[1:])
    return LoRALayer(name, up.flatten(1), down.flatten(1).T, kind=Kind.CONV, weight_shape=weight_shape)


def _embedding(name: str, tensors: Mapping[str, Tensor]) -> LoRALayer:
    """PEFT embeddings: lora_embedding_A (r, tokens), lora_embedding_B (dim, r); the weight is (tokens, dim), so ΔW
    = (B A)ᵀ.
    """
    return LoRALayer(name, tensors["embedding_down"].T, tensors["embedding_up"], kind=Kind.EMBEDDING)


def _hadamard(name: str, tensors: Mapping[str, Tensor]) -> LoRALayer:
    """LoHa, ΔW = (w1a w1b) ∘ (w2a w2b): an exact pair of rank r² by the row-wise Khatri–Rao product."""

    def factors(i: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        a, b = tensors[f"hada_w{i}_a"].float(), tensors[f"hada_w{i}_b"].float()
        if f"hada_t{i}" not in tensors:
            return a, b, ()
        core = torch.einsum("ij...,jr->ir...", tensors[f"hada_t{i}"].float(), b)  # (r, in, k, k)
        return a.T, core.flatten(1), tuple(core.shape[1:])

    (a1, b1, tail), (a2, b2, _) = factors(1), factors(2)
    U = torch.einsum("na,nb->nab", a1, a2).flatten(1)
    V = torch.einsum("am,bm->mab", b1, b2).flatten(1)
    return LoRALayer(name, U, V, kind=Kind.CONV if tail else Kind.LINEAR, weight_shape=(len(U), *tail) if tail else ())


def _kronecker(name: str, tensors: Mapping[str, Tensor]) -> tuple[LoRALayer, int]:
    """LoKr, ΔW = W₁ ⊗ W₂, as vec(W₁), vec(W₂) with symmetry GL(1); also the rank of a factorised part (0 if none
    is).
    """
    rank = 0

    def whole(i: int) -> Tensor:
        nonlocal rank
        if f"lokr_w{i}" in tensors:
            return tensors[f"lokr_w{i}"].float()
        a, b = tensors[f"lokr_w{i}_a"].float(), tensors[f"lokr_w{i}_b"].float()
        rank = b.shape[0]
        if i == 2 and "lokr_t2" in tensors:
            return torch.einsum("ij...,ip,jr->pr...", tensors["lokr_t2"].float(), a, b)
        return a @ b

    first, second = whole(1), whole(2)
    weight_shape = (first.shape[0] * second.shape[0], first.shape[1] * second.shape[1], *second.shape[2:])
    shapes = (tuple(first.shape), tuple(second.shape))
    layer = LoRALayer(
        name,
        first.reshape(-1, 1),
        second.reshape(-1, 1),
        kind=Kind.KRONECKER,
        weight_shape=weight_shape,
        factor_shapes=shapes,
    )
    return layer, rank


def _magnitude(name: str, magnitude: Tensor | None, layer: LoRALayer) -> tuple[Tensor | None, Literal["n", "m"]]:
    """DoRA's vector, flattened, and the axis it runs along: LyCORIS keeps the other dimensions at 1, PEFT writes
    outputs.
    """
    if magnitude is None:
        return None, "n"
    outputs, inputs = layer.weight_shape[0], layer.weight_shape[1]
    length = magnitude.numel()
    if length not in (outputs, inputs):
        raise LoRAFormatError(
            f"{name}: the DoRA magnitude has {length} entries; expected {outputs} (outputs) or {inputs} (inputs)."
        )
    along_inputs = length == inputs and (
        outputs != inputs or (magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[-1] == inputs)
    )
    return magnitude.reshape(-1), "m" if along_inputs else "n"
