"""Which base model a LoRA's module names and shapes suggest, whatever its metadata claims."""

from __future__ import annotations

from lol_core.core.lora import LoRA

CROSS_ATTENTION = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
"""Width of the text states that a UNet's cross-attention reads."""

DECODERS = ("q_proj", "k_proj", "v_proj", "o_proj")


def suggest_base_model(lora: LoRA) -> str | None:
    """A family name such as "Stable Diffusion 1.x" or "BERT-like encoder, hidden size 384"; None when the shapes say
    nothing.
    """
    widths = {layer.name: layer.m for layer in lora.layers}
    names = " ".join(widths)
    if "double_blocks" in names or "single_blocks" in names or "single_transformer_blocks" in names:
        return "Flux"
    if "joint_transformer" in names or "joint_blocks" in names:
        return "Stable Diffusion 3"
    if any(mark in names for mark in ("down_blocks", "up_blocks", "mid_block", "unet_", "input_blocks")):
        cross = {m for name, m in widths.items() if "attn2" in name and ("to_k" in name or "to_v" in name)}
        return next((CROSS_ATTENTION[m] for m in cross if m in CROSS_ATTENTION), "a Stable Diffusion UNet")
    if "unet:" in names:
        found = {m for name, m in widths.items() if name.startswith("unet:")} & CROSS_ATTENTION.keys()
        return CROSS_ATTENTION[found.pop()] if len(found) == 1 else "a Stable Diffusion UNet"
    widest = max(widths.values(), default=0)
    attention = {m for name, m in widths.items() if any(mark in name for mark in ("attn", "attention", "Attention"))}
    hidden = min(attention) if attention else widest
    if "c_attn" in names or "transformer.h." in names:
        return f"GPT-2/BLOOM-like decoder, hidden size {hidden}"
    if "gpt_neox" in names:
        return f"GPT-NeoX-like decoder, hidden size {hidden}"
    if "SelfAttention" in names:
        return f"T5-like encoder–decoder, hidden size {hidden}"
    if "decoder.layers" in names and "encoder_attn" in names:
        return f"Whisper/BART-like encoder–decoder, hidden size {hidden}"
    if any(mark in names for mark in ("vit.", "vision_model", "blocks.0.attn.q")):
        return f"vision transformer, hidden size {hidden}"
    if "attention.self." in names or "q_lin" in names:
        return f"BERT-like encoder, hidden size {hidden}"
    if any(name.endswith(DECODERS) for name in widths):
        return f"Llama-like decoder, hidden size {hidden}"
    return None
