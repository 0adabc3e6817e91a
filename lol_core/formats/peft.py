"""PEFT adapters and everything with the same words, whatever the prefix: LoRA, rsLoRA, DoRA, AdaLoRA, LoHa, LoKr,
embeddings, grouped products, with `adapter_config.json` where there is one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lol_core.errors import LoRAFormatError
from lol_core.formats.factors import block_diagonal, placed, spans
from lol_core.formats.grouping import FACTORS
from lol_core.formats.names import Role, role_of
from lol_core.formats.reading import Config, Dialect, Spelling, Tensors
from lol_core.formats.scale import number, patterned

RESIDUAL = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Initialisations that take something out of the base weights, or replace them."""

MAX_POOLED = 4096
"""Inputs that QALoRA may pool to one."""


def matches(keys: list[str]) -> bool:
    return any((part := role_of(key)) is not None and part.role in FACTORS for key in keys)


def prepare(name: str, tensors: Tensors, config: Config) -> Tensors:
    """The variants that a configuration turns on, and products in groups, as one pair of factors."""
    if (second := tensors.get(Role.LOKR_W2)) is not None and second.ndim == 3 and config.get("peft_type") == "LOKR":
        raise LoRAFormatError(
            f"{name}: a LoKr of a Conv1d, whose numbers PEFT puts in another order than its product has (`make_kron`"
            " takes the kernel's axis for the inputs'): no Kronecker product"
        )
    down, up = tensors.get(Role.DOWN), tensors.get(Role.UP)
    if down is None or up is None or 0 in up.shape:
        return tensors
    if experts := _experts_of(name, down, up, config):
        return {**tensors, **experts}
    if config.get("use_bdlora"):
        return {**tensors, **_block_diagonal(name, down, up, config["use_bdlora"])}
    if config.get("use_qalora"):
        return {**tensors, Role.DOWN: _unpooled(down, config)}
    if down.ndim == 2 and down.shape[0] != up.shape[1] and (up.ndim == 2 or (up.ndim == 3 and up.shape[2] == 1)):
        rank = torch.tensor(up.shape[1])
        return {**tensors, Role.RANK: rank, **_merged_linear(name, down, up.flatten(1), config)}
    if up.ndim > 2 and up.ndim == down.ndim and down.shape[0] != up.shape[1]:
        return {**tensors, **_grouped_convolution(down, up)}
    return tensors


def _experts_of(name: str, down: Tensor, up: Tensor, config: Config) -> Tensors:
    """PEFT's `target_parameters`: a pair for each expert of a stack in one linear layer each (`ParamWrapper`).

    down: (E·r, in) → (E, r, in); up: (out, r·E), the experts innermost, → (E, out, r). Empty where the module is
    no such stack.
    """
    targets = config.get("target_parameters")
    owner = name
    while owner.endswith(".base_layer"):
        owner = owner.removesuffix(".base_layer")
    if not isinstance(targets, list) or down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        return {}
    if not any(f".{owner}".endswith(f".{str(target).rpartition('.')[0]}") for target in targets):
        return {}
    names = tuple(str(target) for target in targets)
    if any(patterned(config.get(key), names) is not None for key in ("rank_pattern", "alpha_pattern")):
        raise LoRAFormatError(
            f"{name}: rank_pattern or alpha_pattern names one of several parameters (target_parameters), and the file"
            " does not say which of them this module adapts."
        )
    rank = int(number(config.get("r")) or 0)
    if rank < 1 or down.shape[0] % rank:
        raise LoRAFormatError(
            f"{name}: {down.shape[0]} rows of lora_A for a stack of experts (target_parameters); expected a multiple of"
            f" the configured rank, r = {config.get('r')}."
        )
    count = down.shape[0] // rank
    if count == 1:
        return {}
    pairs = down.reshape(count, rank, -1), up.reshape(len(up), rank, count).permute(2, 0, 1)
    return {Role.DOWN: pairs[0], Role.UP: pairs[1], Role.RANK: torch.tensor(rank)}


