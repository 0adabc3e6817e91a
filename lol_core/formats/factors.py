"""From the tensors as a file stores them to plain factors: dequantised, blocks put together, turned the usual way, and
what stands between them multiplied in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from lol_core.errors import LoRAFormatError
from lol_core.formats.names import Role

QUANTISED = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
WHOLE_NUMBERS = frozenset((torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool))
WHOLE = frozenset(Role)
"""Slots of parts in one piece, and as they are multiplied."""
NO_FACTORS = frozenset((Role.ALPHA, Role.SCALE, Role.BLOCKS))

DIMENSIONS: dict[str, tuple[int, int]] = {
    **dict.fromkeys((Role.DOWN, Role.UP, Role.LOKR_W1, Role.LOKR_W2), (2, 5)),
    **dict.fromkeys((Role.EMBEDDING_DOWN, Role.EMBEDDING_UP), (2, 2)),
    **dict.fromkeys((Role.TRANSPOSED_DOWN, Role.TRANSPOSED_UP), (2, 3)),
    **dict.fromkeys((Role.HADA_W1_A, Role.HADA_W1_B, Role.HADA_W2_A, Role.HADA_W2_B, Role.MIXER), (2, 2)),
    **dict.fromkeys((Role.LOKR_W1_A, Role.LOKR_W1_B, Role.LOKR_W2_A, Role.LOKR_W2_B), (2, 2)),
    **dict.fromkeys((Role.HADA_T1, Role.HADA_T2, Role.LOKR_T2, Role.MID), (3, 5)),
    Role.DIAGONAL: (1, 2),
}
"""Fewest and most dimensions that a part can have: a convolution's factors have two more than a matrix, or three."""


