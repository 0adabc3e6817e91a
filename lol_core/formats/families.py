"""What a file is that holds no low-rank pair: another family of adapters, or no adapter at all.

A family is told by what its tensors are called; where they do not say, by the `peft_type` in adapter_config.json. So a
configuration left in a folder of other files misleads nobody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from lol_core.errors import NotLowRankError
from lol_core.formats.container import TensorFile


@dataclass(frozen=True)
class Family:
    """name: with what it does; mark: pattern found in one of its tensors' names, `every`: in all of them; peft_types:
    what PEFT calls it; beside: whether such tensors also stand in files of low-rank pairs.
    """

    name: str
    mark: str
    peft_types: tuple[str, ...] = ()
    every: bool = False
    beside: bool = False


PEFT_FAMILIES = (
    Family("VB-LoRA: its factors are mixtures from one shared vector bank", r"vblora_", ("VBLORA",)),
    Family("PVeRA: its factors are shared random matrices, its scaling a distribution", r"\bpvera_", ("PVERA",)),
    Family("VeRA: its factors are shared random matrices", r"\bvera_(lambda|A|B)", ("VERA",)),
    Family("RandLoRA: it scales and sums shared random matrices", r"randlora_", ("RANDLORA",)),
    Family("UniLoRA: all its factors are projections of one vector", r"unilora_", ("UNILORA",)),
    Family("TinyLoRA: a few numbers between singular vectors of the base weight", r"tinylora_", ("TINYLORA",)),
    Family("FourierFT: it learns entries of the update's Fourier transform", r"fourierft_", ("FOURIERFT",)),
    Family("WaveFT: it learns entries of the update's wavelet transform", r"waveft_", ("WAVEFT",)),
    Family("C3A: its update is block-circular convolutions", r"c3a_kernel", ("C3A",)),
    Family("SHiRA: its update is sparse, and of high rank", r"shira_", ("SHIRA",)),
    Family("SuperTuning: its update is sparse", r"supertuning_", ("SUPERTUNING",)),
    Family("HiRA: its product multiplies the base weight entry by entry", r"\bhira_[AB]", ("HIRA",)),
    Family("HRA: it reflects weights by Householder matrices", r"\bhra_u", ("HRA",)),
    Family("MiSS or Bone: its update repeats one block", r"\b(miss|bone)_block", ("MISS", "BONE")),
    Family("DeLoRA: its product is normalised, and scaled by the base weight's norm", r"\bdelora_", ("DELORA",)),
    Family("GraLoRA: a grid of low-rank blocks, of high rank together", r"gralora_", ("GRALORA",)),
    Family("RoAd: it rotates and scales activations", r"\broad_(alpha|theta)", ("ROAD",)),
    Family("Poly: a mixture of several LoRAs with a router", r"poly_(lora|router)", ("POLY",)),
    Family("X-LoRA: a mixture of several LoRAs with a classifier over them", r"xlora_", ("XLORA",)),
    Family("Lily: factors shared between layers, mixed by a router", r"\blily_", ("LILY",)),
    Family("PEANuT: small neural networks on the base weight", r"\bpeanut_", ("PEANUT",)),
    Family("FRoD: it scales shared rotations of the base weights", r"\bfrod_", ("FROD",)),
    Family("DEFT: it projects the base weight, and adds to it", r"\bdeft_[PR]", ("DEFT",)),
    Family("AdaMSS: updates within subspaces of the base weight", r"adamss_", ("ADAMSS",)),
    Family("BEFT: it learns biases", r"beft_bias", ("BEFT",)),
    Family("OSF: singular vectors of the base weight itself", r"osf_svd", ("OSF",)),
    Family("PSOFT: a rotation between singular vectors of the base weight", r"psoft_", ("PSOFT",)),
    Family("OFT or BOFT: it rotates weights", r"\bb?oft_(r|R|s|blocks|diag|scale)", ("OFT", "BOFT")),
    Family("IA³: it rescales activations", r"ia3_|\.on_input$", ("IA3",)),
    Family("GLoRA: it also maps the base weight", r"\.a1\.weight|glora_", ("GLORA",)),
    Family("layer-norm tuning: it trains the norm layers themselves", r"ln_tuning_", ("LN_TUNING",)),
    Family("trainable tokens: it learns rows of the embedding", r"trainable_tokens_", ("TRAINABLE_TOKENS",)),
    Family(
        "prompt tuning: it learns input tokens",
        r"prompt_embeddings|prompt_encoder",
        ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT"),
    ),
    Family("CARTRIDGE: it learns keys and values of a prefix", r"cartridge", ("CARTRIDGE",)),
    Family("adaption prompt: it learns prompts inside the layers", r"adaption_(prompt|gate)", ("ADAPTION_PROMPT",)),
    Family("ShadowPEFT: a small network beside the base model", r"shadow_", ("SHADOW",)),
)
LYCORIS_FAMILIES = (
    Family("T-LoRA of LyCORIS: its factors are masked by the timestep", r"\.(p_layer|q_layer|lambda_layer)\b"),
    Family("LyCORIS norm differences", r"w_norm$", beside=True),
    Family("LyCORIS full or norm differences", r"\.diff(_b)?$", beside=True),
)
NEIGHBOURS = (
    Family("an optimizer's state", r"(^|\.)(exp_avg|exp_avg_sq|momentum_buffer|max_exp_avg_sq)(\.|$)|fp32_flat_groups"),
    Family("an IP-Adapter: projections of an image into the attention", r"^(image_proj|ip_adapter)\.|to_[kv]_ip\b"),
    Family("a ControlNet-LLLite: its factors read a condition image", r"^lllite_"),
    Family("a Control-LoRA: factors of a ControlNet beside whole layers", r"^lora_controlnet$"),
    Family(
        "a ControlNet",
        r"(^|\.)(controlnet_\w+|control_model|input_hint_block|zero_convs|controlnet_cond_embedding)\.",
    ),
    Family("a T2I-Adapter", r"^(adapter\.)?body\.\d+\.(in_conv|resnets|block[12])\b"),
    Family("an AnimateDiff motion module", r"motion_modules\.\d+\.temporal_transformer"),
    Family("a hypernetwork", r"^\d+\.\d+\.linear"),
    Family(
        "a textual inversion, embeddings of tokens",
        r"^(emb_params|clip_[lgh]|t5(xxl)?|<.*>|string_to_param\..*|bundle_emb\..*)$",
        every=True,
    ),
    Family(
        "weights packed for Nunchaku (SVDQuant); use the LoRA they were converted from",
        r"\.(qkv_proj|mlp_fc[12]|out_proj|to_\w+|linear\w*|proj\w*)\.(lora_down|lora_up|smooth|smooth_orig)$",
    ),
    Family(
        "a whole Stable Diffusion checkpoint",
        r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\.",
    ),
    Family("a VAE", r"^((en|de)coder\.(conv_in|down|up|mid)|(post_)?quant_conv)\b"),
    Family(
        "a whole language model, or a part of one",
        r"(^|\.)(lm_head|embed_tokens|tok_embeddings|word_embeddings|wte)\.weight$",
    ),
    Family(
        "a whole diffusion model", r"^(conv_in|time_embedding|time_embed|time_in|img_in|x_embedder|patch_embedding)\."
    ),
    Family(
        "an image or text encoder", r"(^|\.)(text_model|vision_model)\.(embeddings|final_layer_norm|post_layernorm)\b"
    ),
)
LEAVES = frozenset("weight bias running_mean running_var num_batches_tracked gamma beta inv_freq".split())
WHOLE_MODEL = 8
"""Matrices called `weight`, and nothing else, that make a file a model rather than something unknown."""


def family_of(keys: list[str], config: Mapping[str, Any]) -> Family | None:
    """The family that the names of the tensors tell, else the configuration; None when neither does."""
    lines = "\n".join(keys)  # one search of all names is many times faster than one of each
    for family in (*PEFT_FAMILIES, *LYCORIS_FAMILIES, *NEIGHBOURS):
        mark = _compiled(family.mark)
        if all(map(mark.search, keys)) if family.every else mark.search(lines):
            return family
    kind = str(config.get("peft_type", ""))
    return next((family for family in PEFT_FAMILIES if kind in family.peft_types), None)


@cache
def _compiled(mark: str) -> re.Pattern[str]:
    return re.compile(mark, re.MULTILINE)


def explain(file: TensorFile, config: Mapping[str, Any]) -> NotLowRankError:
    """Why a sound file has nothing to read, naming what it is."""
    keys = file.keys
    if not keys:
        held = f"metadata ({', '.join(list(file.metadata)[:3])})" if file.metadata else "an empty header"
        return NotLowRankError(f"The file holds no tensors, only {held}. Save it again with its weights.")
    example = f"{len(keys)} tensor{'s' if len(keys) > 1 else ''}, e.g. {keys[0]!r}"
    if file.metadata.get("general.type") not in (None, "adapter"):
        return NotLowRankError(
            f"A whole GGUF {file.metadata['general.type']} ({example}), not an adapter of one. Nothing to embed."
        )
    if family := family_of(keys, config):
        if family in NEIGHBOURS:
            return NotLowRankError(f"No LoRA but {family.name}: {example}. Nothing to embed.")
        return NotLowRankError(
            f"Another kind of adapter ({family.name}) without a low-rank product: {example}. Nothing to embed."
        )
    if all(prod(shape) <= 1 for shape in file.shapes.values()):
        return NotLowRankError(
            f"{len(keys)} single numbers (e.g. {keys[0]!r}) and no matrices: settings of adapters, no factors."
        )
    weights = sum(key.endswith(".weight") and len(file.shapes[key]) > 1 for key in keys)
    if weights >= WHOLE_MODEL and all(key.rpartition(".")[2] in LEAVES for key in keys):
        return NotLowRankError(f"No LoRA but a whole model, or layers of one: {example}. Nothing to embed.")
    claims = {"adapter_config.json": config.get("peft_type"), "Its header": file.metadata.get("modelspec.architecture")}
    configured = "".join(f" {who} calls it {str(kind)[:60]!r}." for who, kind in claims.items() if kind)
    return NotLowRankError(
        f"No low-rank pairs among its {example}: an unknown kind of adapter, or no adapter.{configured}"
    )