def _merged_linear(name: str, down: Tensor, up: Tensor, config: Config) -> Tensors:
    """The up factor of a MergedLinear (loralib, old PEFT, AdapterHub), and its blocks: one projection holds several
    parts, of which e are adapted by a pair each. down: (e·r, in), up: (rows of the adapted parts, r) → (all rows,
    e·r), block-diagonal.
    """
    rank = up.shape[1]
    groups = down.shape[0] // rank
    if groups < 2 or groups * rank != down.shape[0] or up.shape[0] % groups:
        return {Role.UP: up}
    enabled = _enabled(config, groups)
    if sum(enabled) != groups:
        raise LoRAFormatError(
            f"{name}: lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} are a grouped product of {groups} adapted"
            " parts of a merged projection, and which parts these are (enable_lora in the configuration) is not known."
        )
    rows = up.shape[0] // groups
    whole = torch.zeros(rows * len(enabled), down.shape[0], dtype=up.dtype, device=up.device)
    parts = [span for span, on in zip(spans([rows] * len(enabled)), enabled, strict=True) if on]
    ranks = spans([rank] * groups)
    for part, own, columns in zip(up.chunk(groups), parts, ranks, strict=True):
        whole[slice(*own), slice(*columns)] = part
    return {Role.UP: whole, Role.BLOCKS: placed(parts, [(0, down.shape[1])] * groups, ranks)}


def _enabled(config: Config, groups: int) -> list[bool]:
    """Which parts of a fused projection are adapted; with as many as there are thirds of it, all."""
    nested = config.get("config")
    if isinstance(config.get("enable_lora"), list):
        return [bool(on) for on in config["enable_lora"]]
    if isinstance(nested, dict) and isinstance(nested.get("attn_matrices"), list):  # AdapterHub
        return [part in nested["attn_matrices"] for part in "qkv"]
    return [True] * 3 if groups == 3 else []


