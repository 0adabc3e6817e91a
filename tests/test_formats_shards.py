"""Adapters in several files: one LoRA, never two, and a lone shard refused as such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lol_core.errors import LoRAFormatError
from lol_core.formats import probe, read
from tests.test_formats_containers import check, header_and_weights_agree, tensors


def spread(folder: Path, parts: int = 2, index: bool = True) -> list[Path]:
    """Shards that cut a module in two, as PEFT's own size limit does."""
    folder.mkdir(exist_ok=True)
    items = list(tensors().items())
    paths = [folder / f"adapter_model-{i + 1:05d}-of-{parts:05d}.safetensors" for i in range(parts)]
    weight_map: dict[str, str] = {}
    for i, path in enumerate(paths):
        own = items[i * 3 : (i + 1) * 3]
        save_file(dict(own), path)
        weight_map |= {key: path.name for key, _ in own}
    if index:
        (folder / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return paths


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_lora_and_not_two(index: bool, tmp_path: Path) -> None:
    first, second = spread(tmp_path, index=index)
    lora = read(first)
    check(lora)
    assert any("2 shards" in note for note in lora.notes)
    header_and_weights_agree(first)
    for open_ in (probe, read):
        with pytest.raises(LoRAFormatError, match=r"part 2 of 2 .*under adapter_model-00001-of-00002"):
            open_(second)
    if index:
        check(read(tmp_path))
        check(read(tmp_path / "adapter_model.safetensors.index.json"))


def test_shards_of_other_names_are_known_by_their_index(tmp_path: Path) -> None:
    items = list(tensors().items())
    save_file(dict(items[:1]), tmp_path / "a.safetensors")
    save_file(dict(items[1:]), tmp_path / "b.safetensors")
    weight_map = {key: "b.safetensors" if i else "a.safetensors" for i, (key, _) in enumerate(items)}
    (tmp_path / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check(read(tmp_path / "a.safetensors"))
    with pytest.raises(LoRAFormatError, match="part 2 of 2"):
        read(tmp_path / "b.safetensors")


def test_an_index_of_shards_with_impossible_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_model-00001-of-00002.safetensors").write_bytes(b"0" * 100)
    names = {"x.lora_A.weight": "adapter_model-00001-of-00002.safetensors", "x.lora_B.weight": "y" * 400}
    (tmp_path / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(LoRAFormatError, match="part 1 of 2"):
        probe(tmp_path / "adapter_model-00001-of-00002.safetensors")


def test_a_lone_shard_is_refused_as_one(tmp_path: Path) -> None:
    first, second = spread(tmp_path)
    second.unlink()
    with pytest.raises(
        LoRAFormatError, match=r"part 1 of 2.*adapter_model-00002-of-00002.safetensors, are not beside it"
    ):
        read(first)
    (tmp_path / "adapter_model.safetensors.index.json").unlink()
    with pytest.raises(LoRAFormatError, match="part 1 of 2"):
        read(first)


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    first, second = spread(tmp_path)
    save_file(load_file(first), second)
    with pytest.raises(LoRAFormatError, match="both hold"):
        read(first)
    save_file({"x": torch.zeros(1)}, second)
    with pytest.raises(LoRAFormatError, match="promises 1 tensors that none"):
        read(first)
    for content in ("[]", "{", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../../x"}}', '{"weight_map": {}}'):
        (tmp_path / "adapter_model.safetensors.index.json").write_text(content)
        with pytest.raises(LoRAFormatError, match=r"index.json cannot be read"):
            read(first)
    with pytest.raises(LoRAFormatError, match="Shard 3 of 2"):
        save_file(tensors(), tmp_path / "y-00003-of-00002.safetensors")
        read(tmp_path / "y-00003-of-00002.safetensors")
    save_file(tensors(), tmp_path / "y-00001-of-00001.safetensors")
    (tmp_path / "adapter_model.safetensors.index.json").unlink()
    check(read(tmp_path / "y-00001-of-00001.safetensors"))


def test_a_slice_of_a_tensor_parallel_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"module": tensors()}, tmp_path / "mp_rank_00_model_states.pt")
    check(read(tmp_path / "mp_rank_00_model_states.pt"))
    torch.save({"module": tensors()}, tmp_path / "mp_rank_01_model_states.pt")
    for rank in (0, 1):
        with pytest.raises(LoRAFormatError, match="tensor-parallel"):
            probe(tmp_path / f"mp_rank_0{rank}_model_states.pt")
