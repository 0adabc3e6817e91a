"""What is written in another form is the same function when it is read again, by this program and by the libraries it
is meant for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from torch import nn

from lol_core.core.geometry import same_function
from lol_core.core.header import Kind
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import Kronecker, Whole
from lol_core.errors import LoRAFormatError
from lol_core.formats import read
from lol_core.formats.writing import FORMS, forms_of, write
from tests.builders import random_lora

ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def diffusion_lora(seed: int, ranks: tuple[int, int], scale: float) -> LoRA:
    lora = random_lora(
        [(f"{ATTENTION}.to_q", 8, 6, ranks[0]), (f"{ATTENTION}.to_out.0", 6, 8, ranks[1])], seed, torch.float32, scale
    )
    generator = torch.Generator().manual_seed(seed)
    conv = LoRALayer.pair(
        "unet.down_blocks.0.resnets.0.conv1",
        torch.randn(5, 2, generator=generator),
        torch.randn(4 * 9, 2, generator=generator),
        scale=scale,
        kind=Kind.CONV,
        weight_shape=(5, 4, 3, 3),
    )
    return replace(lora, layers=(*lora.layers, conv))


def back(lora: LoRA, path: Path, form: str) -> LoRA:
    """Written and read again, under the names it had."""
    write(lora, path, form, torch.float32)
    found = read(path)
    return replace(
        found,
        layers=tuple(replace(a, name=b.name) for a, b in zip(sorted_layers(found), sorted_layers(lora), strict=True)),
    )


def sorted_layers(lora: LoRA) -> list[LoRALayer]:
    return sorted(
        lora.layers, key=lambda layer: layer.name.replace(".", "_").removeprefix("lora_").removeprefix("unet_")
    )


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 10_000), ranks=st.tuples(st.integers(1, 4), st.integers(1, 4)), scale=st.floats(0.05, 4))
@settings(max_examples=15, deadline=None)
def test_every_form_holds_the_same_function(
    form: str, seed: int, ranks: tuple[int, int], scale: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lora = diffusion_lora(seed, ranks, scale)
    path = tmp_path_factory.mktemp("written") / ("adapter" if form == "PEFT" else "a.safetensors")
    assert same_function(lora, back(lora, path, form), 1e-5)


def test_published_files_are_written_in_every_form_they_have(real_loras: Path, tmp_path: Path) -> None:
    written = 0
    for number, source in enumerate(sorted(real_loras.rglob("*.safetensors"))):
        try:
            lora = read(source)
            lora.check_finite()
        except LoRAFormatError:
            continue
        for form in forms_of(lora):
            if source.stat().st_size < 5_000_000:
                assert same_function(lora, back(lora, tmp_path / f"{number}-{form}.safetensors", form), 1e-3), (
                    source.name,
                    form,
                )
                written += 1
    assert written > 20


def test_peft_adds_what_was_written(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    lora = random_lora([("first", 8, 6, 2), ("second", 5, 8, 3)], 3, torch.float32, 0.7)
    write(lora, tmp_path / "adapter", "PEFT", torch.float32)
    model, x = Model(), torch.randn(4, 6)
    with torch.no_grad():
        expected = (x @ lora["first"].merge(model.first.weight).T + model.first.bias) @ lora["second"].merge(
            model.second.weight
        ).T + model.second.bias
        torch.testing.assert_close(
            PeftModel.from_pretrained(model, str(tmp_path / "adapter"))(x), expected, rtol=1e-4, atol=1e-4
        )
    assert LoraConfig.from_pretrained(str(tmp_path / "adapter")).rank_pattern


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_adds_what_was_written(form: str, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    linear = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    lora = random_lora([(f"{ATTENTION}.to_q", 16, 16, 3)], 1, torch.float32, 0.4)
    path = tmp_path / "a.safetensors"
    write(lora, path, form, torch.float32)
    with torch.no_grad():
        expected = lora.layers[0].merge(linear.weight)
        state, alphas = StableDiffusionPipeline.lora_state_dict(str(path), unet_config=unet.config)
        StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet)
        x = torch.randn(2, 16)
        changed = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q(x)
        torch.testing.assert_close(changed, x @ expected.T, rtol=1e-4, atol=1e-4)


def test_what_a_form_cannot_hold_is_refused_with_a_reason(tmp_path: Path) -> None:
    language = random_lora([("model.layers.0.self_attn.q_proj", 8, 8, 2)], dtype=torch.float32)
    assert forms_of(language) == ["PEFT"]
    flattened = random_lora([("lora_unet_down_blocks_0_attentions_0_proj_in", 8, 8, 2)], dtype=torch.float32)
    assert forms_of(flattened) == ["kohya"]
    with pytest.raises(LoRAFormatError, match="cannot be undone"):
        write(flattened, tmp_path / "a", "PEFT")
    kronecker = LoRA(
        (LoRALayer("unet.down_blocks.0.x", Kronecker(Whole(torch.randn(2, 2)), Whole(torch.randn(2, 2)))),)
    )
    assert not forms_of(kronecker)
    with pytest.raises(LoRAFormatError, match="wider type"):
        write(
            random_lora([("q", 4, 4, 1)], dtype=torch.float64, scale=1.0).act(
                {"q": torch.full((1, 1), 1e6, dtype=torch.float64)}
            ),
            tmp_path / "b",
            "PEFT",
        )
    with pytest.raises(LoRAFormatError, match="Choose PEFT, diffusers, kohya"):
        write(language, tmp_path / "c", "onnx")
