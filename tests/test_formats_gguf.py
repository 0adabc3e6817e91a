"""GGUF adapters, as llama.cpp keeps them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from lol_core.errors import LoRAFormatError, NotLowRankError
from lol_core.formats import probe, read
from tests.test_formats_containers import check, header_and_weights_agree, write_gguf


def test_the_scale_of_a_gguf_adapter_is_in_its_header(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", alpha=1.0)
    lora = read(tmp_path / "x.gguf")
    check(lora, scale=0.5)
    assert lora.names == ("blk.0.attn_q", "blk.0.attn_v") and lora.metadata["adapter.lora.alpha"] == "1.0"
    write_gguf(tmp_path / "zero.gguf", alpha=0.0)
    assert any("taken as 1" in note for note in read(tmp_path / "zero.gguf").notes)


def test_quantised_gguf_factors_are_dequantised(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_type("adapter")
    data = {"a": np.ones((2, 32), dtype=np.float32), "b": np.full((3, 32), 2, dtype=np.float32)}
    for factor, array in (("a", data["a"]), ("b", data["b"][:, :2])):
        if factor == "a":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor("blk.0.x.weight.lora_a", gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor("blk.0.x.weight.lora_b", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    delta = read(tmp_path / "x.gguf").layers[0].delta()
    torch.testing.assert_close(delta, torch.full((3, 32), 4.0), rtol=1e-3, atol=0)
    header_and_weights_agree(tmp_path / "x.gguf")


def test_a_whole_gguf_model_is_no_adapter(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_type("model")
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotLowRankError, match="whole GGUF model"):
        read(tmp_path / "x.gguf")


def test_quantised_gguf_factors_of_no_blocks_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_type("adapter")
    writer.add_tensor("blk.0.x.weight.lora_a", np.zeros((4, 0), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.x.weight.lora_b", np.ones((6, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for open_ in (probe, read):
        with pytest.raises(LoRAFormatError, match=r"lora_a' of the shape \(4, 0\) is no whole number of blocks"):
            open_(tmp_path / "x.gguf")
