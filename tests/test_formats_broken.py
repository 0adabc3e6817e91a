"""Files that must never take the program down: each is refused with what was found and what to do."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from benchmarks import fuzz_formats
from benchmarks.fuzz_formats import Tally, work
from benchmarks.fuzz_seeds import own_seeds
from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError
from lol_core.formats import probe, read
from tests.builders import random_lora, write_peft


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "two_bytes": (b"ab", "2 bytes"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
    "header_beyond_file": (struct.pack("<Q", 10_000) + b"{}", "announce a header of 10,000 bytes"),
    "absurd_header": (struct.pack("<Q", 2**62) + b"{}" * 10, "announce a header"),
    "no_json": (safetensors_bytes(b"not json"), "no valid JSON"),
    "no_object": (safetensors_bytes([1, 2]), "no JSON object"),
    "no_shape": (safetensors_bytes({"a.lora_A.weight": {"dtype": "F32"}}), "lacks its shape"),
    "truncated": (safetensors_bytes({"a.lora_A.weight": ENTRY}, b"\0" * 7), "cut off"),
    "duplicate": (
        safetensors_bytes(
            b'{"a":' + json.dumps(ENTRY).encode() + b',"a":' + json.dumps(ENTRY).encode() + b"}", b"\0" * 16
        ),
        "names 'a' twice",
    ),
    "not_utf8": (safetensors_bytes(b'{"\xff": 1}'), "no valid JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_safetensors(name: str, tmp_path: Path) -> None:
    content, reason = BROKEN[name]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(LoRAFormatError, match=reason):
        read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".bin", ".pt"])
@given(content=st.binary(max_size=300))
def test_no_bytes_raise_anything_else(suffix: str, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(LoRAFormatError):
        read(path)


@given(cut=st.integers(0, 2000), flip=st.integers(0, 400), bit=st.integers(0, 7))
def test_a_damaged_lora_is_read_or_refused(
    cut: int, flip: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    write_peft(folder, random_lora([("x", 6, 5, 2)]))
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[flip % len(content)] ^= 1 << bit
    path.write_bytes(bytes(content[: max(8, len(content) - cut // 4)]) if cut % 2 else bytes(content))
    with contextlib.suppress(LoRAFormatError):
        read(path)


def test_half_a_lora_says_which_half(tmp_path: Path) -> None:
    save_file({f"w_a_00{i}": torch.zeros(4, 8) for i in range(4)}, tmp_path / "x.safetensors")
    with pytest.raises(LoRAFormatError, match="Half a LoRA: 4 of 4 modules lack a factor.*no up"):
        read(tmp_path / "x.safetensors")
    tensors = {f"base_model.model.{m}.lora_{f}.weight": torch.zeros(2, 2) for m in "qv" for f in "AB"}
    del tensors["base_model.model.v.lora_A.weight"]
    save_file(tensors, tmp_path / "y.safetensors")
    with pytest.raises(LoRAFormatError, match="1 of 2 modules.*'v' has up but no down"):
        read(tmp_path / "y.safetensors")


def test_factors_that_do_not_multiply_are_shown(tmp_path: Path) -> None:
    save_file(
        {"base_model.model.q.lora_A.weight": torch.zeros(2, 5), "base_model.model.q.lora_B.weight": torch.zeros(5, 3)},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(LoRAFormatError, match=r"q: .*U \(5, 3\) and V \(5, 2\)"):
        read(tmp_path / "x.safetensors")


def test_a_broken_configuration_is_not_ignored(tmp_path: Path) -> None:
    write_peft(tmp_path, random_lora([("x", 6, 5, 2)]))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(LoRAFormatError, match=r"adapter_config.json beside the file cannot be read.*alpha"):
        read(tmp_path)


def test_an_npz_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(LoRAFormatError, match="never loaded"):
        read(tmp_path / "x.npz")


def test_a_folder_without_an_adapter_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(LoRAFormatError, match=r"adapter_model.safetensors"):
        read(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LoRAFormatError, match=r"gone\.safetensors: The file cannot be read: No such file"):
        read(tmp_path / "gone.safetensors")
    with pytest.raises(LoRAFormatError, match=r"gone\.safetensors: The file cannot be read"):
        probe(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
)
def test_every_float_dtype_is_kept_and_computed_with(dtype: torch.dtype, tmp_path: Path) -> None:
    lora = random_lora([("x", 6, 5, 2)])
    write_peft(tmp_path, lora, alpha=1, dtype=dtype)
    layer = read(tmp_path).layers[0]
    assert layer.U.dtype == layer.V.dtype == dtype and layer.scale == 0.5
    expected = 0.5 * lora.layers[0].U.to(dtype).double() @ lora.layers[0].V.to(dtype).double().T
    torch.testing.assert_close(layer.delta(torch.float64), expected)


def test_dtypes_may_be_mixed_in_one_file(tmp_path: Path) -> None:
    save_file(
        {
            "base_model.model.q.lora_A.weight": torch.ones(1, 3, dtype=torch.bfloat16),
            "base_model.model.q.lora_B.weight": torch.ones(2, 1, dtype=torch.float16),
        },
        tmp_path / "x.safetensors",
    )
    assert (read(tmp_path / "x.safetensors").layers[0].delta() == 1).all()


def test_the_fuzzer_finds_nothing_in_a_few_hundred_files(tmp_path: Path) -> None:
    tally = work(own_seeds(), Tally(number=1), 300, lambda index: None, folder=tmp_path)
    assert tally.findings == {} and tally.next == 300
    assert tally.outcomes["read"] > 30 and tally.outcomes["refused"] > 30


def test_the_fuzzer_sees_a_crash_a_disagreement_and_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each planted in its turn; the run goes on after each, and a hang is told from a crash."""
    seeds = own_seeds()

    def crash(path: Path) -> LoRA:
        raise ValueError("planted")

    def hang(path: Path) -> LoRA:
        while True:
            pass

    for planted, outcome in ((crash, "crash"), (lambda path: random_lora(), "disagreement")):
        monkeypatch.setattr(fuzz_formats, "probe", planted)
        tally = fuzz_formats.watched(seeds, Tally(number=1), 12)
        assert tally.outcomes[outcome] and tally.next == 12
    monkeypatch.setattr(fuzz_formats, "LIMIT", 0.2)
    monkeypatch.setattr(fuzz_formats, "probe", hang)
    tally = fuzz_formats.watched(seeds, Tally(number=1), 1)
    assert tally.outcomes == {"hang": 1} and tally.next == 1


