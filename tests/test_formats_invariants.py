"""What holds of every file, whatever is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError
from lol_core.formats import probe, read, reading

WORDS = [
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora_A", "lora_B"),
    ("lora_down.weight", "lora_up.weight"),
    ("lora.down.weight", "lora.up.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    ("adapter.linear_in.weight", "adapter.linear_out.weight"),
    ("matrix_A.0", "matrix_B.0"),
    ("lora_a.weight", "lora_b.weight"),
    ("lora_a", "lora_b"),
    ("hada", ""),
    ("lokr", ""),
]


STRANGERS = ["alpha", "lora_C", "bias", "weight", "diff_b", "w_norm", "lora_B.bias", "dora_scale", "m", "norm.weight"]


@st.composite
def files(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, str], Any]:
    """Modules of many spellings and shapes, with what may stand beside them, whole or with something broken."""
    tensors: dict[str, Tensor] = {}
    for i in range(draw(st.integers(1, 4))):
        prefix = draw(st.sampled_from(["", "unet.", "lora_unet_", "base_model.model.", "module.", "text_encoders."]))
        module, (down, up) = f"{prefix}layer{i}", draw(st.sampled_from(WORDS))
        n, m, r = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
        shapes: dict[str, tuple[int, ...]]
        if down == "hada":
            shapes = {"hada_w1_a": (n, r), "hada_w1_b": (r, m), "hada_w2_a": (n, r), "hada_w2_b": (r, m)}
        elif down == "lokr":
            shapes = {"lokr_w1": (n, m), "lokr_w2_a": (n, r), "lokr_w2_b": (r, m)}
        else:
            tail = (draw(st.sampled_from([1, 3])),) * 2 if draw(st.booleans()) and down not in ("lora_a",) else ()
            shapes = {down: (r, m, *tail), up: (n, r, *(1 for _ in tail))}
            if draw(st.integers(0, 4)) == 0:
                shapes = {word: shape[::-1] for word, shape in shapes.items()}
        for word, shape in shapes.items():
            tensors[f"{module}.{word}"] = torch.rand(shape).to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
        for stranger in draw(st.lists(st.sampled_from(STRANGERS), max_size=2, unique=True)):
            size: tuple[int, ...] = draw(st.sampled_from([(), (1,), (n,), (1, m), (r, r)]))
            tensors[f"{module}.{stranger}"] = torch.rand(size)
    header = draw(
        st.dictionaries(st.sampled_from(["alpha", "ss_network_alpha", "unet.lora_alpha"]), st.text(max_size=4))
    )
    value = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=3)
        | st.lists(st.integers(), max_size=1)
    )
    config = draw(
        st.none()
        | st.dictionaries(st.sampled_from(["lora_alpha", "r", "alpha_pattern", "use_rslora", "lora_parameters"]), value)
    )
    return tensors, header, config


FACTOR_WORD = ("lora", "hada", "lokr", "dora", "alpha", "diff", "norm")


@given(files())
@settings(max_examples=300, deadline=None)
def test_invariants_of_reading(tmp_path_factory: pytest.TempPathFactory, file: tuple[Any, Any, Any]) -> None:
    """What probe reads, read reads, alike; ranks fit; scales are finite; nothing with a factor's word goes unsaid."""
    tensors, header, config = file
    folder = tmp_path_factory.mktemp("file")
    save_file(tensors, folder / "adapter_model.safetensors", metadata=header)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    try:
        probed = probe(folder)
    except LoRAFormatError as error:
        with pytest.raises(LoRAFormatError) as same:
            read(folder)
        assert str(same.value) == str(error)
        return
    lora = read(folder)
    assert probed.headers == lora.headers and probed.notes == lora.notes and probed.extras == lora.extras
    for layer, seen in zip(lora.layers, probed.layers, strict=True):
        assert layer.scale == seen.scale and torch.isfinite(torch.tensor(layer.scale))
        assert abs(layer.scale) > 1e30 or torch.isfinite(layer.delta()).all()
        assert layer.kind not in ("linear", "conv") or "hada" in str(tensors) or layer.rank <= max(layer.n, layer.m)
    noted = " ".join(lora.notes)
    for key in lora.extras:
        assert not any(word in key for word in FACTOR_WORD) or key.rsplit(".", 1)[-1] in noted or "…" in noted
    assert len(lora.layers) + len(lora.extras) <= len(tensors)


def assert_same(lora: LoRA, other: LoRA) -> None:
    assert (lora.headers, lora.notes, lora.extras) == (other.headers, other.notes, other.extras)
    for a, b in zip(lora.layers, other.layers, strict=True):
        assert (a.name, a.scale, a.alpha, a.dtype) == (b.name, b.scale, b.alpha, b.dtype)
        for name, slot in a.parametrisation.slots.items():
            torch.testing.assert_close(slot, b.parametrisation.slots[name], rtol=0, atol=0, equal_nan=True)


@given(files())
@settings(max_examples=200, deadline=None)
def test_a_file_is_read_as_if_none_of_its_structure_had_been(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[Any, Any, Any]
) -> None:
    """Also where the single numbers beside its factors, its alphas, are others."""
    tensors, header, config = file
    folder = tmp_path_factory.mktemp("file")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    for others in (lambda tensor: tensor.numel() > 1, lambda tensor: True):
        reading._seen.cache_clear()
        for again in (tensors, {key: torch.rand_like(of) if others(of) else of for key, of in tensors.items()}):
            save_file(again, folder / "adapter_model.safetensors", metadata=header)
            try:
                lora = read(folder)
            except LoRAFormatError:
                return
        reading._seen.cache_clear()
        assert_same(lora, read(folder))


def test_of_a_known_structure_nothing_is_worked_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        tensors = {f"lora_unet_{i}.lora_{side}.weight": torch.rand(4, 4) for i in range(3) for side in ("down", "up")}
        alphas = {f"lora_unet_{i}.alpha": torch.tensor(2.0 if name == "c" else 4.0) for i in range(3)}
        save_file(tensors | alphas, tmp_path / f"{name}.safetensors")
    read(tmp_path / "a.safetensors")

    def never(*_: object) -> None:
        raise AssertionError("worked out again")

    monkeypatch.setattr(reading.Dialect, "read_content", never)
    assert [layer.scale for layer in read(tmp_path / "b.safetensors").layers] == [1.0] * 3
    with pytest.raises(AssertionError, match="again"):
        read(tmp_path / "c.safetensors")
