"""LoRAs in streams that are no files of their own read as the files they would be."""

from __future__ import annotations

import json
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lol_core.collections.blob import RangeFile
from lol_core.collections.entry import Entry
from lol_core.errors import LoRAFormatError, SourceSilentError
from lol_core.formats import Stream, probe, probe_streams, read, read_streams
from lol_core.formats.container.pickled import open_pickled
from tests.builders import random_lora

LORA = random_lora(tuple((f"layer.{i}.attention.self.key", 320, 320, 16) for i in range(40)))


def write(container: str, path: Path) -> None:
    tensors = {}
    for y in LORA.layers:
        tensors[f"{y.name}.lora_A.weight"] = y.V.T.float().contiguous()
        tensors[f"{y.name}.lora_B.weight"] = y.U.float().contiguous()
    if container == "safetensors":
        save_file(tensors, path)
    elif container == "npz":
        np.savez(path, **{key: tensor.numpy() for key, tensor in tensors.items()})  # type: ignore[arg-type]  # keys are names of tensors, none is allow_pickle
    elif container == "gguf":
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 8.0)
        for key, tensor in tensors.items():
            name = key.removesuffix(".weight").replace(".lora_A", ".weight.lora_a").replace(".lora_B", ".weight.lora_b")
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=container == "bin")


@pytest.mark.parametrize("container", ["safetensors", "npz", "gguf", "bin", "pt"])
def test_a_stream_reads_as_its_file(container: str, tmp_path: Path) -> None:
    path = tmp_path / f"lora.{container}"
    write(container, path)
    content = path.read_bytes()
    there, here = read(path), read_streams([Stream(BytesIO(content), path.name, len(content))])
    assert there.names == here.names
    for ours, theirs in zip(here.layers, there.layers, strict=True):
        assert torch.equal(ours.U, theirs.U) and torch.equal(ours.V, theirs.V) and ours.scale == theirs.scale
    config = ("adapter_config.json", b'{"peft_type": "LORA", "r": 16, "lora_alpha": 32}')
    for sparing in (False, True):
        described = probe_streams([Stream(BytesIO(content), path.name, len(content))], sparing=sparing)
        assert Entry.of(described, path="x", size=1) == Entry.of(probe(path), path="x", size=1)
    if container != "gguf":
        assert read_streams([Stream(BytesIO(content), path.name, len(content))], config).layers[0].scale == 2
    for cut in (10, len(content) // 2):
        with pytest.raises(LoRAFormatError):
            read_streams([Stream(BytesIO(content[:cut]), path.name, cut)])


@pytest.mark.parametrize("container", ["safetensors", "gguf", "bin"])
def test_where_each_read_costs_most_of_it_is_not_read(container: str, tmp_path: Path) -> None:
    path = tmp_path / f"lora.{container}"
    write(container, path)
    content, fetched = path.read_bytes(), 0

    def fetch(start: int, stop: int) -> bytes:
        nonlocal fetched
        fetched += stop - start
        return content[start:stop]

    stream = cast(BinaryIO, RangeFile(fetch, len(content), block=2**15))
    assert len(probe_streams([Stream(stream, path.name, len(content))], sparing=True).layers) == 40
    assert fetched < len(content) * 2 / 3


def test_a_range_file_reads_as_the_bytes_it_stands_for() -> None:
    content = bytes(range(256)) * 40
    for block in (0, 100):
        file = RangeFile(lambda start, stop: content[start:stop], len(content), content[:50], block=block)
        for position, count in (
            (0, 10),
            (40, 30),
            (45, 500),
            (9000, 10_000),
            (10_240, 5),
            (20, 0),
            (400, 3),
            (402, 90),
        ):
            assert file.seek(position) == position
            assert file.read(count) == content[position : position + count]
        file.seek(-10, 2)
        assert file.read() == content[-10:] and file.tell() == len(content)
        buffer = bytearray(70)
        file.seek(30)
        assert file.readinto(buffer) == 70 and bytes(buffer) == content[30:100]
        with pytest.raises(ValueError, match="before the start"):
            file.seek(-1)


def test_what_a_stream_says_is_not_lost_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's reader may end with an error of its own that knows nothing of the stream's."""

    class Silent(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise SourceSilentError("The hub does not answer.")

    def load(file: BinaryIO, **_: object) -> None:
        with suppress(SourceSilentError):
            file.read(8)
        raise RuntimeError("unexpected EOF")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(SourceSilentError, match="does not answer"):
        open_pickled(Path(), Silent(), stream=True)


def test_a_shard_in_a_stream_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name alone: what lies where the program was started has nothing to do with it."""
    write("safetensors", tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    with pytest.raises(LoRAFormatError, match="folder or archive that holds them"):
        read_streams([Stream(BytesIO(content), "adapter_model-00001-of-00002.safetensors", len(content))])
    monkeypatch.chdir(tmp_path)
    index = {"weight_map": {"a": "adapter_model.safetensors", "b": "other.safetensors"}}
    (tmp_path / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("adapter_model.safetensors", "other.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert read_streams([Stream(BytesIO(content), "adapter_model.safetensors", len(content))]).layers