ODD_FACTORS = {
    "one_dimension": {"q.lora_A.weight": (2,), "q.lora_B.weight": (4, 2)},
    "no_dimension": {"q.lora_A.weight": (), "q.lora_B.weight": (4, 2)},
    "six_dimensions": {"q.lora_A.weight": (2, 3, 1, 1, 1, 1), "q.lora_B.weight": (4, 2)},
    "flat_beside_a_mixer": {"q.lora_A.weight": (2,), "q.lora_B.weight": (4, 2), "q.lora_AB.weight": (2, 2)},
    "cube_of_a_hadamard_product": {
        "q.hada_w1_a": (4, 2, 1),
        "q.hada_w1_b": (2, 5),
        "q.hada_w2_a": (4, 2),
        "q.hada_w2_b": (2, 5),
    },
    "flat_kronecker_factor": {"q.lokr_w1": (2,), "q.lokr_w2": (2, 2)},
}


@pytest.mark.parametrize("name", ODD_FACTORS)
def test_factors_of_other_dimensions_are_refused(name: str, tmp_path: Path) -> None:
    save_file({key: torch.ones(shape) for key, shape in ODD_FACTORS[name].items()}, tmp_path / "x.safetensors")
    for open_ in (probe, read):
        with pytest.raises(LoRAFormatError, match="q: its .* has the shape .*; expected .* dimensions"):
            open_(tmp_path / "x.safetensors")


@pytest.mark.parametrize("size", [0, -1, 1.5, "auto", float("nan"), float("inf"), 10**12, None, [2]])
def test_a_pooling_that_cannot_be_is_refused(size: object, tmp_path: Path) -> None:
    write_peft(tmp_path, random_lora([("x", 6, 5, 2)]), use_qalora=True, qalora_group_size=size)
    for open_ in (probe, read):
        with pytest.raises(LoRAFormatError, match="qalora_group_size"):
            open_(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float32])
def test_blocks_of_any_types_are_put_together(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"q.lora_down.weight": torch.ones(4, 8), "q.lora_up.blocks.1.weight": torch.ones(2, 2).to(dtype)}
    save_file(tensors | {"q.lora_up.blocks.0.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    assert read(tmp_path / "x.safetensors").headers == probe(tmp_path / "x.safetensors").headers
    assert (read(tmp_path / "x.safetensors").layers[0].delta() == 2).all()


def test_blocks_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    tensors = {"q.lora_down.weight": torch.ones(4, 8), "q.lora_up.blocks.1.weight": torch.ones(2, 2, dtype=torch.int8)}
    save_file(tensors | {"q.lora_up.blocks.0.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    for open_ in (probe, read):
        with pytest.raises(LoRAFormatError, match="blocks of float32, int8: quantised"):
            open_(tmp_path / "x.safetensors")


PATTERNS = (
    "([a-z_.0-9]+)+!",
    "(a|a)*b",
    "((((a{100}){100}){100}){100})",
    "(a{1000}){1000}",
    "(" * 5000,
    "a" * 20_000,
    "[",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_that_takes_for_ever_does_not(pattern: str, tmp_path: Path) -> None:
    """Anyone may have written the configuration: it is read, or refused for its pattern, and soon."""
    write_peft(tmp_path, random_lora([("a" * 60 + ".layers.0.self_attn.q_proj", 6, 5, 2)]), alpha_pattern={pattern: 1})
    with contextlib.suppress(LoRAFormatError):
        assert probe(tmp_path).layers[0].scale == 1.0


def test_a_block_of_one_number_is_put_together_with_larger_ones(tmp_path: Path) -> None:
    tensors = {"q.lora_down.weight": torch.ones(3, 8), "q.lora_up.blocks.0.weight": torch.ones(1, 1)}
    save_file(tensors | {"q.lora_up.blocks.1.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    assert read(tmp_path / "x.safetensors").headers == probe(tmp_path / "x.safetensors").headers


@pytest.mark.parametrize("rank", [float("inf"), float("nan"), "inf"])
def test_a_configured_rank_that_is_not_finite_is_refused(rank: object, tmp_path: Path) -> None:
    tensors = {f"q.hada_{part}": torch.ones(2, 2) for part in ("w1_a", "w1_b", "w2_a", "w2_b")}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LOHA", "r": rank, "alpha": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for open_ in (probe, read):
        with pytest.raises(LoRAFormatError, match="rank in adapter_config.json is (inf|nan)"):
            open_(tmp_path)
