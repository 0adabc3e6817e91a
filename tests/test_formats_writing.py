"""What is written in another form is the same function when it is read again, by this program and by the libraries it
is meant for.
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PeftModelForCausalLM
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lol_core.core.geometry import same_function
from lol_core.core.header import Kind
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import Kronecker, LowRank, Magnitude, Parametrisation, Whole
from lol_core.errors import LoRAFormatError
from lol_core.formats import read
from lol_core.formats.writing import HELD, LONGEST_NAME, forms_of, names_in, packed, write
from lol_core.insight.merging import merge
from tests.builders import random_lora, write_peft

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


@pytest.mark.parametrize("form", ["PEFT", "diffusers", "kohya"])
@given(seed=st.integers(0, 10_000), ranks=st.tuples(st.integers(1, 4), st.integers(1, 4)), scale=st.floats(0.05, 4))
@settings(max_examples=15, deadline=None)
def test_every_form_holds_the_same_function(
    form: str, seed: int, ranks: tuple[int, int], scale: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lora = diffusion_lora(seed, ranks, scale)
    path = tmp_path_factory.mktemp("written") / ("adapter" if form == "PEFT" else "a.safetensors")
    assert same_function(lora, back(lora, path, form), 1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.c_attn",
        "transformer.encoder.layers.0.self_attention.query_key_value",
        "transformer.layers.0.attn.qkv_proj",
    ],
)
def test_a_language_model_called_transformer_stays_one(name: str, tmp_path: Path) -> None:
    lora = random_lora([(name, 8, 6, 2)], dtype=torch.float32)
    write(replace(lora, dialect="PEFT"), tmp_path / "a", "PEFT", torch.float32)
    assert read(tmp_path / "a").names == (name,)
    if "layers.0.attn" not in name:
        assert not {"kohya", "diffusers"} & set(forms_of(lora))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text_encoder.te", "text_encoder_2.te"], ["lora_te1_te", "lora_te2_te"]),
        (["text_encoder.te", "unet.conv_in"], ["lora_te_te", "lora_unet_conv_in"]),
        (["text_encoder.te", "text_encoder_3.te"], ["lora_te1_te", "lora_te3_te"]),
        (["transformer.blocks.0.attn2.to_out.0"], ["lora_unet_blocks_0_cross_attn_o"]),
        (["transformer.double_blocks.0.img_attn_qkv"], ["lora_unet_double_blocks_0_img_attn_qkv"]),
        (
            ["transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.59.attn.to_q"],
            [f"lora_unet_transformer_blocks_{i}_attn_to_q" for i in (0, 59)],
        ),
        (["transformer_blocks.0.img_mlp.net.2"], ["lora_unet_transformer_blocks_0_img_mlp_net_2"]),
        (["transformer.transformer_blocks.0.attn.to_q"], ["lora_transformer_transformer_blocks_0_attn_to_q"]),
    ],
)
def test_kohya_form_has_the_names_of_its_programs(names: list[str], expected: list[str]) -> None:
    assert [*names_in("kohya", random_lora([(name, 8, 6, 2) for name in names])).values()] == expected


def test_peft_form_names_no_component() -> None:
    name = "transformer_blocks.0.attn.to_q"
    for dialect, component in (("PEFT", "diffusion_model"), ("diffusers", "transformer"), ("PEFT", "unet")):
        lora = replace(random_lora([(f"{component}.{name}", 8, 6, 2)]), dialect=dialect)
        assert [*names_in("PEFT", lora).values()] == [name]


def test_an_adapter_of_a_transformer_alone_is_named_for_diffusers() -> None:
    names = ["transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_q"]
    found = names_in("diffusers", random_lora([(name, 8, 6, 2) for name in names]))
    assert [*found.values()] == [f"transformer.{name}" for name in names]


def test_two_modules_of_one_name_are_not_written_over_each_other(tmp_path: Path) -> None:
    lora = random_lora([("unet.down_blocks.0.a", 8, 6, 2), ("diffusion_model.down_blocks.0.a", 8, 6, 2)])
    with pytest.raises(LoRAFormatError, match="both called lora_unet_down_blocks_0_a"):
        write(lora, tmp_path / "a.safetensors", "kohya")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("scales", [(0.5, 0.5), (0.5, 2.0)])
def test_mlx_holds_the_same_function_of_a_language_model(scales: tuple[float, float], tmp_path: Path) -> None:
    names = [f"model.layers.{k}.self_attn.q_proj" for k in range(2)]
    parts = [
        random_lora([(name, 8, 6, rank)], rank, torch.float32, s)
        for name, rank, s in zip(names, (2, 3), scales, strict=True)
    ]
    lora = LoRA(tuple(layer for part in parts for layer in part.layers), base_model="a/model")
    write(lora, tmp_path / "adapter", "MLX", torch.float32)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["lora_parameters"]["keys"] == ["self_attn.q_proj"] and config["lora_parameters"]["rank"] == 3
    again = read(tmp_path / "adapter")
    assert again.dialect == "MLX" and same_function(lora, again, 1e-6)
    for name, layer in zip(names, lora.layers, strict=True):
        weights = load_file(tmp_path / "adapter" / "adapters.safetensors")
        x = torch.randn(4, layer.m)  # as mlx_lm.tuner.lora.LoRALinear: scale · (x @ lora_a) @ lora_b
        worn = config["lora_parameters"]["scale"] * (x @ weights[f"{name}.lora_a"]) @ weights[f"{name}.lora_b"]
        torch.testing.assert_close(worn, x @ layer.delta(torch.float32).T, rtol=1e-4, atol=1e-5)
    assert "MLX" not in forms_of(diffusion_lora(0, (2, 3), 1.0))


VALUES = st.floats(0.01, 8, allow_nan=False) | st.sampled_from([1.0, 0.1, 1 / 3, 2.0])


@st.composite
def loras(draw: st.DrawFn, dtype: torch.dtype) -> LoRA:
    """Linear layers and convolutions of mixed ranks and scales, with or without DoRA magnitudes."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    dora, layers = draw(st.booleans()), []
    for i in range(draw(st.integers(1, 3))):
        n, m, r, convolution = *(draw(st.integers(1, 5)) for _ in range(3)), draw(st.booleans())
        U, V = (torch.randn(k, r, generator=generator).to(dtype) for k in (n, m * 9 if convolution else m))
        shape, kind = ((n, m, 3, 3), Kind.CONV) if convolution else ((n, m), Kind.LINEAR)
        made: Parametrisation = LowRank(U, V, shape, kind)
        if dora:
            made = Magnitude(made, torch.rand(n, generator=generator).to(dtype))
        layers.append(LoRALayer(f"unet.down_blocks.{i}.layer", made, draw(VALUES) / r))  # as any alpha gives it
    return LoRA(tuple(layers))