def _block_diagonal(name: str, down: Tensor, up: Tensor, settings: object) -> Tensors:
    """BD-LoRA: one of the factors is stored as the blocks of a block-diagonal matrix, one above the other."""
    if not isinstance(settings, dict):
        return {}
    blocks = int(number(settings.get("nblocks")) or 1)
    leaf = name.rpartition(".")[2]

    def whole(factor: Tensor) -> Tensor:
        if factor.ndim != 2 or blocks < 1 or factor.shape[0] % blocks:
            raise LoRAFormatError(f"{name}: {tuple(factor.shape)} does not divide into {blocks} blocks (use_bdlora).")
        return block_diagonal(factor.chunk(blocks))

    in_a, in_b = (
        any(str(pattern) in leaf for pattern in settings.get(f"target_modules_bd_{side}") or ()) for side in "ab"
    )
    down, up = whole(down) if in_a else down, whole(up) if in_b else up
    if blocks == 1 or not (in_a or in_b) or len(down) != up.shape[1] or len(down) % blocks:
        return {Role.DOWN: down, Role.UP: up}
    rows, columns = (
        spans([side // blocks] * blocks) if cut else [(0, side)] * blocks
        for side, cut in ((up.shape[0], in_b), (down.flatten(1).shape[1], in_a))
    )
    return {Role.DOWN: down, Role.UP: up, Role.BLOCKS: placed(rows, columns, spans([len(down) // blocks] * blocks))}


def _unpooled(down: Tensor, config: Config) -> Tensor:
    """QALoRA: lora_A sees the input averaged over groups of g and multiplied by their number; (r, in/g) → (r, in)."""
    given = config.get("qalora_group_size", 16)
    size = int(given) if isinstance(given, int) and 1 <= given <= MAX_POOLED else 0
    if not size or down.ndim != 2:
        raise LoRAFormatError(
            f"QALoRA pools {str(given)[:40]} inputs (qalora_group_size) for a lora_A of shape {tuple(down.shape)};"
            f" expected a whole number up to {MAX_POOLED} and a matrix."
        )
    scaled = down.float()
    if not scaled.is_meta:  # see factors.multiplied
        scaled = scaled * (down.shape[1] / size)
    return scaled.unsqueeze(2).expand(-1, -1, size).flatten(1)


def _grouped_convolution(down: Tensor, up: Tensor) -> Tensors:
    """The up factor of a convolution in G groups, (out, r/G, 1, …), as the block-diagonal (out, r, 1, …), and its
    blocks.
    """
    rank, width = down.shape[0], up.shape[1]
    groups = rank // width
    if groups * width != rank or up.shape[0] % groups or up.flatten(1).shape[1] != width:
        return {}
    whole = block_diagonal(up.flatten(1).chunk(groups))
    rows, ranks = spans([len(up) // groups] * groups), spans([width] * groups)
    table = placed(rows, [(0, down.flatten(1).shape[1])] * groups, ranks)
    return {Role.UP: whole.reshape(*whole.shape, *[1] * (up.ndim - 2)), Role.BLOCKS: table}


def notes(config: Config) -> list[str]:
    sentences = []
    start = str(config.get("init_lora_weights") or "").lower()
    if start.startswith(RESIDUAL):
        sentences.append(
            f"Trained from a {start} initialisation and not converted: the update is relative to a changed (residual)"
            " base, not to the original weights."
        )
    if config.get("alora_invocation_tokens"):
        sentences.append("An activated LoRA: it acts only after its invocation tokens.")
    if config.get("use_qalora"):
        sentences.append("QALoRA: the input is pooled in groups, so columns of the update repeat.")
    return sentences


DIALECT = Dialect(
    name="PEFT",
    spellings=(
        Spelling(
            "LoRA",
            "base_model.model.MODULE.lora_A.weight",
            "an `.alpha` beside; adapter_config.json with its patterns (rsLoRA: √r); the header; else 1, noted",
            "peft",
        ),
        Spelling("embedding", "base_model.model.MODULE.lora_embedding_A", "as LoRA", "peft"),
        Spelling("DoRA", "base_model.model.MODULE.lora_magnitude_vector", "one magnitude per output", "peft"),
        Spelling(
            "experts",
            "base_model.model.MODULE.experts.lora_A.weight",
            "as LoRA, of each expert's rank",
            "peft (target_parameters)",
        ),
        Spelling(
            "BD-LoRA, QALoRA, grouped convolutions",
            "base_model.model.MODULE.lora_B.weight",
            "as LoRA",
            "peft (use_bdlora, use_qalora)",
        ),
        Spelling("AdaLoRA", "base_model.model.MODULE.lora_E", "lora_alpha / (init_r + 10⁻⁵)", "peft"),
        Spelling("KaSA", "base_model.model.MODULE.lora_diag", "as LoRA", "peft"),
        Spelling("MoSLoRA", "base_model.model.MODULE.lora_AB.weight", "as LoRA", "wutaiqiang/MoSLoRA"),
        Spelling(
            "LoRA-XS",
            "base_model.model.MODULE.default_lora_latent_mapping.weight",
            "as LoRA",
            "MohammadrezaBanaei/LoRA-XS",
        ),
        Spelling(
            "LoHa", "base_model.model.MODULE.hada_w1_a", "alpha/r of adapter_config.json with its patterns", "peft"
        ),
        Spelling(
            "LoKr", "base_model.model.MODULE.lokr_w2_a", "alpha/r of adapter_config.json with its patterns", "peft"
        ),
        Spelling(
            "merged projections",
            "MODULE.c_attn.lora_A",
            "alpha/r of each part; the parts stand in enable_lora",
            "loralib, peft before 0.3, lit-gpt",
        ),
        Spelling(
            "LoRA of adapters",
            "MODULE.loras.NAME.lora_A",
            "config.alpha / config.r of adapter_config.json",
            "AdapterHub",
        ),
        Spelling(
            "LoRA, transposed", "MODULE.lora_A", "lora_alpha/r of lora_config.json", "PaddleNLP; told by the shapes"
        ),
        Spelling("LoRA by hand", "MODULE.lora.A", "1, noted", "LLMs-from-scratch, lit-llama"),
        Spelling("LoRA of torchtune", "MODULE.lora_a.weight", "alpha/r of adapter_config.json", "torchtune"),
        Spelling("LoRA of Megatron", "MODULE.adapter.linear_in.weight", "1, noted", "NeMo, Megatron-Bridge"),
        Spelling("LoRA of DeepSpeed-Chat", "MODULE.lora_right_weight", "1, noted", "DeepSpeed-Chat"),
        Spelling("LoRA of SAT", "MODULE.matrix_A.0", "1, noted", "SwissArmyTransformer, CogVideoX"),
        Spelling(
            "quantised factors",
            "MODULE.lora_A.weight_scale",
            "as LoRA; int8 and fp8 are multiplied by their scales",
            "ComfyUI loaders",
        ),
    ),
    matches=matches,
    prepare=prepare,
    notes=notes,
)
