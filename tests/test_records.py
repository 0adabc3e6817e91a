"""PyTorch's archives read record by record: the numbers that PyTorch reads, and its pickle once for many files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lol_core.errors import LoRAFormatError
from lol_core.formats import probe, read
from lol_core.formats.container import pickled

PREFIX = "base_model.model"


def save(path: Path, seed: int) -> Path:
    """Factors that lie in memory in every way: side by side in one storage, turned, within a larger one."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, 3, 8, generator=generator)
    pairs = {
        "q": (both[0], torch.randn(3, 6, generator=generator).mT),
        "k": (both[1], torch.randn(9, 4, generator=generator)[2:8, :3]),
        "v": (torch.randn(3, 8, generator=generator).bfloat16(), torch.randn(6, 3, generator=generator).bfloat16()),
    }
    content: dict[str, Tensor] = {}
    for name, (down, up) in pairs.items():
        content |= {f"{PREFIX}.{name}.lora_A.weight": down, f"{PREFIX}.{name}.lora_B.weight": up}
        content[f"{PREFIX}.{name}.alpha"] = torch.tensor(float(seed))
    torch.save({"lora": content, "epoch": seed % 2}, path)
    return path


def outcome(path: Path) -> str:
    """Of one text where the numbers are the same, NaN among them."""
    try:
        lora, probed = read(path), probe(path)
    except LoRAFormatError as error:
        return str(error)
    assert lora.headers == probed.headers
    layers = [(y.name, y.scale, y.dtype, y.U.stride(), y.V.stride(), y.U.tolist(), y.V.tolist()) for y in lora.layers]
    return repr((layers, lora.notes))


def by_pytorch(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(pickled, "open_records", lambda *_: None)
        return outcome(path)


def test_files_of_one_structure_are_unpickled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (save(tmp_path / f"{seed}.pt", seed) for seed in (2, 4))
    expected = by_pytorch(second, monkeypatch)
    assert outcome(first) != expected

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch, "load", refuse)
    assert outcome(second) == expected


Change = Callable[[str, bytes], bytes | None]


def rewritten(path: Path, change: Change, compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with its members as `change` makes them of their names and content, without those it makes None."""
    target = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            content = change(info.filename.partition("/")[2], old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: content,
        lambda name, content: b"big" if name == "byteorder" else content,
        lambda name, content: None if name == "byteorder" else content,
        lambda name, content: None if name == "data/1" else content,
        lambda name, content: content[:-4] if name == "data/1" else content,
        lambda name, content: content + bytes(4) if name == "data/1" else content,
        lambda name, content: content[:-9] if name == "data.pkl" else content,
    ],
    ids=["aligned otherwise", "big-endian", "no byte order", "no record", "short", "long", "cut pickle"],
)
@pytest.mark.parametrize("known", [False, True])
def test_what_is_out_of_the_ordinary_is_read_as_pytorch_reads_it(
    change: Change, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the pickle is known already from a file that is sound."""
    sound = save(tmp_path / "sound.pt", 6)
    if known:
        read(sound)
    path = rewritten(sound, change)
    assert outcome(path) == by_pytorch(path, monkeypatch)


def test_a_compressed_archive_holds_the_same_numbers(tmp_path: Path) -> None:
    """PyTorch maps it into memory as if it were not compressed, where that is asked for."""
    sound = save(tmp_path / "sound.pt", 6)
    assert outcome(rewritten(sound, lambda _, content: content, zipfile.ZIP_DEFLATED)) == outcome(sound)
