"""The names of a diffusion model's modules: kohya's, for files, and one in common for the many of as many programs, by
which the modules of several files are matched.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

KOHYA_PREFIXES = {
    "unet": "lora_unet",
    "diffusion_model": "lora_unet",
    "transformer": "lora_transformer",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
    "text_encoder_3": "lora_te3",
}
FLATTENED = re.compile(r"^(lora|lycoris)_\w+$")
_COMFY = re.compile(r"^(?:model\.(?=diffusion_model\.)|text_encoders\.(clip_l|clip_h|clip_g|t5xxl)\.transformer\.)")
_COMFY_ENCODERS = {"clip_g": "text_encoder_2.", "t5xxl": "text_encoder_3.", None: ""}
_LANGUAGE = re.compile(
    r"^transformer\.(?:h|encoder|layer|wte|word_embeddings|blocks\.\d+\.(?:attn|ffn\.(?!net\.)))(?:\.|$)"
)
"""What language models call `transformer`: GPT-2, Falcon, ChatGLM, MPT."""
_ALONE = {
    re.compile(r"^(?:down_blocks|mid_block|up_blocks)\."): "unet",
    re.compile(r"^(?:(?:single_)?transformer_blocks\.\d+|blocks\.\d+\.(?:attn[12]|ffn\.net))\."): "transformer",
    re.compile(
        r"^(?:input_blocks|middle_block|output_blocks|joint_blocks\.\d+|(?:double|single)_blocks\.\d+\.(?!processor)\w+"
        r"|blocks\.\d+\.(?:(?:self|cross)_attn\.(?:[qkvo]|[kv]_img)$|ffn\.[02]$)|(?:noise|context)_refiner\.\d+"
        r"|layers\.\d+\.(?:attention\.(?:to_[qkv]|to_out|qkv|out)|feed_forward\.w[123]|adaLN_modulation))(?:\.|$)"
    ): "diffusion_model",
}
"""How the modules of one component begin, in files that do not name it."""
_XLABS = re.compile(r"^(?:diffusion_model\.)?(double_blocks\.\d+)\.processor\.(qkv|proj)_lora([12])$")
_SAME = {
    "lora_te1_": "lora_te_",
    "lora_transformer_": "lora_unet_",
    "lycoris_": "lora_unet_",
}
"""Beginnings that differ by the program; a file has one of each."""
_T5 = re.compile(r"^lora_te\d?_(?=encoder_block_\d+_layer_)")
"""T5, the second, the third or the only text encoder, by the program and by the model."""
_WAN = re.compile(r"^lora_(?:unet|transformer)_((?:vace_)?blocks_\d+)_(attn1|attn2|ffn_net)_(\w+)$")
_WAN_PARTS = {
    "attn1": ("self_attn", {"to_q": "q", "to_k": "k", "to_v": "v", "to_out_0": "o"}),
    "attn2": (
        "cross_attn",
        {"to_q": "q", "to_k": "k", "to_v": "v", "to_out_0": "o", "add_k_proj": "k_img", "add_v_proj": "v_img"},
    ),
    "ffn_net": ("ffn", {"0_proj": "0", "2": "2"}),
}
_QWEN = re.compile(r"^lora_transformer_transformer_blocks_(?:\d+_(?:img|txt)_(?:mlp|mod)_|(?:3[89]|[45]\d)_attn_)")
"""Qwen-Image, whose 60 blocks kohya's and other programs call as diffusers does; Stable Diffusion 3.5 has 38."""
_ORIGINAL = re.compile(r"^lora_unet_(?:(input|output)_blocks_(\d+)_\d+|middle_block_(\d+))_(.+)$")
_ORIGINAL_ALONE = {
    "lora_unet_input_blocks_0_0": "lora_unet_conv_in",
    "lora_unet_out_2": "lora_unet_conv_out",
    "lora_unet_time_embed_0": "lora_unet_time_embedding_linear_1",
    "lora_unet_time_embed_2": "lora_unet_time_embedding_linear_2",
    "lora_unet_label_emb_0_0": "lora_unet_add_embedding_linear_1",
    "lora_unet_label_emb_0_2": "lora_unet_add_embedding_linear_2",
}
_RESNET = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}


