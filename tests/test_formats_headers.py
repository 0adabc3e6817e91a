"""Damaged safetensors headers: `probe` and `read` agree to the last byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from safetensors.torch import save_file

from lol_core.errors import LoRAFormatError
from lol_core.formats import probe, read
from tests.test_formats_containers import check, entry, header_bytes, tensors

DAMAGED = {
    "too_small_for_its_shape": ({"a": entry(shape=[2, 3])}, 16, r"'a' of shape \(2, 3\) and dtype F32 takes 24 bytes"),
    "overlap": ({"a": entry(), "b": entry(data_offsets=[8, 24])}, 24, "'b' begins at byte 8.*overlaps"),
    "same_place": ({"a": entry(), "b": entry()}, 16, "overlaps"),
    "hole": ({"a": entry(), "b": entry(data_offsets=[20, 36])}, 36, "'b' begins at byte 20.*hole"),
    "hole_at_the_start": ({"a": entry(data_offsets=[4, 20])}, 20, "expected 0.*hole"),
    "trailing_bytes": ({"a": entry()}, 20, "something was appended"),
    "cut_off": ({"a": entry()}, 12, "cut off"),
    "no_such_dtype": ({"a": entry(dtype="F33")}, 16, "dtype 'F33'"),
    "dtype_a_number": ({"a": entry(dtype=7)}, 16, "dtype '7'"),
    "dtype_a_list": ({"a": entry(dtype=["F32"])}, 16, "lacks its shape, dtype"),
    "shape_of_texts": ({"a": entry(shape=["2", "2"])}, 16, "expected a list of whole numbers"),
    "shape_a_text": ({"a": entry(shape="22")}, 16, "expected a list of whole numbers"),
    "shape_of_fractions": ({"a": entry(shape=[2.0, 2])}, 16, "expected a list of whole numbers"),
    "shape_of_truths": ({"a": entry(shape=[True, 4])}, 16, "expected a list of whole numbers"),
    "negative_shape": ({"a": entry(shape=[-2, -2])}, 16, "expected a list of whole numbers"),
    "endless_shape": ({"a": entry(shape=[0, 2**63], data_offsets=[0, 0])}, 0, "more than any tensor"),
    "many_dimensions": ({"a": entry(shape=[1] * 100 + [4])}, 16, "more than any tensor"),
    "offsets_of_fractions": ({"a": entry(data_offsets=[0.0, 16.0])}, 16, "expected two whole numbers"),
    "three_offsets": ({"a": entry(data_offsets=[0, 8, 16])}, 16, "lacks its shape, dtype"),
    "an_entry_of_text": ({"a": "x"}, 16, "lacks its shape, dtype"),
    "metadata_a_list": ({"__metadata__": [1], "a": entry()}, 16, "metadata are a list"),
    "metadata_of_lists": ({"__metadata__": {"ss_tags": ["x"]}, "a": entry()}, 16, "hold a list under 'ss_tags'"),
    "metadata_of_numbers": ({"a": entry(), "__metadata__": {"alpha": 4}}, 16, "hold a number under 'alpha'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_every_byte_is_accounted_for(name: str, tmp_path: Path) -> None:
    header, size, reason = DAMAGED[name]
    (tmp_path / "x.safetensors").write_bytes(header_bytes(json.dumps(header), bytes(size)))
    for open_ in (probe, read):
        with pytest.raises(LoRAFormatError, match=reason):
            open_(tmp_path / "x.safetensors")


ONE = json.dumps(entry())


TWICE = (
    f'{{"a":{ONE},"a":{ONE}}}',
    f'{{"a":{ONE},"\\u0061":{ONE}}}',
    '{"a":{"dtype":"F32","shape":[4,1],"shape":[2,2],"data_offsets":[0,16]}}',
    '{"__metadata__":{"alpha":"1","alpha":"2"},"a":' + ONE + "}",
    '{"a":' + ONE + ',"__metadata__":{"alpha":"1","alpha":"2"}}',
    '{"__metadata__":{"x":"1"},"a":' + ONE + ',"__metadata__":{"x":"2"}}',
    '{"__metadata__":{},"a":' + ONE + ',"__metadata__":{"x":"2"}}',
    '{"a":' + ONE + ',"__metadata__":{},"__metadata__":{"x":"2"}}',
)


@pytest.mark.parametrize("header", TWICE)
def test_a_name_given_twice_is_refused(header: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(header_bytes(header, bytes(16)))
    with pytest.raises(LoRAFormatError, match="twice"):
        probe(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        '{"__metadata__":{"a":"b"},}',
        '{"__metadata__":{"a":"b"} "x":1}',
        '{"__metadata__":{"a":"\\ud800"},"x":1}',
        '{"__metadata__":' + "[" * 100_000,
        '{"a":' * 5000,
        '{"a":NaN}',
    ],
)
def test_a_header_that_is_no_json_is_refused(header: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(header_bytes(header, b""))
    with pytest.raises(LoRAFormatError, match="no valid JSON"):
        probe(tmp_path / "x.safetensors")


def test_metadata_may_stand_anywhere_and_hold_any_text(tmp_path: Path) -> None:
    """Also the very words that the quick search for names given twice counts."""
    odd = {"a": '"data_offsets":"shape"', "ünï": "\n😀", "data_offsets": "x", "shape": "", "dtype": "y"}
    path = tmp_path / "x.safetensors"
    save_file(tensors(), path, metadata=odd)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for ascii_, last in ((True, False), (False, True), (False, False)):
        if last:
            header["__metadata__"] = header.pop("__metadata__")
        raw = json.dumps(header, ensure_ascii=ascii_).encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])
        lora = read(path)
        check(lora)
        assert {key: lora.metadata[key] for key in odd} == odd
