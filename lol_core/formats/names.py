"""From tensor names to modules: which part a tensor plays, whatever stands before its module's name.

One table of words serves all dialects. A dialect adds its own `parse` only for names that no other one has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache


class Role(StrEnum):
    """The part a tensor plays in the update of its module."""

    DOWN = "down"
    UP = "up"
    MID = "mid"
    TRANSPOSED_DOWN = "transposed_down"
    """(in, r), as MLX and many home-made layers store it."""
    TRANSPOSED_UP = "transposed_up"
    """(r, out)."""
    MIXER = "mixer"
    """(r, r), between up and down."""
    DIAGONAL = "diagonal"
    """(r,) or (r, 1), between up and down."""
    EMBEDDING_DOWN = "embedding_down"
    EMBEDDING_UP = "embedding_up"
    HADA_W1_A = "hada_w1_a"
    HADA_W1_B = "hada_w1_b"
    HADA_W2_A = "hada_w2_a"
    HADA_W2_B = "hada_w2_b"
    HADA_T1 = "hada_t1"
    HADA_T2 = "hada_t2"
    LOKR_W1 = "lokr_w1"
    LOKR_W1_A = "lokr_w1_a"
    LOKR_W1_B = "lokr_w1_b"
    LOKR_W2 = "lokr_w2"
    LOKR_W2_A = "lokr_w2_a"
    LOKR_W2_B = "lokr_w2_b"
    LOKR_T2 = "lokr_t2"
    MAGNITUDE = "magnitude"
    """DoRA's, one per output."""
    DORA_SCALE = "dora_scale"
    """DoRA's, along the axis that its shape tells."""
    ALPHA = "alpha"
    SCALE = "scale"
    """The scale s itself."""
    RANK = "rank"
    """What alpha is divided by where that is not the rank of the factors; in no file."""
    BLOCKS = "blocks"
    """Where up and down hold numbers and not zeros that fill up: see `factors.placed`; in no file."""
    APART = "apart"
    """No part of ΔW: biases, and what only training used."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a tensor's name says. prefix: the name up to the part, as the file has it; module: the module's own name.

    block: the place in a factor that is stored in diagonal blocks; is_scale: not the factor itself but what its
    quantised numbers are multiplied by.
    """

    prefix: str
    module: str
    role: Role
    adapter: str = ""
    block: int | None = None
    is_scale: bool = False

    @property
    def slot(self) -> str:
        """The role, and which piece of it: the key of `Modules`."""
        return f"{self.role}{'' if self.block is None else f'.{self.block}'}{'*' if self.is_scale else ''}"


DOTTED = {
    "lora_A": Role.DOWN,
    "lora_B": Role.UP,
    "lora_a": Role.DOWN,
    "lora_b": Role.UP,
    "lora.A": Role.DOWN,
    "lora.B": Role.UP,
    "lora.down": Role.DOWN,
    "lora.up": Role.UP,
    "lora_linear_layer.down": Role.DOWN,
    "lora_linear_layer.up": Role.UP,
    "adapter.linear_in": Role.DOWN,  # Megatron, NeMo
    "adapter.linear_out": Role.UP,
    "lora_layer.down": Role.DOWN,
    "lora_layer.up": Role.UP,
    "lora_right_weight": Role.TRANSPOSED_DOWN,  # DeepSpeed-Chat
    "lora_left_weight": Role.TRANSPOSED_UP,
    "matrix_A": Role.DOWN,  # SAT: one pair for each part of a fused projection
    "matrix_B": Role.UP,
    "lora_embedding_A": Role.EMBEDDING_DOWN,
    "lora_embedding_B": Role.EMBEDDING_UP,
    "lora_E": Role.DIAGONAL,  # AdaLoRA
    "lora_diag": Role.DIAGONAL,  # KaSA
    "lora_AB": Role.MIXER,  # MoSLoRA
    "lora_magnitude_vector": Role.MAGNITUDE,
    "magnitude": Role.MAGNITUDE,
    "dora_scale": Role.DORA_SCALE,
    "alpha": Role.ALPHA,
    "lora_alpha": Role.ALPHA,
    "network_alpha": Role.ALPHA,
    "alpha_scale": Role.SCALE,
    "scaling": Role.SCALE,
    "lora_scaling": Role.SCALE,
    "lora_dropout": Role.APART,
    "lora_velora_embed": Role.APART,
    "lora_monteclora_sampler": Role.APART,
    "ranknum": Role.APART,
    "reshape_weight": Role.APART,
    **{role.value: role for role in Role if role.startswith(("hada_", "lokr_"))},
}
"""Words after a dot."""