@lru_cache(maxsize=1 << 16)
def common_name(module: str) -> str:
    """The one name of a module of a diffusion model; of others, the name as it is: programs agree on it."""
    name = _flat(f"text_encoder.{module}" if module.startswith("text_model.encoder.layers.") else module)
    for start, same in _SAME.items():
        if name.startswith(start):
            name = same + name.removeprefix(start)
    return _T5.sub("lora_te3_", _renumbered(name))


def common_names(modules: Iterable[str]) -> tuple[str, ...]:
    """The common names of the modules of one file; those that would share one keep their own."""
    own = tuple(modules)
    names = tuple(map(common_name, own))
    if len(set(names)) == len(names):
        return names
    shared = Counter(names)
    return tuple(module if shared[name] > 1 else name for module, name in zip(own, names, strict=True))


def kohya_names(modules: Iterable[str]) -> list[str]:
    """The names that kohya's programs give the modules of one LoRA of a diffusion model, Stability's blocks numbered as
    diffusers does, Wan's called as by its authors; names in that form, or of another model, as they are.
    """
    names = [module if FLATTENED.match(module) else _renumbered(_flat(module)) for module in modules]
    if any(name.startswith(("lora_te2_", "lora_te3_")) for name in names):
        names = [name.replace("lora_te_", "lora_te1_", 1) for name in names]
    if any(map(_QWEN.match, names)):
        names = [name.replace("lora_transformer_", "lora_unet_", 1) for name in names]
    return names


def component(module: str) -> str:
    """The component that a module's name begins with or shows it to be of, such as `unet`; empty without one."""
    named = module.partition(".")[0]
    if named in KOHYA_PREFIXES:
        return "" if _LANGUAGE.match(module) else named
    return next((name for start, name in _ALONE.items() if start.match(module)), "")


def _flat(module: str) -> str:
    if xlabs := _XLABS.match(module):
        block, part, stream = xlabs.groups()
        module = f"diffusion_model.{block}.{'img' if stream == '1' else 'txt'}_attn.{part}"
    elif comfy := _COMFY.match(module):
        module = _COMFY_ENCODERS.get(comfy[1], "text_encoder.") + module[comfy.end() :]
    if not (of := component(module)):
        return module
    rest = module.removeprefix(f"{of}.")
    prefix = KOHYA_PREFIXES["diffusion_model" if component(rest) == "diffusion_model" else of]
    return f"{prefix}_{rest.replace('.', '_')}"


def _renumbered(name: str) -> str:
    if original := _ORIGINAL.match(name):
        return _numbered(*original.groups())
    if wan := _WAN.match(name):
        place, parts = _WAN_PARTS[wan[2]]
        return f"lora_unet_{wan[1]}_{place}_{parts[wan[3]]}" if wan[3] in parts else name
    return _ORIGINAL_ALONE.get(name, name)


def _numbered(side: str | None, number: str, middle: str, part: str) -> str:
    """A module of Stability's UNet, with two residual blocks at each resolution, as diffusers numbers it."""
    if side is None:
        block, place = "mid_block", int(middle)
        place, attends = place // 2, place == 1
    else:
        at, place = divmod(int(number) - (side == "input"), 3)
        block, attends = f"{'down' if side == 'input' else 'up'}_blocks_{at}", part not in _RESNET
    if part in ("op", "conv"):
        return f"lora_unet_{block}_{'down' if side == 'input' else 'up'}samplers_0_conv"
    kind = "attentions" if attends else "resnets"
    return f"lora_unet_{block}_{kind}_{place}_{_RESNET.get(part, part)}"
