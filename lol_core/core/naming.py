"""One name for a module that programs call differently: the one that kohya gives it, with the blocks of a diffusion
model numbered as diffusers numbers them.
"""

from __future__ import annotations

import re
from functools import lru_cache

KOHYA_PREFIXES = {
    "unet": "lora_unet",
    "diffusion_model": "lora_unet",
    "transformer": "lora_transformer",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
}
_ALONE = {
    re.compile(r"^(down_blocks|mid_block|up_blocks)\."): "unet",
    re.compile(r"^(transformer_blocks|single_transformer_blocks)\.\d+\."): "transformer",
}
"""How the modules of an adapter of one component begin, in PEFT's files, which do not name it."""
_KOHYA_XL = "lora_te1_"
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
    component, _, rest = module.partition(".")
    if component not in KOHYA_PREFIXES:
        component, rest = next((name for start, name in _ALONE.items() if start.match(module)), ""), module
    name = f"{KOHYA_PREFIXES[component]}_{rest.replace('.', '_')}" if component else module
    if name.startswith(_KOHYA_XL):
        return name.replace(_KOHYA_XL, "lora_te_", 1)
    original = _ORIGINAL.match(name)
    return _numbered(*original.groups()) if original else _ORIGINAL_ALONE.get(name, name)


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
