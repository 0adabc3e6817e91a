"""Kinds of files in the field: each is read as its formula says, or refused, or noted. All data are synthetic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lol_core.collections.zoo import Zoo
from lol_core.core.batch import shared_spec
from lol_core.core.groups import GL, Product
from lol_core.core.header import Kind
from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError
from lol_core.formats import probe, read
from lol_core.formats.writing import forms_of, write

OUT, IN, RANK = 16, 24, 4


A, B = torch.randn(RANK, IN, generator=torch.Generator().manual_seed(1)), torch.randn(OUT, RANK)


INT8 = torch.arange(RANK * IN).reshape(RANK, IN).remainder(11).to(torch.int8)


def written(folder: Path, tensors: Mapping[str, Tensor], config: Any = None, **metadata: str) -> LoRA:
    """Written as safetensors, probed and read alike."""
    path = folder / "adapter_model.safetensors"
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata=metadata or None)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    probed, lora = probe(path), read(path)
    assert probed.headers == lora.headers and probed.notes == lora.notes and probed.extras == lora.extras
    return lora


def pair(module: str = "layers.0.q", down: str = "lora_A.weight", up: str = "lora_B.weight") -> dict[str, Tensor]:
    return {f"{module}.{down}": A, f"{module}.{up}": B}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


BETWEEN = {
    "MoSLoRA": ("lora_AB.weight", torch.randn(RANK, RANK), lambda M: B @ M @ A),
    "LoRA-XS": ("default_lora_latent_mapping.weight", torch.randn(RANK, RANK), lambda M: B @ M @ A),
    "KaSA": ("lora_diag", torch.randn(RANK), lambda d: B @ torch.diag(d) @ A),
    "AdaLoRA": ("lora_E", torch.randn(RANK, 1), lambda d: B @ (A * d)),
}


@pytest.mark.parametrize(("name", "between", "formula"), BETWEEN.values(), ids=BETWEEN)
def test_what_stands_between_the_factors_is_multiplied_in(
    name: str, between: Tensor, formula: Any, tmp_path: Path
) -> None:
    lora = written(tmp_path, pair() | {f"layers.0.q.{name}": between}, {"lora_alpha": 8, "r": RANK})
    close(lora["layers.0.q"].delta(), 2 * formula(between))


def test_lora_xs_as_saving_leaves_its_name(tmp_path: Path) -> None:
    mapping = torch.randn(RANK, RANK)
    lora = written(tmp_path, pair() | {"layers.0.q_lora_latent_mapping.weight": mapping})
    close(lora.layers[0].delta(), B @ mapping @ A)


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_adalora_is_what_peft_merges(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(IN, OUT)

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x)

    base = Model()
    weight = base.q.weight.detach().clone()
    config = peft.AdaLoraConfig(init_r=6, target_r=4, lora_alpha=9, target_modules=["q"], total_step=10)
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    close(read(tmp_path)["q"].delta(), model.merge_and_unload().q.weight.detach() - weight)


@pytest.mark.parametrize("name", ["lora_C", "lora_gate.weight", "m", "scale_of_ours", "lora_A.zero_point", "diff"])
def test_an_unknown_tensor_refuses_its_module_by_name_and_no_other(name: str, tmp_path: Path) -> None:
    tensors = pair() | {f"layers.0.q.{name}": torch.ones(3)} | pair("layers.1.q")
    lora = written(tmp_path, tensors)
    assert lora.names == ("layers.1.q",)
    assert any("layers.0.q" in note and name in note for note in lora.notes)
    (tmp_path / "alone").mkdir()
    with pytest.raises(LoRAFormatError, match=name):
        written(tmp_path / "alone", pair() | {f"layers.0.q.{name}": torch.ones(3)})


def test_several_factors_with_a_router_are_a_mixture(tmp_path: Path) -> None:
    tensors = {"l.q.lora_A.weight": A, "l.q.lora_B0.weight": B, "l.q.lora_B1.weight": B, "l.q.lora_route.weight": A}
    with pytest.raises(LoRAFormatError, match="mixture of LoRAs.*lora_B0"):
        written(tmp_path, tensors)
    experts = pair("l.mlp.up_proj.experts.0") | pair("l.mlp.up_proj.experts.1") | {"l.mlp.moe_gate.weight": A}
    with pytest.raises(LoRAFormatError, match="mixture of LoRAs"):
        written(tmp_path, experts)
    assert len(written(tmp_path, pair("l.mlp.experts.0.up_proj") | pair("l.mlp.experts.1.up_proj")).layers) == 2


SCALED = {
    "beside": ({"layers.0.q.alpha": torch.tensor(8.0)}, None, {}, 2.0),
    "beside, whole": ({"layers.0.q.alpha": torch.tensor([[2]])}, None, {}, 0.5),
    "the scale itself": ({"layers.0.q.alpha_scale": torch.tensor(0.75)}, None, {}, 0.75),
    "header": ({}, None, {"lora_alpha": "6"}, 1.5),
    "header of kohya": ({}, None, {"ss_network_alpha": "6", "ss_network_dim": "4"}, 1.5),
    "header, by component": ({}, None, {"layers.lora_alpha": "2", "layers.r": "4", "other.lora_alpha": "80"}, 0.5),
    "header, one component": ({}, None, {"transformer.lora_alpha": "2", "transformer.r": "4"}, 0.5),
    "header of diffusers": ({}, None, {"lora_adapter_metadata": '{"lora_alpha": 8, "use_rslora": true}'}, 4.0),
    "header of diffusers, by component": ({}, None, {"lora_adapter_metadata": '{"layers.lora_alpha": 8}'}, 2.0),
    "a pattern there": (
        {},
        None,
        {"lora_adapter_metadata": '{"layers.lora_alpha": 8, "layers.alpha_pattern": {"^0.q": 1}}'},
        0.25,
    ),
    "configuration": ({}, {"lora_alpha": 8, "r": 4}, {}, 2.0),
    "configuration, as text": ({}, {"lora_alpha": "8", "r": "4"}, {}, 2.0),
    "configuration, rsLoRA": ({}, {"lora_alpha": 8, "r": 4, "use_rslora": True}, {}, 4.0),
    "configuration, a pattern": ({}, {"lora_alpha": 8, "alpha_pattern": {r"layers\.\d\.q": 1}}, {}, 0.25),
    "configuration, null patterns": ({}, {"lora_alpha": 8, "alpha_pattern": None, "rank_pattern": None}, {}, 2.0),
    "AdapterHub": ({}, {"config": {"architecture": "lora", "alpha": 8, "r": 4}}, {}, 2.0),
    "beside wins": ({"layers.0.q.alpha": torch.tensor(4.0)}, {"lora_alpha": 64}, {"lora_alpha": "128"}, 1.0),
}


@pytest.mark.parametrize(("tensors", "config", "header", "scale"), SCALED.values(), ids=SCALED)
def test_the_scale_is_found_wherever_it_stands(
    tensors: dict[str, Tensor], config: Any, header: dict[str, str], scale: float, tmp_path: Path
) -> None:
    lora = written(tmp_path, pair() | tensors, config, **header)
    assert lora.layers[0].scale == scale
    assert not any("unknown" in note for note in lora.notes)
    close(lora.layers[0].delta(), scale * B @ A)


@pytest.mark.parametrize("config", [None, {"r": 4}, {"lora_alpha": "auto"}, {"lora_alpha": [8]}, {"lora_alpha": None}])
def test_an_unknown_scale_is_1_and_said(config: Any, tmp_path: Path) -> None:
    lora = written(tmp_path, pair(), config)
    assert lora.layers[0].scale == 1.0 and any("alpha" in note and "unknown" in note for note in lora.notes)


@pytest.mark.parametrize(
    "alpha", [torch.tensor(float("nan")), torch.tensor(float("inf")), torch.ones(4), torch.ones(0)]
)
def test_an_alpha_that_is_no_finite_number_refuses_its_module(alpha: Tensor, tmp_path: Path) -> None:
    with pytest.raises(LoRAFormatError, match="alpha"):
        written(tmp_path, pair() | {"layers.0.q.alpha": alpha})


def test_tags_are_no_settings(tmp_path: Path) -> None:
    """kohya keeps its training tags in the header; one of them may be called alpha."""
    tags = json.dumps({"img": {"alpha": 3, "r": 2, "lora_alpha": 5}})
    lora = written(tmp_path, pair(), ss_tag_frequency=tags, ss_datasets=tags)
    assert lora.layers[0].scale == 1.0 and any("unknown" in note for note in lora.notes)


@pytest.mark.parametrize("pattern, alpha", [("(a+)+$", 1), ("((q|l)*)*x", 8), (".*.*.*.*.*.*q", 8)])
def test_a_pattern_that_backtracks_is_matched_at_once(pattern: str, alpha: float, tmp_path: Path) -> None:
    lora = written(tmp_path, pair("a" * 60), {"lora_alpha": 8, "alpha_pattern": {pattern: 1}})
    assert lora.layers[0].scale == alpha / RANK


def test_a_pattern_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoRAFormatError, match="pattern"):
        written(tmp_path, pair(), {"lora_alpha": 8, "alpha_pattern": {"[": 1}})


def test_an_alpha_of_zero_is_noted(tmp_path: Path) -> None:
    lora = written(tmp_path, pair() | {"layers.0.q.alpha": torch.tensor(0.0)})
    assert lora.layers[0].scale == 1.0 and any("alpha is 0" in note for note in lora.notes)


@pytest.mark.parametrize("suffix", ["lora_A.scale_weight", "lora_A.weight_scale", "lora_A.weight.scale"])
@pytest.mark.parametrize(
    "scale", [torch.tensor(0.1), torch.rand(RANK), torch.rand(RANK, 1)], ids=["one", "row", "column"]
)
def test_quantised_factors_are_dequantised(suffix: str, scale: Tensor, tmp_path: Path) -> None:
    tensors = {"l.q.lora_A.weight": INT8, f"l.q.{suffix}": scale, "l.q.lora_B.weight": B}
    close(written(tmp_path, tensors).layers[0].delta(), B @ (INT8.float() * scale.reshape(-1, 1)))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_read_with_a_scale_and_without(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"l.q.lora_A.weight": A.to(dtype), "l.q.lora_B.weight": B}
    close(written(tmp_path, tensors).layers[0].delta(), B @ A.to(dtype).float())
    close(
        written(tmp_path, tensors | {"l.q.lora_A.weight_scale": torch.tensor(0.5)}).layers[0].delta(),
        B @ A.to(dtype).float() / 2,
    )


def test_whole_numbers_without_a_scale_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoRAFormatError, match="quantised"):
        written(tmp_path, {"l.q.lora_A.weight": INT8, "l.q.lora_B.weight": B})
    with pytest.raises(LoRAFormatError, match="scale"):
        written(tmp_path, pair("l.q") | {"l.q.lora_A.weight_scale": torch.ones(1)})


def test_transposed_factors_are_turned_as_the_other_modules_say(tmp_path: Path) -> None:
    """PaddleNLP stores (in, r), (r, out); a square module alone does not tell."""
    square = {"l.q.lora_A": torch.randn(IN, RANK), "l.q.lora_B": torch.randn(RANK, IN)}
    other = {"l.up.lora_A": torch.randn(IN, RANK), "l.up.lora_B": torch.randn(RANK, OUT)}
    lora = written(tmp_path, square | other)
    assert lora.ranks == (RANK,)
    close(lora["l.q"].delta(), (square["l.q.lora_A"] @ square["l.q.lora_B"]).T)
    close(lora["l.up"].delta(), (other["l.up.lora_A"] @ other["l.up.lora_B"]).T)
    with pytest.raises(LoRAFormatError, match="transposed"):
        written(tmp_path, square)


def test_a_rank_above_the_smaller_side_is_ordinary_unless_most_modules_have_it(tmp_path: Path) -> None:
    narrow = {"img_in.lora_A.weight": torch.randn(RANK, 2), "img_in.lora_B.weight": torch.randn(OUT, RANK)}
    assert len(written(tmp_path, pair() | narrow).layers) == 2
    with pytest.raises(LoRAFormatError, match="rank"):
        written(tmp_path, narrow)


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_experts_of_target_parameters_are_what_peft_adds(tmp_path: Path) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(3, OUT, IN))
            self.down_proj = nn.Parameter(torch.zeros(3, IN, OUT))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.ModuleDict({"experts": Experts()})
            self.q = nn.Linear(IN, OUT)

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x)

    targets = ["experts.gate_up_proj", "experts.down_proj"]
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q"], target_parameters=targets)
    base = Model()
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    merged, lora = model.merge_and_unload(), read(tmp_path)
    assert sorted(lora.names) == ["mlp.experts", "mlp.experts.base_layer", "q"]
    assert {layer.kind for layer in lora.layers} == {Kind.EXPERTS, Kind.LINEAR}
    experts = [layer.delta() for layer in lora.layers if layer.kind == Kind.EXPERTS]
    for expected in (merged.mlp["experts"].gate_up_proj, merged.mlp["experts"].down_proj):
        found = next(delta for delta in experts if delta.shape == expected.shape)
        close(found, expected.detach())


@pytest.mark.parametrize("layout", ["linear", "transposed", "one above the other"])
def test_a_pair_for_each_expert(layout: str, tmp_path: Path) -> None:
    down, up = torch.randn(3, RANK, IN), torch.randn(3, OUT, RANK)
    stored = {
        "linear": (down, up),
        "transposed": (down.mT, up.mT),
        "one above the other": (down.flatten(0, 1), up),
    }[layout]
    lora = written(tmp_path, {"experts.up.lora_a": stored[0], "experts.up.lora_b": stored[1]})
    assert lora.layers[0].kind == Kind.EXPERTS
    close(lora.layers[0].delta(), up @ down)


@pytest.mark.parametrize("parts", [2, 3])
def test_blocks_of_a_fused_projection_stand_on_the_diagonal(parts: int, tmp_path: Path) -> None:
    down, ups = torch.randn(2 * parts, IN), [torch.randn(5, 2) for _ in range(parts)]
    tensors = {"qkv.lora_down.weight": down, "qkv.alpha_scale": torch.tensor(0.5)}
    tensors |= {f"qkv.lora_up.blocks.{i}.weight": up for i, up in enumerate(ups)}
    lora = written(tmp_path, tensors)
    close(lora.layers[0].delta(), 0.5 * torch.block_diag(*ups) @ down)
    assert lora.layers[0].parametrisation.group == Product(((GL, 2),) * parts)
    assert lora.parameters == sum(tensor.numel() for key, tensor in tensors.items() if "alpha" not in key)


def test_a_grouped_product_needs_to_know_its_parts(tmp_path: Path) -> None:
    """loralib's MergedLinear, two of three parts of a fused projection adapted."""
    down, up = torch.randn(2 * RANK, IN), torch.randn(2 * OUT, RANK)
    tensors = {"layers.0.c_attn.lora_A": down, "layers.0.c_attn.lora_B": up}
    with pytest.raises(LoRAFormatError, match="grouped"):
        written(tmp_path, tensors)
    lora = written(tmp_path, tensors, {"lora_alpha": 8, "r": RANK, "enable_lora": [True, False, True]})
    expected = torch.zeros(3 * OUT, IN)
    expected[:OUT], expected[2 * OUT :] = up[:OUT] @ down[:RANK], up[OUT:] @ down[RANK:]
    close(lora.layers[0].delta(), 2 * expected)
    of = lora.layers[0].parametrisation
    assert (lora.layers[0].kind, of.group) == (Kind.BLOCKS, Product(((GL, RANK), (GL, RANK))))
    assert (lora.parameters, of.orbit_dimension) == (down.numel() + up.numel(), 2 * RANK**2)
    fresh, known = (Zoo.open(tmp_path).entries[0] for _ in range(2))
    assert fresh.headers == known.headers == lora.headers
    before = replace(known, headers=(replace(lora.headers[0], kind=Kind.LINEAR),))  # as it was recorded without blocks
    assert not shared_spec([before]).misfits(lora) and not shared_spec([lora]).misfits(before)
    assert forms_of(lora) == ["PEFT", "MLX"]
    for form in forms_of(lora):  # as the pair that models read
        write(lora, tmp_path / form, form, torch.float32)
        close(read(tmp_path / form).layers[0].delta(), 2 * expected)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_an_update_of_another_base_is_noted(start: str, tmp_path: Path) -> None:
    lora = written(tmp_path, pair(), {"lora_alpha": 4, "r": 4, "init_lora_weights": start})
    assert any("residual" in note for note in lora.notes)


