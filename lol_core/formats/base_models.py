"""Which base model a LoRA's module names and shapes suggest, whatever its metadata claims.

Widths, numbers of blocks and names are those of the models' published configurations (diffusers, transformers, the
original repositories). Families that share names are told apart by width or by the number of a block; where neither
decides, nothing is suggested.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from lol_core.core.header import HasHeaders

CROSS_ATTENTION = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
"""Width of the text states that a UNet's cross-attention reads."""

CLIP = {768: "CLIP ViT-L text encoder", 1024: "OpenCLIP ViT-H text encoder", 1280: "OpenCLIP ViT-bigG text encoder"}
"""By hidden size: Stable Diffusion 1.x (and the first of XL and Flux), 2.x, the second of XL."""


WAN = {1536: "Wan 1.3B", 3072: "Wan 5B", 5120: "Wan 14B"}
"""By hidden size."""


@dataclass(frozen=True)
class Evidence:
    """Names of modules, dots as underscores, with the output and input widths of their weights."""

    modules: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, lora: HasHeaders) -> Evidence:
        return cls({f"_{header.name.replace('.', '_')}_": header.widths for header in lora.headers})

    @cached_property
    def _lines(self) -> str:
        return "\n".join(self.modules)

    def has(self, *patterns: str) -> bool:
        """Whether each pattern occurs in a name."""
        return all(re.search(pattern, self._lines, re.MULTILINE) for pattern in patterns)

    def widths(self, pattern: str) -> set[int]:
        """The input widths of the modules whose name it occurs in."""
        return {m for name, (_, m) in self.modules.items() if re.search(pattern, name)}

    def last(self, pattern: str) -> int:
        """The highest number that the pattern's group catches, -1 without one."""
        matches = (re.search(pattern, name) for name in self.modules)
        return max((int(match[1]) for match in matches if match and len(match[1]) < 6), default=-1)


Rule = Callable[[Evidence], str | None]


def base_name(base: str) -> str:
    """What a base model is called, whoever published it and wherever it lay: the last part of its name or path."""
    return re.sub(r"\.(safetensors|ckpt|pt|bin)$", "", re.split(r"[/\\]", base.rstrip("/\\"))[-1].lower())


def suggest_base_model(lora: HasHeaders) -> str | None:
    """A family such as "Stable Diffusion 1.x" or "BERT-like encoder, hidden size 384"; None when they do not
    decide.
    """
    evidence = Evidence.of(lora)
    for rule in RULES:
        if family := rule(evidence):
            return None if family == UNDECIDED else family
    return None


UNDECIDED = "undecided"
"""What a rule says that recognises the kind of model and cannot tell which: no later rule may guess."""


def _named(e: Evidence) -> str | None:
    """Models with a name that no other one has."""
    for family, patterns in (
        ("Chroma", ("_distilled_guidance_layer_",)),
        ("HiDream", ("_(double|single)_stream_blocks_",)),
        ("AuraFlow", ("_joint_transformer_blocks_",)),
        ("Stable Diffusion 3", ("_joint_blocks_",)),
        ("Qwen-Image", ("_transformer_blocks_", r"_(img|txt)_(mlp|mod)_(net|1)_")),
        ("Flux.2", ("_to_qkv_mlp_proj_",)),
        ("Stable Cascade", ("^_lora_prior_unet_",)),
        ("HunyuanVideo", ("_individual_token_refiner_",)),
        ("LTX-2", ("_transformer_blocks_", "_audio_(attn|ff|to_video)")),
    ):
        if e.has(*patterns):
            return family
    return None


def _refiners(e: Evidence) -> str | None:
    if not (e.has("_(context|noise)_refiner_") or e.has(r"_layers_\d+_(attention|attn)_(qkv|to_q)_")):
        return None
    attention = e.widths(r"_layers_\d+_(attention|attn)_(qkv|to_[qkv])_|refiner_\d+_(attention|attn)_(qkv|to_[qkv])_")
    if 3840 in attention:
        return "Z-Image"
    if 2304 in attention:
        return "Lumina 2"
    return UNDECIDED if e.has("_refiner_") else None


