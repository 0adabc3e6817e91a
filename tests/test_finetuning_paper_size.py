"""One step of the recipes on randomly initialised models with the shapes of Stable Diffusion 1.4 and Qwen2-1.5B."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import psutil
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, Qwen2Config, Qwen2ForCausalLM

from lol_core.finetuning import arc, dreambooth
from lol_core.finetuning.arc import ARC, Question
from lol_core.finetuning.base_model import make_tokenizer
from lol_core.finetuning.recipes import CELEBA, IMAGENETTE, Hyperparameters, ImageRecipe, Run

Module = TypeVar("Module", bound=nn.Module)
pytestmark = pytest.mark.skipif(psutil.virtual_memory().available < 4e9, reason="needs 4 GB of free memory")


def scattered(build: Callable[[], Module]) -> Module:
    """The module with small random weights, made without its slow initialisation. Weights of one shape are one tensor
    in memory: nobody changes them, and so a billion of them fit anywhere.
    """
    with torch.device("meta"):
        module = build()
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)

    @cache
    def weight(shape: torch.Size, is_norm: bool) -> torch.Tensor:
        return torch.ones(shape) if is_norm else torch.empty(shape).uniform_(-0.03, 0.03, generator=generator)

    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = weight(tensor.shape, "norm" in name and name.endswith("weight"))
        else:
            tensor.data.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    return module.eval()


@pytest.fixture(scope="module")
def stable_diffusion() -> StableDiffusionPipeline:
    tokenizer = make_tokenizer(["a person"])
    unet = scattered(lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8))
    vae = scattered(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    )
    text = scattered(
        lambda: CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    for part in (unet, vae, text):
        part.requires_grad_(False)
    return StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)


@pytest.mark.parametrize("recipe", [CELEBA, IMAGENETTE], ids=lambda r: r.name)
def test_stable_diffusion(recipe: ImageRecipe, stable_diffusion: StableDiffusionPipeline, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    run = Run(1, (str(tmp_path / "a.png"),), recipe.prompts[0], recipe.learning_rates[-1], 1, 1, {})
    with patch.object(dreambooth, "open_base", return_value=stable_diffusion):
        base = dreambooth.Base("stand-in")
    outcome = dreambooth.finetune_one(base, replace(recipe, resolution=64), run)
    assert len(outcome.factors) == 64, "q and v of 16 blocks with two attentions each"
    assert {A.shape[0] for A, _ in outcome.factors.values()} == {recipe.rank}
    assert sum(B.abs().max() > 0 for _, B in outcome.factors.values()) > 50
    dreambooth.write_lora(tmp_path / "lora.safetensors", outcome.factors, recipe.base)


def test_qwen2() -> None:
    from tests.test_finetuning_arc import tokenizer

    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = scattered(lambda: Qwen2ForCausalLM(config))
    with (
        patch.object(arc.AutoModelForCausalLM, "from_pretrained", return_value=model),
        patch.object(arc.AutoTokenizer, "from_pretrained", return_value=tokenizer(16)),
    ):
        reader = arc.Reader("stand-in", "cpu", "no")
    questions = [Question("Mercury", "is it so", ("yes", "no"), 0), Question("MCAS", "is it so", ("no", "yes"), 1)]
    drawn = Hyperparameters(1, 1e-3, 0.0, 1, 2, 0.0, ())
    with patch.object(arc.PeftModel, "save_pretrained"):
        splits = {"train": questions, "validation": questions[:1], "test": questions[:1]}
        row = arc.finetune(reader, ARC, splits, drawn, folder=Path("unused"))
    assert row["steps"] == 1 and row["train_questions"] == 2 and row["validation_loss"] > 0
