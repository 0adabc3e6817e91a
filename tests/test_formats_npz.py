"""Files of NumPy arrays: declared sizes, byte orders, damage."""

from __future__ import annotations

import io
import zipfile
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from lol_core.errors import LoRAFormatError
from lol_core.formats import probe, read
from tests.test_formats_containers import check, header_and_weights_agree, npy, npz, tensors


def test_a_deflate_bomb_is_refused_by_its_declared_sizes(tmp_path: Path) -> None:
    zeros = npy(np.zeros(2**20, dtype=np.float32))
    npz(tmp_path / "x.npz", {f"{i}.npy": zeros for i in range(70)}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "x.npz").stat().st_size < 2**20
    with pytest.raises(LoRAFormatError, match=r"declares 293,\d+,\d+ bytes.*not unpacked"):
        probe(tmp_path / "x.npz")
    npz(
        tmp_path / "y.pt",
        {"archive/data.pkl": zeros} | {f"archive/{i}": zeros for i in range(70)},
        zipfile.ZIP_DEFLATED,
    )
    with pytest.raises(LoRAFormatError, match="not unpacked"):
        probe(tmp_path / "y.pt")


def test_a_damaged_npz_is_refused_by_probe_and_read(tmp_path: Path) -> None:
    array = npy(np.arange(64, dtype=np.float32).reshape(8, 8))
    npz(tmp_path / "short.npz", {"a.npy": array[:-4]})
    npz(tmp_path / "long.npz", {"a.npy": array + b"1234"})
    npz(tmp_path / "crc.npz", {"a.npy": array})
    content = bytearray((tmp_path / "crc.npz").read_bytes())
    content[200] ^= 1
    (tmp_path / "crc.npz").write_bytes(content)
    npz(tmp_path / "complex.npz", {"a.npy": npy(np.zeros((2, 2), dtype=complex))})
    npz(tmp_path / "text.npz", {"a.npy": npy(np.array(["x"]))})
    for name, reason in (
        ("short", "takes 256"),
        ("long", "found 260"),
        ("crc", "CRC"),
        ("complex", "dtype"),
        ("text", "dtype"),
    ):
        for open_ in (probe, read):
            with pytest.raises(LoRAFormatError, match=reason):
                open_(tmp_path / f"{name}.npz")


def test_npz_arrays_of_other_byte_order_and_layout_are_read(tmp_path: Path) -> None:
    arrays = {key: tensor.numpy() for key, tensor in tensors().items()}
    members = {f"{key}.npy": npy(np.asfortranarray(array.astype(">f4"))) for key, array in arrays.items()}
    npz(tmp_path / "x.npz", members, zipfile.ZIP_DEFLATED)
    check(read(tmp_path / "x.npz"))
    header_and_weights_agree(tmp_path / "x.npz")


def test_npz_arrays_with_headers_of_a_later_version_are_read(tmp_path: Path) -> None:
    members = {}
    for (key, tensor), version in zip(tensors().items(), cycle([(1, 0), (2, 0), (3, 0)]), strict=False):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, tensor.numpy(), version)
        members[f"{key}.npy"] = buffer.getvalue()
    npz(tmp_path / "x.npz", members)
    check(read(tmp_path / "x.npz"))
    header_and_weights_agree(tmp_path / "x.npz")
