"""From factors to layers: how the tensors of a module multiply to ΔW.

Every dialect ends here. Tensors may live on the meta device, so that a probe runs the same code without reading
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from lol_core.core.header import Kind
from lol_core.core.parametrisation import (
    Blocks,
    Experts,
    Hadamard,
    Kronecker,
    LowRank,
    Magnitude,
    Parametrisation,
    Place,
    Tucker,
    Whole,
)
from lol_core.errors import LoRAFormatError
from lol_core.formats.names import Role

KRONECKER = frozenset(role for role in Role if role.startswith("lokr_"))
Fetch = Callable[[str], Tensor]


def assemble(name: str, tensors: Mapping[str, Tensor]) -> tuple[Parametrisation, int]:
    """The parametrisation that these tensors (role → tensor) make, and the rank that alpha is divided by: 0 where no
    part is a product.

    A magnitude of one dimension runs along the outputs, one of two (a row) along the inputs. Raises LoRAFormatError
    when the shapes do not multiply.
    """
    try:
        made, rank = _assemble(tensors)
        if Role.MAGNITUDE in tensors:
            magnitude = tensors[Role.MAGNITUDE]
            made = Magnitude(made, magnitude.reshape(-1), axis=magnitude.ndim - 1)
    except LoRAFormatError as error:
        raise LoRAFormatError(f"{name}: {error}") from error
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(f"{role} {tuple(t.shape)}" for role, t in tensors.items() if role != Role.BLOCKS)
        raise LoRAFormatError(f"{name}: the factors do not multiply. Found {shapes}.") from error
    return made, rank


def _assemble(tensors: Mapping[str, Tensor]) -> tuple[Parametrisation, int]:
    if Role.EMBEDDING_DOWN in tensors:
        return _embedding(tensors), tensors[Role.EMBEDDING_DOWN].shape[0]
    if Role.HADA_W1_A in tensors:
        return _hadamard(tensors), tensors[Role.HADA_W1_B].shape[0]
    if not KRONECKER.isdisjoint(tensors):
        return _kronecker(tensors)
    if experts := _experts(tensors[Role.DOWN], tensors[Role.UP]):
        return experts, experts.U.shape[2]
    return _linear_or_conv(tensors), tensors[Role.DOWN].shape[0]


def _experts(down: Tensor, up: Tensor) -> Experts | None:
    """A pair for each expert: (E, r, in) and (E, out, r), or (E, in, r) and (E, r, out), or the first with its experts
    one above the other, (E·r, in). A convolution along one dimension, (r, in, k) and (out, r, 1), is none.
    """
    if up.ndim != 3 or (up.shape[2] == 1 and up.shape[1] == down.shape[0]):
        return None
    if down.ndim == 2 and down.shape[0] == up.shape[0] * up.shape[2]:
        return Experts(up, down.reshape(up.shape[0], up.shape[2], -1).mT)
    if down.ndim != 3 or down.shape[0] != up.shape[0]:
        return None
    ways = []
    if down.shape[1] == up.shape[2]:
        ways.append(Experts(up, down.mT))
    if down.shape[2] == up.shape[1]:
        ways.append(Experts(up.mT, down))
    return min(ways, key=lambda way: way.U.shape[2], default=None)


def _linear_or_conv(tensors: Mapping[str, Tensor]) -> Parametrisation:
    """ΔW = up · down, block by block where these are known; convolutions are flattened, LoCon's core (`mid`) stands
    between them.
    """
    down, up = tensors[Role.DOWN], tensors[Role.UP]
    if Role.MID in tensors:
        return Tucker(up.flatten(1), tensors[Role.MID], down.flatten(1).T)
    if Role.BLOCKS in tensors:
        places = (Place(*(slice(*ends) for ends in place)) for place in tensors[Role.BLOCKS].tolist())
        shape = up.shape[0], *down.shape[1:]
        return Blocks(up.flatten(1), down.flatten(1).T, shape, places=tuple(places))
    if down.ndim == 2 and up.ndim == 2:
        return LowRank(up, down.T)
    return LowRank(up.flatten(1), down.flatten(1).T, (up.shape[0], *down.shape[1:]), Kind.CONV)


def _embedding(tensors: Mapping[str, Tensor]) -> Parametrisation:
    """PEFT embeddings: lora_embedding_A (r, tokens), lora_embedding_B (dim, r); the weight is (tokens, dim), so ΔW
    = (B A)ᵀ.
    """
    return LowRank(tensors[Role.EMBEDDING_DOWN].T, tensors[Role.EMBEDDING_UP], kind=Kind.EMBEDDING)


def _hadamard(tensors: Mapping[str, Tensor]) -> Parametrisation:
    """LoHa, ΔW = (w1a w1b) ∘ (w2a w2b), each product with a core in between where there is one."""

    def product(i: int) -> LowRank | Tucker:
        a, b = tensors[f"hada_w{i}_a"], tensors[f"hada_w{i}_b"]
        if f"hada_t{i}" in tensors:
            return Tucker(a.T, tensors[f"hada_t{i}"], b.T)
        return LowRank(a, b.T, _unflattened(len(a), b.shape[1], _channels(tensors)))

    return Hadamard(product(1), product(2))


def _kronecker(tensors: Mapping[str, Tensor]) -> tuple[Parametrisation, int]:
    """LoKr, ΔW = W₁ ⊗ W₂, each whole or a product; also the rank of a factorised part (0 if none is)."""
    rank = 0

    def factor(i: int, channels: int = 0) -> Whole | LowRank | Tucker:
        nonlocal rank
        if f"lokr_w{i}" in tensors:
            return Whole(tensors[f"lokr_w{i}"])
        a, b = tensors[f"lokr_w{i}_a"], tensors[f"lokr_w{i}_b"]
        rank = b.shape[0]
        if i == 2 and Role.LOKR_T2 in tensors:
            return Tucker(a.T, tensors[Role.LOKR_T2], b.T)
        return LowRank(a, b.T, _unflattened(len(a), b.shape[1], channels))

    first = factor(1)
    if isinstance(first, Tucker):
        raise LoRAFormatError("The first factor of a Kronecker product has no core.")
    channels, blocks = _channels(tensors), first.weight_shape[1]
    return Kronecker(first, factor(2, channels // blocks if channels % blocks == 0 else 0)), rank


def _channels(tensors: Mapping[str, Tensor]) -> int:
    """How many inputs a module has, as a magnitude along them tells; 0 when there is none."""
    magnitude = tensors.get(Role.MAGNITUDE)
    return magnitude.numel() if magnitude is not None and magnitude.ndim > 1 else 0


def _unflattened(n: int, m: int, channels: int) -> tuple[int, ...]:
    """(n, channels, kernel) of a convolution that LyCORIS stores flattened, (n, m) of any other weight."""
    return (n, channels, m // channels) if channels and channels < m and m % channels == 0 else (n, m)