def _flux_like(e: Evidence) -> str | None:
    """double_blocks and single_blocks: Flux has 19 and 38 of them, HunyuanVideo 20 and 40, Flux.2 other widths."""
    if not e.has("_(double|single)_blocks_"):
        return None
    widths = e.widths(r"_(double|single)_blocks_\d+_(img_attn_?_?qkv|txt_attn_?_?qkv|linear1|processor_(qkv|proj))")
    if widths & {6144, 4096}:
        return "Flux.2"
    if widths and not widths & {3072}:
        return "Flux" if min(widths) < 3072 and _flux_words(e) else UNDECIDED
    fused = {n for name, (n, _) in e.modules.items() if re.search(r"_single_blocks_\d+_linear1_", name)}
    if 27648 in fused:
        return "Flux.2"
    double, single = e.last(r"_double_blocks_(\d+)_"), e.last(r"_single_blocks_(\d+)_")
    if double > 18 or single > 37 or e.has(r"_(img|txt)_(mlp_fc[12]|mod_linear|attn_qkv_fused)_"):
        return "HunyuanVideo"
    if double == 18 or single == 37 or _flux_words(e) or e.has(r"_processor_\w*lora"):
        return "Flux"
    return UNDECIDED if max(double, single) >= 0 else None


def _flux_words(e: Evidence) -> bool:
    return e.has(
        r"_(img|txt)_(mlp_[02]|mod_lin)_|_modulation_lin_|_(vector|guidance|time)_in_(in|out)_layer_|_txt_in_$"
    )


def _joint_attention(e: Evidence) -> str | None:
    """diffusers' transformer_blocks with attention over text and image together."""
    if e.has("_single_transformer_blocks_"):
        double, single = e.last(r"_(?<!single_)transformer_blocks_(\d+)_"), e.last(r"single_transformer_blocks_(\d+)_")
        widths = e.widths("transformer_blocks_.*to_[qkv]_")
        if widths & {6144, 4096}:
            return "Flux.2"
        if double > 18 or single > 37:
            return "HunyuanVideo" if double <= 19 and single <= 39 else UNDECIDED
        return "Flux"
    if not e.has(r"_transformer_blocks_\d+_attn_(add_[qkv]_proj|to_[qkv])_") or _unet(e):
        return None
    widths = e.widths(r"_transformer_blocks_\d+_attn_(to_[qkv]|add_[qkv]_proj)_")
    last = e.last(r"_transformer_blocks_(\d+)_")
    if widths & {1536, 2432, 1152} and 3072 not in widths:
        return "Stable Diffusion 3"
    if 3072 in widths and e.has("_(ff_context|norm1_linear|norm1_context)_"):
        return "Flux" if last <= 18 else UNDECIDED
    if 3072 in widths and 19 < last < 60:
        return "Qwen-Image"
    return UNDECIDED


def _two_attentions(e: Evidence) -> str | None:
    """Transformers whose blocks attend to the image and to the text in turn."""
    if e.has(r"_blocks_\d+_(self|cross)_attn_[qkv]_proj_"):
        own = e.widths(r"_blocks_\d+_self_attn_[qkv]_proj_|_blocks_\d+_cross_attn_q_proj_")
        text = e.widths(r"_blocks_\d+_cross_attn_[kv]_proj_")
        return "Cosmos Predict" if (own & {2048, 5120} and text <= {1024}) else UNDECIDED
    if e.has(r"_blocks_\d+_(self_attn_[qkvo]|cross_attn_[qkvo]|ffn_[02]|ffn_net_0_proj)_"):
        widths = e.widths(r"_blocks_\d+_(self_attn_[qkvo]|cross_attn_[qkvo]|ffn_0|attn[12]_to_[qkv]|ffn_net_0_proj)_")
        return next((WAN[width] for width in sorted(widths) if width in WAN), UNDECIDED)
    if _unet(e) or not e.has(r"_transformer_blocks_\d+_attn1_"):
        return None
    own, text = e.widths("_attn1_to_[qkv]_"), e.widths("_attn2_to_[kv]_")
    if own & {1536, 5120}:
        return WAN[max(own & {1536, 5120})] if text <= own else "Cosmos Predict" if text == {1024} else UNDECIDED
    if 3072 in own and text == {3072}:
        return WAN[3072]
    if 1152 in own:
        return "PixArt" if text <= {1152} else UNDECIDED
    if 2240 in own:
        return "Sana"
    if own & {1920, 3072} and not text:
        return "CogVideoX" if not e.has("_add_[qkv]_proj_") else "Mochi"
    if 2048 in own:
        return "Cosmos Predict" if text == {1024} else "LTX-Video" if text == {2048} else UNDECIDED
    return "LTX-Video" if 4096 in own and text <= {4096} else UNDECIDED


