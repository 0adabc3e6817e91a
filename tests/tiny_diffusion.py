"""A pipeline too small to draw, pictures of five people, and a recipe of seconds for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from lol_core.finetuning.base_model import (
    assemble,
    make_text_encoder,
    make_tokenizer,
    make_vae,
)
from lol_core.finetuning.dreambooth import Base
from lol_core.finetuning.recipes import CELEBA

RECIPE = replace(
    CELEBA,
    resolution=32,
    rank=2,
    targets=("to_v", "to_out.0"),
    learning_rates=(1e-3, 1e-2),
    steps=(3, 4),
    images_per_subject=3,
    attributes=("Smiling", "Eyeglasses"),
    score_prompts=(),
    sampling_steps=2,
    guidance=1.0,
    preview_prompts=("a dog",),
)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised pipeline, smaller still than the small one. Its images are noise; what is tested is the
    arithmetic.
    """
    torch.manual_seed(0)
    tokenizer = make_tokenizer(["a dog on a red background", "a smiling person"])
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=16,
        out_channels=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        cross_attention_dim=128,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    folder = tmp_path_factory.mktemp("base") / "tiny"
    assemble(make_vae(), unet, make_text_encoder(tokenizer), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(base_folder: Path) -> Base:
    return Base(base_folder)


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """Four people of three pictures each and one of two, laid out as CelebA."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names, owners = [f"{i:06d}.jpg" for i in range(14)], [30] * 3 + [4] * 3 + [17] * 3 + [8] * 3 + [5] * 2
    for name in names:
        Image.fromarray(rng.integers(0, 255, (40, 32, 3), np.uint8)).save(folder / "img_align_celeba" / name)
    shown = rng.choice([-1, 1], (14, 2))
    shown[:3] = [[1, -1], [1, -1], [-1, 1]]  # person 30: two of three smile, one wears glasses
    lines = ["14", "Smiling Eyeglasses"] + [f"{n} {a} {b}" for n, (a, b) in zip(names, shown, strict=True)]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    (folder / "identity_CelebA.txt").write_text(
        "\n".join(f"{n} {k}" for n, k in zip(names, owners, strict=True)) + "\n"
    )
    return folder
