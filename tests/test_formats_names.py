"""Modules and factors known by their role, under any prefix, wrapper or adapter's name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lol_core.errors import LoRAFormatError
from tests.test_formats_kinds import A, B, close, pair, written

PREFIXES = (
    "",
    "base_model.model.",
    "base_model.model.base_model.model.",
    "module.",
    "module.base_model.model.",
    "_orig_mod.base_model.model.",
    "base_model.model._orig_mod.",
    "_fsdp_wrapped_module.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("adapter", ["", ".default", ".0", ".2024-run", ".my.adapter.v1", ".ünï"])
def test_wrappers_and_names_of_adapters_leave_the_module(prefix: str, adapter: str, tmp_path: Path) -> None:
    tensors = pair(f"{prefix}layers.0.q", f"lora_A{adapter}.weight", f"lora_B{adapter}.weight")
    assert written(tmp_path, tensors).names == ("layers.0.q",)


@pytest.mark.parametrize(
    "module",
    [
        "lora_unet_blocks_0.attn.q",
        "text_encoders.clip_l.q",
        "transformer_2.q",
        "net.q",
        "pipe.dit.q",
        "Ours_lora_q",
        "q",
    ],
)
@pytest.mark.parametrize("words", [("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")])
def test_any_prefix_has_its_alpha(module: str, words: tuple[str, str], tmp_path: Path) -> None:
    lora = written(tmp_path, pair(module, *words) | {f"{module}.alpha": torch.tensor(2.0)})
    assert lora.names == (module,) and lora.layers[0].scale == 0.5


def test_a_layer_by_itself_is_read(tmp_path: Path) -> None:
    close(written(tmp_path, {"lora_A.weight": A, "lora_B.weight": B}).layers[0].delta(), B @ A)


@pytest.mark.parametrize(
    ("down", "up", "turned"),
    [
        ("adapter.linear_in.weight", "adapter.linear_out.weight", False),
        ("lora_kqv_adapter.linear_in.weight", "lora_kqv_adapter.linear_out.weight", False),
        ("lora_right_weight", "lora_left_weight", True),
        ("lora.A", "lora.B", True),
        ("linear_a_q.weight", "linear_b_q.weight", False),
        ("loras.sst-2.lora_A", "loras.sst-2.lora_B", False),
        ("to_q_lora.down.weight", "to_q_lora.up.weight", False),
        ("processor.to_out_lora.down.weight", "processor.to_out_lora.up.weight", False),
    ],
)
def test_other_words_for_the_factors(down: str, up: str, turned: bool, tmp_path: Path) -> None:
    stored = (A.T, B.T) if turned else (A, B)
    lora = written(tmp_path, {f"layers.0.{down}": stored[0], f"layers.0.{up}": stored[1]})
    close(lora.layers[0].delta(), B @ A)
    assert lora.layers[0].name.startswith("layers.0")


def test_hints_for_activations_change_nothing(tmp_path: Path) -> None:
    lora = written(tmp_path, pair() | {"layers.0.q.lora_A.input_scale": torch.ones(1)})
    close(lora.layers[0].delta(), B @ A)
    assert any("input_scale" in note for note in lora.notes)


def test_two_adapters_are_never_read_as_one_module(tmp_path: Path) -> None:
    speech, vision = (pair("l.q", f"lora_A.{name}.weight", f"lora_B.{name}.weight") for name in ("speech", "vision"))
    with pytest.raises(LoRAFormatError, match="two adapters.*speech, vision"):
        written(tmp_path, speech | vision)
    with pytest.raises(LoRAFormatError, match="different adapters"):
        written(tmp_path, {"l.q.lora_A.speech.weight": A, "l.q.lora_B.vision.weight": B})