def _unet(e: Evidence) -> bool:
    return e.has(r"_(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_")


def _stable_diffusion(e: Evidence) -> str | None:
    if e.has("^_unet:"):
        known = e.widths("^_unet:") & CROSS_ATTENTION.keys()
        return CROSS_ATTENTION[known.pop()] if len(known) == 1 else "a Stable Diffusion UNet"
    if not _unet(e):
        return None
    cross = e.widths("_attn2_(to_[kv]|processor_to_[kv])_") & CROSS_ATTENTION.keys()
    if len(cross) == 1:
        return CROSS_ATTENTION[cross.pop()]
    if e.has(r"_transformer_blocks_[1-9]\d*_") and e.widths("_transformer_blocks_") & {640, 1280}:
        return CROSS_ATTENTION[2048]  # only XL has several transformer blocks in one attention
    return "a Stable Diffusion UNet"


def _text_encoders(e: Evidence) -> str | None:
    if e.has(r"text_model_encoder_layers_\d+_|_text_encoder:\d"):
        hidden = e.widths(r"text_model_encoder_layers_\d+_(self_attn_[qkv]_proj|mlp_fc1)_")
        return CLIP[hidden.pop()] if len(hidden) == 1 and hidden <= CLIP.keys() else "CLIP text encoder"
    if e.has("_SelfAttention_|_EncDecAttention_"):
        return f"T5-like encoder–decoder, hidden size {_hidden(e)}"
    return None


def _hidden(e: Evidence) -> int:
    attention = e.widths("(?i)attn|attention")
    return min(attention) if attention else max((m for _, m in e.modules.values()), default=0)


def _transformers(e: Evidence) -> str | None:
    """Language and vision models of the transformers library, by the names of their layers."""
    for kind, pattern in (
        ("ChatGLM-like decoder", r"_encoder_layers_\d+_self_attention_(query_key_value|dense)_"),
        ("GPT-NeoX-like decoder", "_gpt_neox_"),
        ("GPT-2/BLOOM-like decoder", r"_c_attn_|_transformer_h_\d+_"),
        ("Whisper/BART-like encoder–decoder", r"_decoder_layers_\d+_encoder_attn_"),
        ("OPT-like decoder", r"_decoder_layers_\d+_(self_attn|fc[12])_"),
        ("vision transformer", r"_vit_|_vision_model_|_blocks_\d+_attn_(qkv|q|v|proj)_"),
        ("BERT-like encoder", "_attention_self_|_q_lin_|_k_lin_|_v_lin_"),
        (
            "Llama-like decoder",
            r"_layers_\d+_(self_attn_(q|k|v|o|qkv)_proj|mlp_(gate|up|down|gate_up)_proj)_|_q_proj_$",
        ),
        ("Llama-like decoder", r"_layers_\d+_(attention_w[qkvo]|wqkv)_|_blk_\d+_(attn|ffn)_"),
    ):
        if e.has(pattern):
            return f"{kind}, hidden size {_hidden(e)}"
    return None


def _plain_projections(e: Evidence) -> str | None:
    """q_proj and its kin without the layers' name, as small models have them."""
    if any(name.endswith(("_q_proj_", "_k_proj_", "_v_proj_", "_o_proj_")) for name in e.modules):
        return f"Llama-like decoder, hidden size {_hidden(e)}"
    return None


RULES: tuple[Rule, ...] = (
    _named,
    _refiners,
    _flux_like,
    _joint_attention,
    _two_attentions,
    _stable_diffusion,
    _text_encoders,
    _transformers,
    _plain_projections,
)
"""Asked in this order; diffusion models before their text encoders."""