@pytest.mark.parametrize("size", [8, 12])
def test_the_axis_of_a_dora_magnitude_is_told_by_the_dialect(size: int, tmp_path: Path) -> None:
    """A convolution from 8 channels to 8 or 12: LyCORIS keeps the axis in the shape, PEFT writes one per output."""
    down, up = torch.randn(RANK, 8, 3, 3), torch.randn(size, RANK, 1, 1)
    kohya = {
        "lora_unet_c.lora_down.weight": down,
        "lora_unet_c.lora_up.weight": up,
        "lora_unet_c.alpha": torch.tensor(4.0),
    }
    along_inputs = written(tmp_path, kohya | {"lora_unet_c.dora_scale": torch.rand(1, 8, 1, 1)})
    along_outputs = written(tmp_path, kohya | {"lora_unet_c.dora_scale": torch.rand(size, 1, 1, 1)})
    of_peft = written(
        tmp_path,
        {"c.lora_A.weight": down, "c.lora_B.weight": up, "c.lora_magnitude_vector.weight": torch.rand(1, size, 1, 1)},
    )
    assert [lora.layers[0].magnitude_axis for lora in (along_inputs, along_outputs, of_peft)] == [1, 0, 0]
    with pytest.raises(LoRAFormatError, match="magnitude"):
        written(tmp_path, pair() | {"layers.0.q.lora_magnitude_vector": torch.rand(IN)})


def test_mlx_dora_of_linear_and_embedding(tmp_path: Path) -> None:
    tensors = {"l.q.lora_a": A.T, "l.q.lora_b": B.T, "l.q.m": torch.rand(OUT)}
    tensors |= {"embed_tokens.lora_a": torch.randn(40, RANK), "embed_tokens.lora_b": torch.randn(RANK, IN)}
    lora = written(tmp_path, tensors | {"embed_tokens.m": torch.rand(40)}, {"lora_parameters": {"scale": 20.0}})
    close(lora["l.q"].delta(), 20 * B @ A)
    close(lora["embed_tokens"].delta(), 20 * tensors["embed_tokens.lora_a"] @ tensors["embed_tokens.lora_b"])
    assert all(layer.magnitude_axis == 0 and layer.magnitude is not None for layer in lora.layers)


def test_mlx_vlm_scales_by_alpha_itself(tmp_path: Path) -> None:
    lora = written(tmp_path, {"l.q.A": A.T, "l.q.B": B.T}, {"rank": RANK, "alpha": 0.1})
    close(lora.layers[0].delta(), 0.1 * B @ A)