@pytest.mark.parametrize("form", ["PEFT", "kohya"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_round_trip_changes_no_bit(
    form: str, dtype: torch.dtype, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lora = data.draw(loras(dtype).filter(lambda lora: all(y.rank <= max(y.n, y.m) for y in lora.layers)))
    assume(2 * sum(y.rank > min(y.n, y.m) for y in lora.layers) <= len(lora.layers))
    path = tmp_path_factory.mktemp("written") / ("adapter" if form == "PEFT" else "a.safetensors")
    write(lora, path, form, dtype)
    found = read(path)
    for a, b in zip(sorted_layers(found), sorted_layers(lora), strict=True):
        assert a.scale == b.scale and a.weight_shape == b.weight_shape and a.magnitude_axis == b.magnitude_axis
        assert torch.equal(a.U, b.U) and torch.equal(a.V, b.V)  # in another layout in memory
        assert (a.magnitude is None) == (b.magnitude is None)
        assert a.magnitude is None or torch.equal(a.magnitude, b.magnitude)  # type: ignore[arg-type]  # b has one where a has


def test_diffusers_form_is_exact_where_the_scale_is_a_power_of_two(tmp_path: Path) -> None:
    for scale in (0.25, 1.0, 2.0):
        lora = diffusion_lora(3, (2, 3), scale)
        for a, b in zip(
            sorted_layers(back(lora, tmp_path / "a.safetensors", "diffusers")), sorted_layers(lora), strict=True
        ):
            assert torch.equal(a.U, b.U * scale) and torch.equal(a.V, b.V) and a.scale == 1.0


class Everything(nn.Module):
    """One of each layer that PEFT's form holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)
        self.conv, self.sound = nn.Conv2d(3, 7, 3), nn.Conv1d(4, 6, 5)
        self.tokens = nn.Embedding(11, 6)
        self.block = nn.ModuleDict({"first": nn.Linear(6, 8)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.tokens(x)))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_peft_reads_back_every_kind_of_layer(dora: bool, tmp_path: Path) -> None:
    """Its factors bit for bit, its scales exactly, and its merged weights."""
    model, generator = Everything(), torch.Generator().manual_seed(0)
    layers = []
    for i, (name, module) in enumerate(model.named_modules()):
        if not hasattr(module, "weight"):
            continue
        shape, rank = tuple(module.weight.shape), 1 + i % 3
        U, V = torch.randn(shape[0], rank, generator=generator), torch.randn(prod(shape[1:]), rank, generator=generator)
        kinds = {nn.Linear: Kind.LINEAR, nn.Embedding: Kind.EMBEDDING}
        made: Parametrisation = LowRank(U, V, shape, kinds.get(type(module), Kind.CONV))
        if dora:
            axis = 1 if isinstance(module, nn.Embedding) else 0
            made = Magnitude(made, torch.rand(shape[axis], generator=generator) + 0.1, axis)
        layers.append(LoRALayer(name, made, 0.1 * (i + 1)))
    lora = LoRA(tuple(layers))
    weights = dict(model.named_parameters())
    expected = {y.name: y.merge(weights[f"{y.name}.weight"].detach()) for y in layers}
    write(lora, tmp_path / "adapter", "PEFT", torch.float32)
    loaded = PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    for layer in layers:
        module = loaded.base_model.model.get_submodule(layer.name)
        assert module.scaling["default"] == layer.scale
        if layer.kind != Kind.EMBEDDING:
            assert torch.equal(module.lora_A["default"].weight.flatten(1), layer.V.T)
            assert torch.equal(module.lora_B["default"].weight.flatten(1), layer.U)
    merged = loaded.merge_and_unload()
    for name, weight in expected.items():
        torch.testing.assert_close(dict(merged.named_parameters())[f"{name}.weight"], weight, rtol=1e-4, atol=1e-4)


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


def test_pefts_class_for_a_task_opens_what_was_written(tmp_path: Path) -> None:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 16}
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **small)).save_pretrained(tmp_path / "base")
    lora = random_lora([("model.layers.0.self_attn.q_proj", 8, 8, 2)], 3, torch.float32)
    for name, task in {"a": "CAUSAL_LM", "b": "CAUSAL_LM", "c": "SEQ_CLS", "d": ["CAUSAL_LM"]}.items():
        write_peft(tmp_path / name, lora, base_model_name_or_path=str(tmp_path / "base"), task_type=task)
    a, b, c, d = (read(tmp_path / name) for name in "abcd")
    write(merge([a, b], [1, 1]).lora, tmp_path / "merged", "PEFT")
    made = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert isinstance(made, PeftModelForCausalLM)
    for lora in (c, d, merge([a, c], [1, 1]).lora, merge([d, d], [1, 1]).lora):
        write(lora, tmp_path / "other", "PEFT")
        assert LoraConfig.from_pretrained(tmp_path / "other").task_type is None, "its head is not written"


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
    linear, conv = (
        unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q,
        unet.down_blocks[0].resnets[0].conv1,
    )
    lora = random_lora([(f"{ATTENTION}.to_q", 16, 16, 3)], 1, torch.float32, 0.4)
    added = LoRALayer.pair(
        "unet.down_blocks.0.resnets.0.conv1",
        torch.randn(16, 2),
        torch.randn(16 * 9, 2),
        scale=0.7,
        kind=Kind.CONV,
        weight_shape=(16, 16, 3, 3),
    )
    path = tmp_path / "a.safetensors"
    write(replace(lora, layers=(*lora.layers, added)), path, form, torch.float32)
    with torch.no_grad():
        expected, convolved = lora.layers[0].merge(linear.weight), added.merge(conv.weight)
        state, alphas = StableDiffusionPipeline.lora_state_dict(str(path), unet_config=unet.config)
        StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet)
        x, image = torch.randn(2, 16), torch.randn(1, 16, 5, 5)
        changed = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q(x)
        torch.testing.assert_close(changed, x @ expected.T, rtol=1e-4, atol=1e-4)
        pixels = nn.functional.conv2d(image, convolved, conv.bias, padding=1)
        torch.testing.assert_close(unet.down_blocks[0].resnets[0].conv1(image), pixels, rtol=1e-4, atol=1e-4)


def test_what_a_form_cannot_hold_is_refused_with_a_reason(tmp_path: Path) -> None:
    language = random_lora([("model.layers.0.self_attn.q_proj", 8, 8, 2)], dtype=torch.float32)
    assert forms_of(language) == ["PEFT", "MLX"]
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
    for form in ("PEFT", "MLX"):
        with pytest.raises(LoRAFormatError, match="too small for float16"):
            write(replace(language, layers=(_shrunk(language.layers[0], 1e-8),)), tmp_path / "d", form)
    with pytest.raises(LoRAFormatError, match="Choose PEFT, diffusers, kohya"):
        write(language, tmp_path / "c", "onnx")


def _shrunk(layer: LoRALayer, by: float) -> LoRALayer:
    return LoRALayer.pair(layer.name, layer.U * by, layer.V)


def test_small_numbers_that_a_dtype_holds_or_nobody_misses_are_written(tmp_path: Path) -> None:
    first, second = random_lora([("a", 8, 8, 2), ("b", 8, 8, 2)], dtype=torch.float32).layers
    for name, layers, dtype in (
        ("another dtype", (_shrunk(first, 1e-8),), torch.bfloat16),
        ("a module of next to nothing", (first, _shrunk(second, 1e-9)), torch.float16),
        ("powers of two", (LoRALayer.pair("a", torch.full((8, 1), 2.0**-24), first.V[:, :1]),), torch.float16),
    ):
        write(LoRA(layers), tmp_path / name, "PEFT", dtype)
        assert same_function(LoRA(layers), read(tmp_path / name), HELD), name
    folded = LoRA((LoRALayer.pair("unet.down_blocks.0.a", first.U, first.V, scale=1e-8),))
    write(folded, tmp_path / "kept.safetensors", "kohya")
    with pytest.raises(LoRAFormatError, match="too small"):
        write(folded, tmp_path / "folded.safetensors", "diffusers")


def test_ltx_has_the_usual_prefix_in_kohyas_form(tmp_path: Path) -> None:
    """Its programs call its modules as diffusers does; those of PixArt, called alike, know `lora_transformer_`."""
    for width, prefix in ((2048, "lora_unet_"), (1152, "lora_transformer_")):
        names = [f"transformer.transformer_blocks.0.attn{i}.to_{part}" for i in (1, 2) for part in "qkv"]
        write(random_lora([(name, width, width, 1) for name in names]), str(tmp_path / "a.safetensors"), "kohya")
        keys = load_file(tmp_path / "a.safetensors")
        assert all(key.startswith(f"{prefix}transformer_blocks_0_attn") for key in keys)


@pytest.mark.parametrize("form", ["PEFT", "diffusers"])
def test_a_file_to_save_has_a_name_that_every_system_takes(form: str) -> None:
    lora, ending = random_lora([("unet.down_blocks.0.a", 8, 6, 2)]), ".zip" if form == "PEFT" else ".safetensors"
    for name, called in (
        ("0001-kind=a/b-10", "0001-kind=a-b-10"),
        ("../../x", "-..-x"),
        ("..", "lora"),
        ("é" * 300, "é" * (LONGEST_NAME // 2)),
    ):
        file, content = packed(lora, name, form)
        assert file == called + ending and content