JOINED = {
    "lora_down": Role.DOWN,
    "lora_up": Role.UP,
    "lora_mid": Role.MID,
    "lora_latent_mapping": Role.MIXER,  # LoRA-XS; saving drops the adapter's name out of `q_proj.default_lora_…`
    "default_lora_latent_mapping": Role.MIXER,
    "adapter.linear_in": Role.DOWN,  # NeMo's `adapter_layer.lora_kqv_adapter.linear_in`
    "adapter.linear_out": Role.UP,
}
"""Words after a dot or an underscore."""

ALONE = {word: DOTTED[word] for word in ("lora_A", "lora_B")} | {
    word: JOINED[word] for word in ("lora_down", "lora_up")
}
"""Words that may stand without a module: one adapted layer by itself."""

MATRICES = ("lora_a", "lora_b", "lora.A", "lora.B")
"""Words of bare parameters that are stored (in, r) and (r, out); with `.weight` they are ordinary linear layers."""

_TRANSPOSED = {Role.DOWN: Role.TRANSPOSED_DOWN, Role.UP: Role.TRANSPOSED_UP}


def _alternatives(words: dict[str, Role]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_WORD = re.compile(
    rf"^(?:(?P<prefix>.+?)(?:\.(?P<dotted>{_alternatives(DOTTED)})|[._](?P<joined>{_alternatives(JOINED)}))|(?P<alone>{_alternatives(ALONE)}))"
    r"(?P<rest>(?:\..+)?)$"
)
_QUANTISED = re.compile(r"^(?:\.(?P<adapter>.+?))??\.(?:(?:weight[._]?)?_?scales?(?:_inv)?|scale_weight)$")
_HINT = re.compile(r"\.(input_scale|scale_input|output_scale|comfy_quant)$")
_BLOCK = re.compile(r"^\.blocks\.(?P<block>\d+)\.weight$")
_PROCESSOR = re.compile(
    r"^(?P<prefix>(?P<attention>.*?)\.?(?P<processor>processor\.)?to_(?P<projection>q|k|v|out)_lora)"
    r"\.(?P<role>down\.weight|up\.weight|alpha)$"
)
_NO_ADAPTER = re.compile(
    r"(^|\.)(weight|SCB|absmax|quant_map|nested_\w+|_data|blocks|\w*(scale|zero|quant)\w*)(\.|$)|\.\."
)
_WRAPPERS = re.compile(r"(^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LEADING = re.compile(r"^(?:base_model\.model\.|module\.(?=.))+")
_ADAPTERHUB = re.compile(r"^(?P<module>.+)\.loras\.(?P<adapter>[^.]+)$")


def bare(module: str) -> str:
    """A module's name without what wrappers put before it: PEFT, torch.compile, FSDP, DataParallel, in any order."""
    return _LEADING.sub("", _WRAPPERS.sub("", module))


@lru_cache(maxsize=1 << 17)
def role_of(key: str) -> Part | None:
    """What a tensor's name says, or None when it names no part of a low-rank update."""
    if processor := _PROCESSOR.match(key):  # diffusers' first attention processors, and IP-Adapter's
        projection = "to_out.0" if processor["projection"] == "out" else f"to_{processor['projection']}"
        role = Role.ALPHA if processor["role"] == "alpha" else Role(processor["role"].removesuffix(".weight"))
        module = f"{processor['attention']}.{projection}" if processor["attention"] else projection
        return Part(processor["prefix"], bare(module), role)
    match = _WORD.match(key)
    if not match:
        return None
    word = match["dotted"] or match["joined"] or match["alone"]
    role, prefix, rest = DOTTED.get(word) or JOINED[word], match["prefix"] or "", match["rest"]
    module, adapter, block, is_scale = prefix, "", None, False
    if hub := _ADAPTERHUB.match(prefix):
        module, adapter = hub["module"], hub["adapter"]
    if role in (Role.ALPHA, Role.SCALE):
        if rest:
            return None
    elif role == Role.APART or rest.endswith(".bias") or _HINT.search(rest):
        role = Role.APART
    elif blocks := _BLOCK.match(rest):
        block = int(blocks["block"])
    elif quantised := _QUANTISED.match(rest):
        adapter, is_scale = quantised["adapter"] or adapter, True
    elif word in ("matrix_A", "matrix_B"):
        module += rest
    elif not rest:
        role = _TRANSPOSED[role] if word in MATRICES else role
    elif rest != ".weight":
        name = rest.removesuffix(".weight")[1:]
        if not name or _NO_ADAPTER.search(name) or not (rest.endswith(".weight") or word not in JOINED):
            return None
        adapter = name
    return Part(prefix, bare(module) or "(one layer)", role, adapter, block, is_scale)
