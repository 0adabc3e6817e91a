"""The base model that names and shapes suggest, at the published widths; nothing where they do not decide."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from lol_core.core.header import ModuleHeader
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import Kronecker, Whole
from lol_core.formats import suggest_base_model


@dataclass(frozen=True)
class Headers:
    headers: tuple[ModuleHeader, ...]


def lora(*modules: tuple[str, int, int]) -> Headers:
    return Headers(tuple(ModuleHeader(name, n, m, 4) for name, n, m in modules))


ATTENTION = "transformer.transformer_blocks.0.attn.to_q"
UNET = "down_blocks_1_attentions_0_transformer_blocks_0"

SUGGESTED = {
    "Flux, ComfyUI": ("Flux", [("diffusion_model.double_blocks.18.img_attn.qkv", 9216, 3072)]),
    "Flux, kohya": ("Flux", [("lora_unet_double_blocks_0_img_mlp_0", 12288, 3072)]),
    "Flux, diffusers": (
        "Flux",
        [(ATTENTION, 3072, 3072), ("transformer.single_transformer_blocks.1.attn.to_q", 3072, 3072)],
    ),
    "Flux.2": ("Flux.2", [("diffusion_model.single_blocks.47.linear1", 55296, 6144)]),
    "HunyuanVideo": ("HunyuanVideo", [("lora_unet_single_blocks_39_linear1", 21504, 3072)]),
    "HunyuanVideo by its words": ("HunyuanVideo", [("transformer.double_blocks.0.img_mlp.fc1", 12288, 3072)]),
    "double blocks alone": (None, [("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072)]),
    "Chroma": ("Chroma", [("distilled_guidance_layer.layers.0.in_layer", 5120, 5120)]),
    "AuraFlow": ("AuraFlow", [("transformer.joint_transformer_blocks.0.attn.to_q", 3072, 3072)]),
    "SD3 medium": ("Stable Diffusion 3", [(ATTENTION, 1536, 1536)]),
    "SD3.5 large": ("Stable Diffusion 3", [("transformer.transformer_blocks.37.attn.add_q_proj", 2432, 2432)]),
    "SD3, original": ("Stable Diffusion 3", [("diffusion_model.joint_blocks.0.x_block.attn.qkv", 4608, 1536)]),
    "Qwen-Image": ("Qwen-Image", [("transformer.transformer_blocks.0.img_mod.1", 18432, 3072)]),
    "Qwen-Image by depth": ("Qwen-Image", [("transformer.transformer_blocks.59.attn.to_q", 3072, 3072)]),
    "3072 and joint attention alone": (None, [(ATTENTION, 3072, 3072)]),
    "Wan 14B": ("Wan 14B", [("diffusion_model.blocks.0.self_attn.q", 5120, 5120)]),
    "Wan 14B, diffusers": ("Wan 14B", [("transformer.blocks.0.attn1.to_q", 5120, 5120)]),
    "Wan 1.3B, diffusers": ("Wan 1.3B", [("transformer.blocks.0.ffn.net.0.proj", 8960, 1536)]),
    "Cosmos": (
        "Cosmos Predict",
        [("net.blocks.0.cross_attn.k_proj", 2048, 1024), ("net.blocks.0.self_attn.q_proj", 2048, 2048)],
    ),
    "HiDream": ("HiDream", [("diffusion_model.double_stream_blocks.0.block.attn1.to_q", 2560, 2560)]),
    "Lumina 2": ("Lumina 2", [("transformer.context_refiner.0.attn.to_q", 2304, 2304)]),
    "Z-Image": ("Z-Image", [("diffusion_model.layers.0.attention.to_q", 3840, 3840)]),
    "PixArt": ("PixArt", [("transformer.transformer_blocks.0.attn1.to_q", 1152, 1152)]),
    "LTX-Video": (
        "LTX-Video",
        [
            ("transformer.transformer_blocks.0.attn1.to_q", 2048, 2048),
            ("transformer.transformer_blocks.0.attn2.to_k", 2048, 2048),
        ],
    ),
    "CogVideoX": ("CogVideoX", [("transformer.transformer_blocks.0.attn1.to_q", 1920, 1920)]),
    "SD 1.x": ("Stable Diffusion 1.x", [(f"lora_unet_{UNET}_attn2_to_k", 640, 768)]),
    "SD 2.x": ("Stable Diffusion 2.x", [(f"lora_unet_{UNET}_attn2_to_v", 640, 1024)]),
    "SD XL": ("Stable Diffusion XL", [(f"lora_unet_{UNET}_attn2_to_v", 640, 2048)]),
    "SD XL by depth": (
        "Stable Diffusion XL",
        [("unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_q", 1280, 1280)],
    ),
    "a UNet": ("a Stable Diffusion UNet", [("unet.up_blocks.1.resnets.0.conv1", 640, 11520)]),
    "CLIP": ("CLIP ViT-L text encoder", [("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, 768)]),
    "OpenCLIP": ("OpenCLIP ViT-bigG text encoder", [("lora_te2_text_model_encoder_layers_31_mlp_fc1", 5120, 1280)]),
    "Llama": ("Llama-like decoder, hidden size 4096", [("model.layers.0.self_attn.q_proj", 4096, 4096)]),
    "Llama, MLP alone": ("Llama-like decoder, hidden size 4096", [("model.layers.0.mlp.gate_proj", 11008, 4096)]),
    "BERT": ("BERT-like encoder, hidden size 768", [("bert.encoder.layer.0.attention.self.query", 768, 768)]),
    "nothing known": (None, [("encoder.stage1.mixer", 64, 64)]),
}


@pytest.mark.parametrize(("family", "modules"), SUGGESTED.values(), ids=SUGGESTED)
def test_names_and_shapes_suggest_the_base_model(family: str | None, modules: list[tuple[str, int, int]]) -> None:
    assert suggest_base_model(lora(*modules)) == family


def test_a_kronecker_product_is_told_by_the_weight_that_it_updates() -> None:
    product = Kronecker(Whole(torch.zeros(8, 8)), Whole(torch.zeros(80, 96)))
    for name, expected in (("attn2_to_k", "Stable Diffusion 1.x"), ("attn1_to_q", "a Stable Diffusion UNet")):
        assert suggest_base_model(LoRA((LoRALayer(f"lora_unet_{UNET}_{name}", product),))) == expected


def test_a_diffusion_model_is_named_before_its_text_encoder() -> None:
    both = lora((f"lora_unet_{UNET}_attn2_to_k", 640, 768), ("lora_te_text_model_encoder_layers_0_mlp_fc1", 3072, 768))
    assert suggest_base_model(both) == "Stable Diffusion 1.x"
