"""One module under the names that several programs give it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from lol_core.collections.memory import MemorySource
from lol_core.collections.zoo import Zoo
from lol_core.core.batch import shared_spec, stack, unstack
from lol_core.core.geometry import same_function
from lol_core.core.lora import LoRA
from lol_core.core.naming import common_name, common_names
from lol_core.errors import ModelError
from lol_core.formats import read
from lol_core.formats.writing import forms_of, names_in, write
from lol_core.insight.embedding import families
from lol_core.insight.merging import merge
from lol_core.insight.neighbours import nearest
from lol_core.insight.survey import survey
from lol_core.learning.config import TrainingConfig
from lol_core.learning.evaluation import structure_features
from lol_core.learning.training import plan, train
from tests.builders import random_lora, turned

UNET = (
    ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 8, 6, 2),
    ("unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0", 6, 8, 2),
)
RESNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
ATTENTION = ("proj_in", "transformer_blocks.1.attn2.to_out.0", "transformer_blocks.0.ff.net.0.proj")


def stable_diffusion_xl() -> list[str]:
    """Names of modules of its UNet, as Stability and sd-scripts have them."""
    resnets = [f"{side}_blocks.{i}.0" for side, of in (("input", (1, 2, 4, 5, 7, 8)), ("output", range(9))) for i in of]
    attentions = [f"{side}_blocks.{i}.1" for side, of in (("input", (4, 5, 7, 8)), ("output", range(6))) for i in of]
    alone = ("input_blocks.0.0", "out.2", "time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2")
    resized = ("input_blocks.3.0.op", "input_blocks.6.0.op", "output_blocks.2.2.conv", "output_blocks.5.2.conv")
    return [
        *alone,
        *resized,
        *(f"{place}.{part}" for place in (*resnets, "middle_block.0", "middle_block.2") for part in RESNET),
        *(f"{place}.{part}" for place in (*attentions, "middle_block.1") for part in ATTENTION),
    ]


def test_a_unet_is_named_as_diffusers_converts_it() -> None:
    names = stable_diffusion_xl()
    weights = {
        f"model.diffusion_model.{name}.{kind}": torch.tensor(i)
        for i, name in enumerate(names)
        for kind in ("weight", "bias")
    }
    config = {"layers_per_block": 2, "addition_embed_type": "text_time"}
    converted = convert_ldm_unet_checkpoint(weights, config)
    assert len(converted) == len(weights)
    for key, number in converted.items():
        original, module = names[int(number)], key.rpartition(".")[0]
        expected = f"lora_unet_{module.replace('.', '_')}"
        for name in (original, original.replace(".", "_")):
            named = f"diffusion_model.{name}" if "." in name else f"lora_unet_{name}"
            assert common_name(named) == expected, original
        assert common_name(f"unet.{module}") == common_name(expected) == expected


def in_blocks(block: str, parts: str) -> list[str]:
    return [f"{block}.{i}.{part}" for i in (0, 1) for part in parts.split()]


PROJECTIONS = "attn.to_q attn.to_k attn.to_v attn.to_out.0"
WAN = in_blocks("blocks", " ".join(f"{of}_attn.{part}" for of in ("self", "cross") for part in "qkvo") + " ffn.0 ffn.2")
WAN_OF_IMAGES = [*WAN, *in_blocks("blocks", "cross_attn.k_img cross_attn.v_img")]
QWEN = in_blocks("transformer_blocks", f"{PROJECTIONS} attn.to_add_out img_mlp.net.0.proj txt_mlp.net.2 img_mod.1")
Z_IMAGE = in_blocks("layers", f"{PROJECTIONS.replace('attn', 'attention')} feed_forward.w1")
LTX = in_blocks("transformer_blocks", f"{PROJECTIONS.replace('attn', 'attn1')} ff.net.0.proj ff.net.2")


@pytest.mark.parametrize(
    ("converter", "names", "flat"),
    [
        ("non_diffusers_wan", WAN_OF_IMAGES, False),
        ("musubi_wan", WAN_OF_IMAGES, True),
        ("non_diffusers_qwen", QWEN, False),
        ("non_diffusers_qwen", QWEN, True),
        ("non_diffusers_z_image", Z_IMAGE, False),
        ("non_diffusers_z_image", Z_IMAGE, True),
        ("non_diffusers_ltxv", LTX, False),
    ],
)
def test_a_transformer_is_named_as_diffusers_converts_it(converter: str, names: list[str], flat: bool) -> None:
    called = {name: f"lora_unet_{name.replace('.', '_')}" if flat else f"diffusion_model.{name}" for name in names}
    words = ("lora_down", "lora_up") if flat else ("lora_A", "lora_B")
    weights = {f"{called[n]}.{word}.weight": torch.full((1, 1), i) for i, n in enumerate(names) for word in words}
    alphas = {f"{name}.alpha": torch.tensor(1) for name in called.values()} if flat else {}
    converted = getattr(lora_conversion_utils, f"_convert_{converter}_lora_to_diffusers")(weights | alphas)
    assert len(converted) == len(weights)
    for key, number in converted.items():
        theirs, original = key.partition(".lora_")[0], names[int(number)]
        assert common_name(theirs) == common_name(called[original]) == common_name(original)


@pytest.mark.parametrize(
    "names",
    [
        ("down_blocks.0.attentions.1.proj_in", "unet.down_blocks.0.attentions.1.proj_in"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        ("diffusion_model.double_blocks.0.img_attn.qkv", "lora_unet_double_blocks_0_img_attn_qkv"),
        ("transformer.transformer_blocks.0.attn.to_q", "lora_transformer_transformer_blocks_0_attn_to_q"),
        ("single_transformer_blocks.7.attn.to_k", "transformer.single_transformer_blocks.7.attn.to_k"),
        ("lora_transformer_transformer_blocks_0_attn_to_q", "lycoris_transformer_blocks_0_attn_to_q"),
        ("lycoris_mid_block_attentions_0_proj_in", "diffusion_model.middle_block.1.proj_in"),
        ("model.diffusion_model.double_blocks.0.img_mod.lin", "double_blocks.0.img_mod.lin"),
        ("transformer.double_blocks.0.img_attn_qkv", "diffusion_model.double_blocks.0.img_attn.qkv"),
        ("double_blocks.3.processor.proj_lora2", "lora_unet_double_blocks_3_txt_attn_proj"),
        (
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
            "text_model.encoder.layers.0.mlp.fc1",
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        ),
        (
            "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1",
            "lora_te2_text_model_encoder_layers_0_mlp_fc1",
        ),
        (
            "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
            "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q",
            "lora_te2_encoder_block_0_layer_0_SelfAttention_q",
            "lora_te_encoder_block_0_layer_0_SelfAttention_q",
        ),
    ],
)
def test_programs_have_one_name_for_a_module(names: tuple[str, ...]) -> None:
    assert len({common_name(name) for name in names}) == 1


LANGUAGE = (
    "transformer.h.0.attn.c_attn",
    "transformer.encoder.layers.0.self_attention.query_key_value",
    "transformer.blocks.0.attn.Wqkv",
)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj", "a", "h.0.attn.c_attn", "(one layer)", *LANGUAGE])
def test_other_models_keep_their_names(name: str) -> None:
    assert common_name(name) == name


def _of(form: str, lora: LoRA, folder: Path) -> LoRA:
    path = folder / form if form == "PEFT" else folder / f"{form}.safetensors"
    write(lora, path, form, torch.float64)
    return read(path)


def test_a_model_reads_a_lora_in_every_form(tmp_path: Path) -> None:
    loras = {f"lora{i}": random_lora(UNET, i) for i in range(24)}
    sizes = [float(lora.layers[0].delta().norm()) for lora in loras.values()]
    source, config = (
        MemorySource(loras, pd.DataFrame({"size": sizes}, index=[*loras])),
        TrainingConfig("gl_net", epochs=2),
    )
    checkpoint = train(source, plan(source, ["size"], config), config, tmp_path / "model")
    lora = loras["lora3"]
    expected = checkpoint.predict([lora])
    for form in ("PEFT", "diffusers", "kohya"):
        again = _of(form, turned(lora), tmp_path)
        assert not checkpoint.spec.misfits(again) and same_function(again, lora)
        np.testing.assert_allclose(checkpoint.predict([again]), expected, rtol=1e-4)


def test_loras_of_several_programs_make_one_collection(tmp_path: Path) -> None:
    loras = [random_lora(UNET, i) for i in range(3)]
    for form, lora in zip(("kohya", "diffusers", "PEFT"), loras, strict=True):
        _of(form, lora, tmp_path)
    zoo = Zoo.open(tmp_path)
    spec = shared_spec(zoo.entries)
    members = [zoo.load(id) for id in zoo.ids]
    batch = stack(members, spec, torch.float64)
    assert len(spec.modules) == len(UNET) and not any(spec.misfits(entry) for entry in zoo.entries)
    for member, again in zip(members, unstack(batch, members), strict=True):
        assert again.names == member.names and same_function(member, again, 1e-9)


TWICE = (*(f"{start}.transformer_blocks.0.attn.to_q" for start in ("transformer", "diffusion_model")), "unet.conv_in")


def test_of_a_collection_of_several_programs_no_module_is_left_out_for_its_name() -> None:
    names = {"dotted": [name for name, *_ in UNET], "flat": [f"lora_{name.replace('.', '_')}" for name, *_ in UNET]}
    names["more"] = [*names["flat"], "lora_te1_text_model_encoder_layers_0_mlp_fc1"]
    shapes = {id: [(name, 8, 6, 2) for name in own] for id, own in names.items()}
    loras = {f"{id}{i}": random_lora(shapes[id], i) for id in names for i in range(4)}
    source = MemorySource(loras, pd.DataFrame({"size": range(12)}, index=[*loras]))
    assert plan(source, ["size"], TrainingConfig()).left_out_modules == (names["more"][-1],)
    assert [len(ids) for ids in families(source.entries)] == [8, 4]
    assert structure_features(source.entries).shape == (12, 2 + 3 * 3)


def test_modules_of_one_file_share_no_name() -> None:
    assert common_names(TWICE) == (*TWICE[:2], "lora_unet_conv_in")
    both = random_lora([(name, 8, 6, 2) for name in TWICE])
    single = replace(both, layers=(both.layers[0], both.layers[2]))
    assert len(both.by_common_name) == 3 and not same_function(both, single)
    spec = shared_spec([both, both])
    assert len(spec.modules) == 3 and not spec.misfits(both)
    assert spec.misfits(single) == [f"1 of 3 modules are missing, first {TWICE[1]}."]
    assert [module.name for module in shared_spec([both, single]).modules] == ["unet.conv_in"]
    source = MemorySource({"both": both, "single": single})
    cosine = nearest(source, {id: survey(source.load(id)) for id in source.ids}, "both")["cosine"].item()
    parts = [float(layer.delta().norm()) for layer in (both.layers[2], *both.layers, *single.layers)]
    size = float(np.linalg.norm(parts[1:4])) * float(np.linalg.norm(parts[4:]))
    assert cosine == pytest.approx(parts[0] ** 2 / size)


def test_a_merge_of_several_programs_is_called_as_the_first_one_calls_it() -> None:
    part = "text_model.encoder.layers.0.mlp.fc1"
    shapes = [("unet.down_blocks.1.attentions.0.proj_in", 8, 6, 2)]
    shapes += [(f"text_encoder{number}.{part}", 8, 6, 2) for number in ("", "_2")]
    lora = replace(random_lora(shapes), dialect="diffusers")
    flat = ["lora_unet_input_blocks_4_1_proj_in", *(f"lora_te{i}_{part.replace('.', '_')}" for i in (1, 2))]
    layers = tuple(replace(y, name=name) for y, name in zip(lora.layers, flat, strict=True))
    kohya = replace(lora, layers=layers, dialect="kohya")
    dotted, fewer = lora.names, replace(lora, layers=lora.layers[:2])
    named = [flat[0].replace("input_blocks_4_1", "down_blocks_1_attentions_0"), *flat[1:]]
    cases = ((kohya, lora, flat, "kohya"), (lora, kohya, [*dotted], "diffusers"), (fewer, kohya, named, "kohya"))
    for first, second, expected, form in cases:
        merged = merge([first, second], [1, -1]).lora
        assert [*merged.names] == expected and form in forms_of(merged) and merged.dialect == form
        assert all(float(y.delta().norm()) < 1e-6 for y in merged.layers if y.name in merged.names[: len(first.layers)])


def test_a_merge_of_ltx_of_several_programs_has_the_prefix_that_kohyas_programs_know() -> None:
    names = [f"transformer.transformer_blocks.0.attn{i}.to_{part}" for i in (1, 2) for part in "qkv"]
    lora = replace(random_lora([(name, 2048, 2048, 1) for name in names]), dialect="diffusers")
    flat = [f"lora_unet_{name.removeprefix('transformer.').replace('.', '_')}" for name in names]
    for prefix in ("lora_unet_", "lora_transformer_"):
        own = [name.replace("lora_unet_", prefix) for name in flat[:4]]
        layers = tuple(replace(y, name=name) for y, name in zip(lora.layers, own, strict=False))
        merged = merge([replace(lora, layers=layers, dialect="kohya"), lora], [1, 1]).lora
        assert [*merged.names] == flat and [*names_in("kohya", merged).values()] == flat


def test_another_module_is_none_of_them() -> None:
    lora = random_lora(UNET)
    other = replace(lora, layers=tuple(replace(layer, name=f"{layer.name}.x") for layer in lora.layers))
    assert lora.get("lora_unet_mid_block_proj_in") is None and not same_function(lora, other)
    with pytest.raises(KeyError, match="mid_block"):
        lora["unet.mid_block.proj_in"]
    with pytest.raises(ModelError, match="share no module"):
        shared_spec([lora, other])
