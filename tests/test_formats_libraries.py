"""ΔW as read from a file is the ΔW of the library that wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lol_core.core.header import Kind
from lol_core.core.lora import LoRA
from lol_core.formats import probe, read


class Small(nn.Module):
    """One of each kind of layer that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.linear = nn.Linear(6, 8)
        self.square = nn.Linear(6, 6)
        self.conv = nn.Conv2d(4, 10, 3)
        self.pointwise = nn.Conv2d(4, 10, 1)
        self.sound = nn.Conv1d(4, 10, 3)
        self.grouped = nn.Conv2d(4, 10, 3, groups=2)
        self.transposed = Conv1D(7, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.embed(x))


def randomised(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if any(mark in name for mark in ("lora_", "hada_", "lokr_", "dora_scale", "magnitude")):
            with torch.no_grad():
                parameter.copy_(
                    torch.rand(parameter.shape, generator=generator) + 0.1
                    if "magnitude" in name or "dora" in name
                    else torch.randn(parameter.shape, generator=generator)
                )


def check_merges_alike(config: peft.PeftConfig, folder: Path, modules: list[str], save_embedding: bool = False) -> LoRA:
    """Save adapters with PEFT, read them here, and compare each merged weight with PEFT's own merge."""
    torch.manual_seed(0)
    base = Small()
    weights = {name: getattr(base, name).weight.detach().clone() for name in modules}
    model = peft.get_peft_model(base, config)
    randomised(model)
    model.save_pretrained(folder, save_embedding_layers=save_embedding)
    merged = model.merge_and_unload()
    lora = read(folder)
    assert sorted(lora.names) == sorted(modules)
    stored = load_file(folder / "adapter_model.safetensors").values()
    assert save_embedding or lora.parameters == sum(tensor.numel() for tensor in stored)
    assert [(y.name, y.n, y.m, y.rank, y.scale) for y in probe(folder).layers] == [
        (y.name, y.n, y.m, y.rank, y.scale) for y in lora.layers
    ]
    for name in modules:
        weight, expected = weights[name], getattr(merged, name).weight.detach()
        if name == "transposed":  # Conv1D stores its weight (in, out)
            weight, expected = weight.T, expected.T
        shaped = weight.reshape(lora[name].weight_shape)
        torch.testing.assert_close(lora[name].merge(shaped), expected.reshape(shaped.shape), rtol=1e-4, atol=1e-4)
    return lora


ALL = ["linear", "square", "conv", "pointwise", "sound", "transposed", "embed"]


@pytest.mark.parametrize(
    "options",
    [
        {"r": 2, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {
            "r": 2,
            "lora_alpha": 8,
            "rank_pattern": {"linear": 3, "co.v": 1},
            "alpha_pattern": {"^square": 5, "linear": 1},
        },
    ],
    ids=["lora", "rslora", "patterns"],
)
@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_peft_lora(options: dict[str, Any], tmp_path: Path) -> None:
    lora = check_merges_alike(peft.LoraConfig(target_modules=ALL, init_lora_weights=False, **options), tmp_path, ALL)
    assert lora["conv"].kind == "conv" and lora["conv"].weight_shape == (10, 4, 3, 3) and lora["conv"].m == 36
    assert lora["embed"].kind == "embedding" and (lora["embed"].n, lora["embed"].m) == (11, 6)


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_peft_dora(tmp_path: Path) -> None:
    modules = ["linear", "square", "conv", "transposed"]
    lora = check_merges_alike(
        peft.LoraConfig(target_modules=modules, r=2, lora_alpha=4, use_dora=True, init_lora_weights=False),
        tmp_path,
        modules,
    )
    assert all(layer.magnitude is not None and len(layer.magnitude) == layer.n for layer in lora.layers)


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_peft_block_diagonal(tmp_path: Path) -> None:
    """BD-LoRA, where one factor is block-diagonal: a pair for each block."""
    blocks = peft.BdLoraConfig(target_modules_bd_a=["square"], target_modules_bd_b=["linear"], nblocks=2)
    modules = ["linear", "square"]
    config = peft.LoraConfig(target_modules=modules, r=4, lora_alpha=6, init_lora_weights=False, use_bdlora=blocks)
    for layer in check_merges_alike(config, tmp_path, modules).layers:
        assert (layer.kind, layer.parametrisation.group.title) == (Kind.BLOCKS, "GL(2) × GL(2)")


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_peft_convolution_in_groups(tmp_path: Path) -> None:
    """A pair for each group of the outputs, each of which sees all inputs: ΔW has not the shape of the base's weight,
    and PEFT merges none, so its forward pass is what is compared.
    """
    torch.manual_seed(0)
    model = peft.get_peft_model(Small(), peft.LoraConfig(target_modules=["grouped"], r=4, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    lora, convolution, x = read(tmp_path), model.base_model.model.grouped, torch.randn(1, 4, 5, 5)
    added = nn.functional.conv2d(x, lora["grouped"].delta())
    torch.testing.assert_close(convolution(x), convolution.base_layer(x) + added)
    assert lora["grouped"].parametrisation.group.title == "GL(2) × GL(2)"
    assert lora.parameters == sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("effective", [False, True], ids=["flat", "effective_conv2d"])
def test_peft_loha(effective: bool, tmp_path: Path) -> None:
    modules = ["linear", "conv"]
    lora = check_merges_alike(
        peft.LoHaConfig(target_modules=modules, r=3, alpha=2, use_effective_conv2d=effective, init_weights=False),
        tmp_path,
        modules,
    )
    assert lora["linear"].rank == 9


@pytest.mark.parametrize(
    "options",
    [
        {"r": 2},
        {"r": 2, "decompose_both": True, "decompose_factor": 2},
        {"r": 16},
        {"r": 16, "rank_pattern": {"linear": 12}},
        {"r": 2, "use_effective_conv2d": True},
    ],
)
def test_peft_lokr(options: dict[str, Any], tmp_path: Path) -> None:
    modules = ["linear", "conv"]
    lora = check_merges_alike(
        peft.LoKrConfig(target_modules=modules, alpha=3, init_weights=False, **options), tmp_path, modules
    )
    assert all(layer.kind == "kronecker" and layer.rank == 1 for layer in lora.layers)


def test_peft_lokr_of_one_dimension_is_refused(tmp_path: Path) -> None:
    """PEFT's product takes the kernel's axis for the inputs': what it adds is no Kronecker product."""
    model = peft.get_peft_model(
        Small(), peft.LoKrConfig(target_modules=["linear", "sound"], r=16, alpha=3, init_weights=False)
    )
    model.save_pretrained(tmp_path)
    lora = read(tmp_path)
    assert lora.names == ("linear",) and any("sound: a LoKr of a Conv1d" in note for note in lora.notes)


LYCORIS = [
    ("locon", "linear", {}),
    ("locon", "conv", {}),
    ("locon", "conv", {"use_tucker": True}),
    ("locon", "linear", {"weight_decompose": True}),
    ("locon", "linear", {"weight_decompose": True, "wd_on_out": False}),
    ("locon", "square", {"weight_decompose": True, "wd_on_out": False}),
    ("locon", "conv", {"weight_decompose": True}),
    ("loha", "linear", {}),
    ("loha", "conv", {"weight_decompose": True, "wd_on_out": False}),
    ("lokr", "conv", {"weight_decompose": True, "wd_on_out": False}),
    ("lokr", "sound", {"weight_decompose": True}),
    ("loha", "conv", {"use_tucker": True}),
    ("lokr", "linear", {}),
    ("lokr", "conv", {}),
    ("lokr", "linear", {"decompose_both": True, "factor": 2}),
    ("lokr", "linear", {"full_matrix": True}),
    ("lokr", "conv", {"use_tucker": True}),
]


@pytest.mark.parametrize(("algorithm", "layer", "options"), LYCORIS, ids=lambda value: str(value))
def test_lycoris(algorithm: str, layer: str, options: dict[str, Any], tmp_path: Path) -> None:
    modules = pytest.importorskip("lycoris.modules", reason="lycoris, a development tool, is not installed")
    kind = {"locon": modules.LoConModule, "loha": modules.LohaModule, "lokr": modules.LokrModule}[algorithm]
    torch.manual_seed(0)
    base = getattr(Small(), layer)
    module = kind("lora_unet_x", base, 1.0, lora_dim=2, alpha=3, **options)
    randomised(module)
    state = {f"lora_unet_x.{key}": value.contiguous() for key, value in module.custom_state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    read_layer = read(tmp_path / "x.safetensors").layers[0]
    assert read_layer.name == "lora_unet_x"
    weight = base.weight.detach().reshape(read_layer.weight_shape)
    if algorithm == "locon":
        merged = module.get_merged_weight()[0].detach()
        assert read_layer.scale == 1.5 and read_layer.rank == 2
    else:  # what its forward pass adds; its get_merged_weight applies the scale of LoHa and LoKr a second time
        merged = base.weight.detach() + module.get_weight(base.weight.shape).detach()
        merged = module.apply_weight_decompose(merged).detach() if module.wd else merged
    torch.testing.assert_close(read_layer.merge(weight), merged.reshape(weight.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (0.0, 1.0), (1.0, 0.25)])
def test_kohya_alpha(alpha: float | None, scale: float, tmp_path: Path) -> None:
    tensors = {"lora_te1_q.lora_down.weight": torch.randn(4, 6), "lora_te1_q.lora_up.weight": torch.randn(5, 4)}
    if alpha is not None:
        tensors["lora_te1_q.alpha"] = torch.tensor(alpha)
    save_file(
        tensors, tmp_path / "x.safetensors", metadata={"ss_base_model_version": "sdxl_base_v1-0", "ss_network_dim": "4"}
    )
    lora = read(tmp_path / "x.safetensors")
    assert lora.dialect == "kohya/LyCORIS" and lora.base_model == "sdxl_base_v1-0" and lora.layers[0].scale == scale
    expected = scale * tensors["lora_te1_q.lora_up.weight"] @ tensors["lora_te1_q.lora_down.weight"]
    torch.testing.assert_close(lora.layers[0].delta(), expected)


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_diffusers_new(tmp_path: Path) -> None:
    """A LoRA written by diffusers' own pipeline, alphas in the header."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.utils import convert_state_dict_to_diffusers

    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "block_out_channels": (8,),
    }
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, cross_attention_dim=8, attention_head_dim=2, norm_num_groups=4, **blocks
    )
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"], init_lora_weights=False)
    unet.add_adapter(config)
    state = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=config.to_dict()
    )
    lora = read(tmp_path / "pytorch_lora_weights.safetensors")
    assert lora.dialect == "diffusers" and len(lora.layers) == sum(
        1 for n, _ in unet.named_modules() if n.endswith((".to_q", ".to_v"))
    )
    for layer in lora.layers:
        module = unet.get_submodule(layer.name.removeprefix("unet."))
        assert layer.scale == 3
        torch.testing.assert_close(layer.delta(), module.get_delta_weight("default").detach(), rtol=1e-4, atol=1e-5)


def pair(out: int = 5, into: int = 6, r: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(r, into), torch.randn(out, r)


KEYED = {  # dialect → (name of down, name of up, module)
    "diffusers": [
        (
            "down_blocks.0.attn1.processor.to_q_lora.down.weight",
            "down_blocks.0.attn1.processor.to_q_lora.up.weight",
            "down_blocks.0.attn1.to_q",
        ),
        (
            "mid.attn2.processor.to_out_lora.down.weight",
            "mid.attn2.processor.to_out_lora.up.weight",
            "mid.attn2.to_out.0",
        ),
        (
            "text_encoder.l.0.q_proj.lora_linear_layer.down.weight",
            "text_encoder.l.0.q_proj.lora_linear_layer.up.weight",
            "text_encoder.l.0.q_proj",
        ),
        ("unet.down.to_k.lora.down.weight", "unet.down.to_k.lora.up.weight", "unet.down.to_k"),
        ("transformer.x.proj.lora_A.weight", "transformer.x.proj.lora_B.weight", "transformer.x.proj"),
        (
            "diffusion_model.blocks.0.q.lora_A.weight",
            "diffusion_model.blocks.0.q.lora_B.weight",
            "diffusion_model.blocks.0.q",
        ),
    ],
    "XLabs": [
        (
            "double_blocks.3.processor.qkv_lora1.down.weight",
            "double_blocks.3.processor.qkv_lora1.up.weight",
            "double_blocks.3.processor.qkv_lora1",
        )
    ],
    "SAM": [("w_a_000", "w_b_000", "blocks.0.attn.q"), ("w_a_003", "w_b_003", "blocks.1.attn.v")],
    "cloneofsimo": [
        ("unet:0:down", "unet:0:up", "unet:0"),
        ("text_encoder:12:down", "text_encoder:12:up", "text_encoder:12"),
    ],
    "kohya/LyCORIS": [
        (
            "lora_unet_double_blocks_0_qkv.lora_down.weight",
            "lora_unet_double_blocks_0_qkv.lora_up.weight",
            "lora_unet_double_blocks_0_qkv",
        ),
        ("lora_unet_to_k_lora_down.weight", "lora_unet_to_k_lora_up.weight", "lora_unet_to_k"),
        ("lycoris_blocks_0_q.lora_down.weight", "lycoris_blocks_0_q.lora_up.weight", "lycoris_blocks_0_q"),
    ],
    "PEFT": [
        ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight", "q"),
        ("base_model.model.q.lora_A.default.weight", "base_model.model.q.lora_B.default.weight", "q"),
        ("base_model.model.base_model.model.q.lora_A.weight", "base_model.model.base_model.model.q.lora_B.weight", "q"),
        ("down_blocks.0.to_q.lora_A.weight", "down_blocks.0.to_q.lora_B.weight", "down_blocks.0.to_q"),
    ],
}


@pytest.mark.parametrize(
    ("dialect", "keys"),
    [(d, k) for d, all_keys in KEYED.items() for k in all_keys],
    ids=lambda v: v if isinstance(v, str) else v[0][:40],
)
def test_key_patterns(dialect: str, keys: tuple[str, str, str], tmp_path: Path) -> None:
    (down, up), (down_key, up_key, module) = pair(), keys
    save_file({down_key: down, up_key: up}, tmp_path / "x.safetensors")
    lora = read(tmp_path / "x.safetensors")
    assert (lora.dialect, lora.names) == (dialect, (module,))
    torch.testing.assert_close(lora.layers[0].delta(), up @ down)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_mlx(suffix: str, tmp_path: Path) -> None:
    down, up = pair()
    tensors = {"model.layers.0.q_proj.lora_a": down.T.contiguous(), "model.layers.0.q_proj.lora_b": up.T.contiguous()}
    if suffix == "npz":
        arrays: dict[str, Any] = {key: value.numpy() for key, value in tensors.items()}
        np.savez(tmp_path / "adapters.npz", **arrays)
    else:
        save_file(tensors, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"lora_parameters": {"rank": 2, "scale": 20.0}, "model": "mlx/base"})
    )
    lora = read(tmp_path / f"adapters.{suffix}")
    assert (lora.dialect, lora.base_model, lora.layers[0].rank) == ("MLX", "mlx/base", 2)
    torch.testing.assert_close(
        lora.layers[0].delta(), 20 * up @ down
    )  # y = x W + scale · x lora_a lora_b, weights (out, in)


def test_cloneofsimo_list(tmp_path: Path) -> None:
    down, up = pair()
    torch.save([up, down, up, down], tmp_path / "lora.text_encoder.pt")
    lora = read(tmp_path / "lora.text_encoder.pt")
    assert lora.names == ("text_encoder:0", "text_encoder:1")
    torch.testing.assert_close(lora.layers[1].delta(), up @ down)


def test_other_tensors_are_listed_not_embedded(tmp_path: Path) -> None:
    down, up = pair()
    tensors = {
        "base_model.model.q.lora_A.weight": down,
        "base_model.model.q.lora_B.weight": up,
        "base_model.model.classifier.modules_to_save.weight": torch.zeros(3),
    }
    tensors["base_model.model.k.base_layer.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "x.safetensors")
    lora = read(tmp_path / "x.safetensors")
    assert lora.names == ("q",) and len(lora.extras) == 2
