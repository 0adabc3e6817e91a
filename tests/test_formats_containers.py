"""Containers told by their content, LoRAs nested in training states or spread over shards, reasons that are true."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError, NotLowRankError
from lol_core.formats import probe, read
from tests.builders import random_lora, write_peft

SHAPES = (("q", 6, 5, 2), ("v", 4, 5, 2))


LORA = random_lora(SHAPES, dtype=torch.float32)


def tensors() -> dict[str, torch.Tensor]:
    found = {}
    for layer in LORA.layers:
        found[f"base_model.model.{layer.name}.lora_A.weight"] = layer.V.T.contiguous()
        found[f"base_model.model.{layer.name}.lora_B.weight"] = layer.U.contiguous()
    return found


def check(lora: LoRA, scale: float = 1.0) -> None:
    assert len(lora.layers) == len(LORA.layers)
    for layer, expected in zip(lora.layers, LORA.layers, strict=True):
        torch.testing.assert_close(layer.delta(), scale * expected.delta())


def header_and_weights_agree(path: Path) -> None:
    probed, loaded = probe(path), read(path)
    assert probed.headers == loaded.headers and probed.notes == loaded.notes
    assert [layer.scale for layer in probed.layers] == [layer.scale for layer in loaded.layers]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".ckpt", ".npz", ".gguf", ".lora"])
@pytest.mark.parametrize("container", ["safetensors", "zip", "old pickle", "npz", "gguf"])
def test_a_container_is_told_by_its_content(container: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    if container == "safetensors":
        save_file(tensors(), path)
    elif container == "npz":
        npz(path, {f"{key}.npy": npy(tensor.numpy()) for key, tensor in tensors().items()})
    elif container == "gguf":
        write_gguf(path)
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=container == "zip")
    check(read(path))
    header_and_weights_agree(path)


def write_gguf(path: Path, kind: str = "adapter", alpha: float = 2.0, quantised: bool = False) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(kind)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for layer in LORA.layers:
        for factor, tensor in (("a", layer.V.T), ("b", layer.U)):
            data = tensor.contiguous().numpy()
            if quantised:
                data = np.zeros((len(data), 32), dtype=np.float32) + data[:, :1]
                packed = gguf.quantize(data, gguf.GGMLQuantizationType.Q8_0)
                kind_ = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(f"blk.0.attn_{layer.name}.weight.lora_{factor}", packed, raw_dtype=kind_)
            else:
                writer.add_tensor(f"blk.0.attn_{layer.name}.weight.lora_{factor}", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    "way",
    ["module", "model", "model_state_dict", "lora", "state_dict", "anything", "state_dict.model", "a.b.c"],
)
def test_a_nested_adapter_is_read_and_its_optimizer_left_out(way: str, tmp_path: Path) -> None:
    content: Any = tensors()
    for key in reversed(way.split(".")):
        content = {key: content, "epoch": 3, "optimizer_states": {"state": {0: {"exp_avg": torch.zeros(9, 9)}}}}
    torch.save(content, tmp_path / "x.pt")
    lora = read(tmp_path / "x.pt")
    check(lora)
    assert (
        not lora.extras and any(way in note for note in lora.notes) and any("optimizer" in note for note in lora.notes)
    )
    header_and_weights_agree(tmp_path / "x.pt")


def test_components_beside_each_other_keep_their_names(tmp_path: Path) -> None:
    factors = {
        "down_blocks.0.to_q.lora_A.weight": torch.ones(1, 4),
        "down_blocks.0.to_q.lora_B.weight": torch.ones(4, 1),
    }
    torch.save({"unet": factors, "text_encoder": factors}, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt").names == ("unet.down_blocks.0.to_q", "text_encoder.down_blocks.0.to_q")


def test_a_pickle_that_holds_itself_comes_to_an_end(tmp_path: Path) -> None:
    inner: dict[str, Any] = {"x": 1}
    inner["self"] = [inner] * 50
    torch.save(inner, tmp_path / "x.pt")
    with pytest.raises(NotLowRankError, match="no tensors but a dictionary of 2 entries"):
        read(tmp_path / "x.pt")


def test_numbers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    name = "base_model.model.q.lora_A.weight"
    for odd, reason in (
        (torch.zeros(1, 1).expand(3000, 3000), "repeats 4 bytes"),
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.zeros(2, 5, dtype=torch.complex64), "complex"),
    ):
        torch.save(tensors() | {name: odd}, tmp_path / "x.pt")
        for open_ in (probe, read):
            with pytest.raises(LoRAFormatError, match=reason):
                open_(tmp_path / "x.pt")


SAVED_INSTEAD = {
    "page": (b"<!DOCTYPE html><html><head><title>Sign in</title>", r"web page \(HTML\) that says 'Sign in'"),
    "bare_page": (b"\n  <html lang=en>", "web page"),
    "xml": (
        b'<?xml version="1.0"?><Error><Message>Access Denied</Message></Error>',
        "XML text that says 'Access Denied'",
    ),
    "json": (b'{"error":"Unauthorized","message":"Log in first"}', "JSON text that says 'Log in first'.*error message"),
    "nested_json": (b'{"error":{"code":401,"message":"no"}}', "JSON text that says 'no'"),
    "other_json": (b'{"a": [1, 2, 3], "b": 4}', "JSON text that begins"),
    "text": (b"Entry not found. Check the name.", "text that begins 'Entry not found"),
    "utf16": ("Zugriff verweigert für alle".encode("utf-16"), "text that begins 'Zugriff"),
    "zeros": (bytes(5000), "zero bytes: room that a download reserved"),
    "npy": (b"\x93NUMPY" + bytes(100), "single NumPy array"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG picture"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "gzip archive"),
    "old_llama": (b"algg\x01" + bytes(100), "before GGUF"),
    "gguf_cut": (b"GGUF\x03\0\0\0" + b"\x05" + bytes(7), "Not a readable GGUF file"),
    "gguf_counts": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "Not a readable GGUF file"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".npz"])
@pytest.mark.parametrize("name", SAVED_INSTEAD)
def test_what_was_saved_in_place_of_weights_is_named(name: str, suffix: str, tmp_path: Path) -> None:
    content, reason = SAVED_INSTEAD[name]
    (tmp_path / f"x{suffix}").write_bytes(content)
    for open_ in (probe, read):
        with pytest.raises(LoRAFormatError, match=reason):
            open_(tmp_path / f"x{suffix}")


def test_a_zip_of_other_files_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("lora.safetensors", b"x")
    with pytest.raises(NotLowRankError, match=r"zip archive of 1 file \(first 'lora.safetensors'\).*Unpack"):
        read(tmp_path / "x.bin")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(LoRAFormatError, match="a pipe"):
        probe(tmp_path / "x.safetensors")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_configuration_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    write_peft(tmp_path, LORA)
    text = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(text.replace('"lora_alpha": 2', '"lora_alpha": 1'), encoding=encoding)
    check(read(tmp_path), scale=0.5)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "[" * 5000, "\0", "{"])
def test_a_configuration_that_is_none_is_not_passed_over(content: str, tmp_path: Path) -> None:
    write_peft(tmp_path, LORA)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(LoRAFormatError, match="adapter_config.json beside the file cannot be read.*alpha"):
        probe(tmp_path)


def header_bytes(header: str, data: bytes) -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode() + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes


def npz(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name, dtype", [("F8_E8M0", torch.float8_e8m0fnu), ("F8_E4M3FNUZ", torch.float8_e4m3fnuz), ("U16", torch.uint16)]
)
def test_types_that_only_newer_files_use_are_known(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    header = {"x": entry(dtype=name, shape=[16 // dtype.itemsize])} | {}
    raw = json.dumps(header)
    (tmp_path / "x.safetensors").write_bytes(header_bytes(raw, bytes(16)))
    with pytest.raises(NotLowRankError, match="No low-rank pairs"):
        read(tmp_path / "x.safetensors")


def test_a_type_that_cannot_be_read_costs_only_what_uses_it(tmp_path: Path) -> None:
    header = {"base_model.model.q.lora_A.weight": entry(dtype="F4", shape=[4, 8])}
    header["base_model.model.q.lora_B.weight"] = entry(data_offsets=[16, 32], shape=[1, 4])
    (tmp_path / "x.safetensors").write_bytes(header_bytes(json.dumps(header), bytes(32)))
    for open_ in (probe, read):
        with pytest.raises(LoRAFormatError, match="dtype F4"):
            open_(tmp_path / "x.safetensors")


NEIGHBOURS = {
    "optimizer": ({"state": {0: {"exp_avg": torch.zeros(2, 2), "step": 3}}, "param_groups": []}, "optimizer's state"),
    "hypernetwork": ({768: [{"linear.0.weight": torch.zeros(4, 4)}], "step": 1}, "hypernetwork"),
    "ip_adapter": (
        {"image_proj": {"p.weight": torch.zeros(2, 2)}, "ip_adapter": {"1.to_k_ip.weight": torch.zeros(2, 2)}},
        "IP-Adapter",
    ),
    "controlnet": ({"control_model.input_hint_block.0.weight": torch.zeros(2, 2, 3, 3)}, "ControlNet"),
    "inversion": ({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(2, 8)}}, "textual inversion"),
    "checkpoint": (
        {"state_dict": {"model.diffusion_model.x.weight": torch.zeros(2, 2), "first_stage_model.y": torch.zeros(2)}},
        "whole Stable Diffusion checkpoint",
    ),
    "language_model": (
        {"model.embed_tokens.weight": torch.zeros(9, 4), "model.norm.weight": torch.zeros(4)},
        "whole language model",
    ),
    "layers_with_statistics": (
        {f"bn{i}.{leaf}": torch.zeros(3, 3) for i in range(9) for leaf in ("weight", "running_mean")},
        "whole model",
    ),
    "layers": ({f"layer.{i}.weight": torch.zeros(3, 3) for i in range(9)}, "whole model"),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_what_is_no_adapter_is_named(name: str, tmp_path: Path) -> None:
    content, reason = NEIGHBOURS[name]
    torch.save(content, tmp_path / "x.pt")
    for open_ in (probe, read):
        with pytest.raises(NotLowRankError, match=reason):
            open_(tmp_path / "x.pt")


def test_every_family_of_peft_is_told_apart() -> None:
    """Whatever PEFT can save and has no low-rank pair is named; a new release with a new family fails here."""
    from peft import PeftType

    from lol_core.formats.families import PEFT_FAMILIES, family_of

    low_rank = {"LORA", "ADALORA", "LOHA", "LOKR"}
    named = {kind for family in PEFT_FAMILIES for kind in family.peft_types}
    assert {kind.value for kind in PeftType} - low_rank <= named
    family = family_of(["base_model.x"], {"peft_type": "ROAD"})
    assert family is not None and "RoAd" in family.name


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lol_core.formats as formats

    path = tmp_path / "x.safetensors"
    save_file(tensors(), path)
    whole, real = path.read_bytes(), formats._read
    calls = []

    def while_it_is_written(*args: Any, **options: Any) -> LoRA:
        calls.append(1)
        if len(calls) == 1:
            path.write_bytes(whole)
            os.utime(path, ns=(1, 1))
            raise LoRAFormatError("half a file")
        return real(*args, **options)

    monkeypatch.setattr(formats, "_read", while_it_is_written)
    check(read(path))
    assert len(calls) == 2


def test_files_of_one_structure_share_it_and_keep_what_differs(tmp_path: Path) -> None:
    """Headers that repeat are taken apart once; scale, metadata and configuration still come from each file."""

    def kohya(name: str, alpha: float, tag: str, width: int = 5) -> Path:
        factors = {"lora_unet_a.lora_down.weight": torch.ones(2, width), "lora_unet_a.lora_up.weight": torch.ones(6, 2)}
        save_file(factors | {"lora_unet_a.alpha": torch.tensor(alpha)}, tmp_path / name, metadata={"ss_tag": tag})
        return tmp_path / name

    first, twin = probe(kohya("a.safetensors", 1.0, "x")), probe(kohya("b.safetensors", 1.0, "y"))
    assert first.layers is twin.layers and (first.metadata["ss_tag"], twin.metadata["ss_tag"]) == ("x", "y")
    assert probe(kohya("c.safetensors", 4.0, "x")).layers[0].scale == 2.0
    assert probe(kohya("d.safetensors", 1.0, "x", width=7)).layers[0].m == 7
    for folder, alpha in (("one", 1), ("two", 2)):
        write_peft(tmp_path / folder, LORA, alpha=alpha)
        assert probe(tmp_path / folder).layers[0].scale == alpha / 2
    save_file(tensors(), tmp_path / "e.safetensors", metadata={"lora_alpha": "6"})
    save_file(tensors(), tmp_path / "f.safetensors", metadata={"lora_alpha": "8"})
    assert [probe(tmp_path / f"{name}.safetensors").layers[0].scale for name in "ef"] == [3.0, 4.0]


def test_a_refusal_repeats_what_the_file_claims_to_be(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2, 2)}, tmp_path / "x.safetensors", metadata={"modelspec.architecture": "flux/odd"})
    with pytest.raises(NotLowRankError, match="Its header calls it 'flux/odd'"):
        probe(tmp_path / "x.safetensors")