def plain(name: str, slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Role → tensor from slot → tensor (see `names.Part.slot`). Raises LoRAFormatError when they do not fit."""
    tensors = dict(slots) if slots.keys() <= WHOLE else _together(name, _dequantised(name, slots))
    for role, tensor in tensors.items():
        least, most = DIMENSIONS.get(role, (0, 5))
        if not least <= tensor.ndim <= most:
            expected = f"{least} to {most}" if least < most else most
            raise LoRAFormatError(
                f"{name}: its {role} has the shape {tuple(tensor.shape)}; expected {expected} dimensions."
            )
        if role not in NO_FACTORS and (tensor.numel() == 0 or tensor.dtype in WHOLE_NUMBERS):
            what = (
                "no numbers"
                if tensor.numel() == 0
                else f"whole numbers ({str(tensor.dtype)[6:]}) without a scale, as a quantised factor"
            )
            raise LoRAFormatError(f"{name}: its {role} of shape {tuple(tensor.shape)} holds {what}")
    return tensors


def _dequantised(name: str, slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not any(slot.endswith("*") for slot in slots):
        return dict(slots)
    tensors = {}
    for slot, tensor in slots.items():
        if slot.endswith("*"):
            if slot[:-1] not in slots:
                raise LoRAFormatError(f"{name}: a quantisation scale of {slot[:-1]}, but no {slot[:-1]}.")
            continue
        scale = slots.get(f"{slot}*")
        if scale is not None:
            if tensor.dtype not in QUANTISED:
                raise LoRAFormatError(f"{name}: beside {slot} stands a scale, but its numbers are {tensor.dtype}.")
            scale = scale.float().to(tensor.device)
            if scale.numel() == 1:
                scale = scale.reshape(())
            elif scale.shape in ((len(tensor),), (len(tensor), *[1] * (tensor.ndim - 1))):
                scale = scale.reshape(len(tensor), *[1] * (tensor.ndim - 1))
            else:
                raise LoRAFormatError(
                    f"{name}: {slot} of shape {tuple(tensor.shape)} is quantised with scales of shape"
                    f" {tuple(scale.shape)}; expected one, or one for each of its {len(tensor)} rows."
                )
            tensor = tensor.float() * scale
        tensors[slot] = tensor
    return tensors


def _together(name: str, slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Factors stored in blocks become the matrix with these blocks on its diagonal (LongCat's fused projections)."""
    tensors = {slot: tensor for slot, tensor in slots.items() if "." not in slot}
    if len(tensors) == len(slots):
        return tensors
    blocks: dict[str, dict[int, Tensor]] = {}
    for slot, tensor in slots.items():
        role, dot, place = slot.partition(".")
        if dot:
            blocks.setdefault(role, {})[int(place)] = tensor
    for role, parts in blocks.items():
        if (
            role in tensors
            or sorted(parts) != list(range(len(parts)))
            or any(part.ndim != 2 for part in parts.values())
        ):
            raise LoRAFormatError(f"{name}: {role} in blocks {', '.join(map(str, sorted(parts)))}; a block is missing.")
        tensors[role] = block_diagonal([parts[i] for i in range(len(parts))])
    down, ups = tensors.get(Role.DOWN), blocks.get(Role.UP, {})
    if len(blocks) == 1 and len(ups) > 1 and down is not None and down.ndim == 2:
        rows, ranks = (spans(ups[i].shape[axis] for i in range(len(ups))) for axis in (0, 1))
        if ranks[-1][1] == len(down):
            tensors[Role.BLOCKS] = placed(rows, [(0, down.shape[1])] * len(ups), ranks)
    return tensors


Span = tuple[int, int]
"""Start and stop."""


def spans(sizes: Iterable[int]) -> list[Span]:
    """Those of parts of these sizes, one after the other."""
    return list(pairwise(accumulate(sizes, initial=0)))


def placed(rows: Iterable[Span], columns: Iterable[Span], ranks: Iterable[Span]) -> Tensor:
    """Role.BLOCKS, (e, 3, 2): for each block of a product its rows and columns in the weight and its place in the rank
    (`core.parametrisation.Blocks`).
    """
    return torch.tensor([*zip(rows, columns, ranks, strict=True)])


def block_diagonal(parts: Sequence[Tensor]) -> Tensor:
    """The matrix with these on its diagonal; in float32 where their types differ, or are fp8, which adds to no other.

    Raises LoRAFormatError when they are whole numbers, which are quantised.
    """
    types = {part.dtype for part in parts}
    if not all(dtype.is_floating_point for dtype in types):
        raise LoRAFormatError(f"blocks of {', '.join(sorted(str(dtype)[6:] for dtype in types))}: quantised factors?")
    if len(types) > 1 or any(dtype.itemsize == 1 for dtype in types):
        parts = [part.float() for part in parts]
    shape = sum(len(part) for part in parts), sum(part.shape[1] for part in parts)
    if any(part.is_meta for part in parts):  # a block of one number has it even where the others have none
        return torch.empty(shape, dtype=parts[0].dtype, device="meta")
    whole = parts[0].new_zeros(shape)
    row = column = 0
    for part in parts:  # torch.block_diag takes a second to load what it needs for tensors without data
        whole[row : row + len(part), column : column + part.shape[1]] = part
        row, column = row + len(part), column + part.shape[1]
    return whole


def turned(name: str, tensors: Mapping[str, Tensor], transposed: bool | None) -> dict[str, Tensor]:
    """Factors stored (in, r), (r, out) as (r, in), (out, r). transposed: what the file's other modules say, if they do.

    Raises LoRAFormatError when neither way gives a product of low rank.
    """
    tensors = dict(tensors)
    own = Role.TRANSPOSED_DOWN in tensors
    down = tensors.pop(Role.TRANSPOSED_DOWN, tensors.get(Role.DOWN))
    up = tensors.pop(Role.TRANSPOSED_UP, tensors.get(Role.UP))
    if down is None or up is None:
        return tensors
    if down.ndim == 2 and up.ndim == 2:
        ways = orientations(down, up)
        turn = ways[0] if len(ways) == 1 else own if transposed is None else transposed
        if turn:
            down, up = down.T, up.T
            tensors.pop(Role.BLOCKS, None)
    tensors[Role.DOWN], tensors[Role.UP] = down, up
    return tensors


def orientations(down: Tensor, up: Tensor) -> list[bool]:
    """The ways in which two matrices multiply: False as (r, in), (out, r), True as (in, r), (r, out). A single way that
    gives a rank above both sides is none.
    """
    if down.ndim != 2 or up.ndim != 2:
        return []
    (a, b), (c, d) = down.shape, up.shape
    if a == d and b == c:
        return [False, True]
    if a == d:
        return [False] if a <= max(b, c) else []
    return [True] if b == c and b <= max(a, d) else []


def multiplied(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stands between up and down, multiplied into down: up · M · down (MoSLoRA, LoRA-XS), up · diag(d) · down
    (AdaLoRA's lora_E, KaSA's lora_diag).
    """
    tensors = dict(tensors)
    mixer, diagonal = tensors.pop(Role.MIXER, None), tensors.pop(Role.DIAGONAL, None)
    if mixer is None and diagonal is None:
        return tensors
    role = Role.DOWN if Role.DOWN in tensors else Role.EMBEDDING_DOWN
    down = tensors.get(role)
    if down is None:
        raise LoRAFormatError(f"{name}: a matrix between factors that are no pair of up and down.")
    rank = down.shape[0]
    if diagonal is not None and diagonal.numel() != rank:
        raise LoRAFormatError(f"{name}: a diagonal of {diagonal.numel()} between factors of rank {rank}.")
    if mixer is not None and mixer.shape != (rank, rank):
        raise LoRAFormatError(
            f"{name}: a matrix {tuple(mixer.shape)} between factors of rank {rank}; expected {(rank, rank)}."
        )
    flat = down.float().flatten(1)
    if not flat.is_meta:  # where there are no numbers to multiply, PyTorch takes a second to load how it would
        if diagonal is not None:
            flat = diagonal.float().reshape(rank, 1) * flat
        if mixer is not None:
            flat = mixer.float() @ flat
    if mixer is not None:
        tensors.pop(Role.BLOCKS, None)
    tensors[role] = flat.reshape(down.shape)
    return tensors


def oriented_magnitude(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DoRA's vector as the assembly expects it: one per output flat, one per input as a row.

    PEFT, ai-toolkit and MLX write one per output (of an embedding, PEFT: one per dimension, its inputs here). LyCORIS,
    OneTrainer and ComfyUI keep the axis in the shape: (out, 1, …) or (1, in, 1, …).
    """
    tensors = dict(tensors)
    scale = tensors.pop(Role.DORA_SCALE, None)
    magnitude = tensors.get(Role.MAGNITUDE)
    if scale is not None:
        along_inputs = scale.ndim > 1 and scale.shape[0] == 1 and scale.numel() > 1
        tensors[Role.MAGNITUDE] = scale.reshape(1, -1) if along_inputs else scale.reshape(-1)
    elif magnitude is not None:
        tensors[Role.MAGNITUDE] = magnitude.reshape(1, -1) if Role.EMBEDDING_DOWN in tensors else magnitude.reshape(-1)
    return tensors
