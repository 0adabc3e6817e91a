"""Archives open where they lie as the folder that was packed does, and nothing in one can do harm."""

from __future__ import annotations

import io
import json
import operator
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections import archive
from lol_core.collections.archive import list_tar
from lol_core.collections.blob import LocalFile
from lol_core.collections.cache import cache_folder
from lol_core.collections.files import FileSource
from lol_core.collections.opening import open_source
from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import LoRAFormatError, ZooError
from lol_core.learning.answers import Answers
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.executor import Processes
from lol_core.learning.training import plan, train
from tests.builders import MODULES, random_lora, write_peft, write_zoo
from tests.test_formats_shards import check, spread


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labels, a picture, a .bin, an .npz and a broken file."""
    folder = tmp_path_factory.mktemp("packed") / "zoo"
    write_zoo(folder, 6)
    tensors = {
        f"base_model.model.{y.name}.lora_{side}.weight": factor.float().contiguous()
        for y in random_lora(MODULES, 7).layers
        for side, factor in (("A", y.V.T), ("B", y.U))
    }
    torch.save(tensors, folder / "old.bin")
    arrays: dict[str, Any] = {key: tensor.numpy() for key, tensor in tensors.items()}
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{" + b"x" * 300)
    Image.new("RGB", (4, 4)).save(folder / "old.png")
    return folder


def pack(folder: Path, path: Path, method: int = zipfile.ZIP_DEFLATED, top: str = "") -> Path:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", method) as opened:
            for file in files:
                opened.write(file, top + file.relative_to(folder).as_posix())
    else:
        mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}[path.suffix]
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]  # the mode is a parameter
            for file in files:
                tar.add(file, top + file.relative_to(folder).as_posix())
    return path


def assert_same(first: LoRA, second: LoRA) -> None:
    assert [y.name for y in first.layers] == [y.name for y in second.layers]
    for y, z in zip(first.layers, second.layers, strict=True):
        assert torch.equal(y.U, z.U) and torch.equal(y.V, z.V) and y.scale == z.scale


def test_a_compressed_tar_elsewhere_is_to_be_downloaded(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"^z\.tar\.gz: a compressed tar .* Download it"):
        open_source(pack(packed, tmp_path / "z.tar.gz").as_uri())


@pytest.mark.parametrize("name", ["z.zip", "stored.zip", "z.tar", "z.tar.gz", "z.tgz", "z.tar.xz", "z.tar.bz2"])
def test_an_archive_is_the_folder_that_was_packed(packed: Path, tmp_path: Path, name: str) -> None:
    method = zipfile.ZIP_STORED if name == "stored.zip" else zipfile.ZIP_DEFLATED
    path = pack(packed, tmp_path / name, method, top="zoo/")
    before = sorted(tmp_path.iterdir())
    source, zoo = open_source(path), Zoo.open(packed)
    assert source.ids == zoo.ids and source.address == str(path)
    assert [(e.path, e.reason) for e in source.refused] == [(e.path, e.reason) for e in zoo.refused]
    pd.testing.assert_frame_equal(source.labels, zoo.labels)
    for ours, theirs in zip(source.entries, zoo.entries, strict=True):
        assert (ours.headers, ours.scales, ours.size) == (theirs.headers, theirs.scales, theirs.size)
    for id in zoo.ids:
        assert_same(source.load(id), zoo.load(id))
    preview = source.preview("old.bin")
    assert preview is not None and preview.read_bytes() == (packed / "old.png").read_bytes()
    assert sorted(tmp_path.iterdir()) == before, "nothing is unpacked beside the archive"


def test_what_is_not_compressed_has_the_identity_of_the_folder(packed: Path, tmp_path: Path) -> None:
    zoo = Zoo.open(packed)
    for name in ("z.zip", "z.tar", "z.tar.gz"):
        assert open_source(pack(packed, tmp_path / name, zipfile.ZIP_STORED)).fingerprint == zoo.fingerprint
    deflated = open_source(pack(packed, tmp_path / "deflated.zip"))
    assert len({entry.digest for entry in deflated.entries}) == len(deflated)


def test_a_model_trained_on_a_folder_predicts_its_archive(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 40)
    config = TrainingConfig("dense", epochs=1)
    zoo, source = Zoo.open(tmp_path / "zoo"), open_source(pack(tmp_path / "zoo", tmp_path / "zoo.zip"))
    train(
        source,
        plan(source, ["size"], config),
        config,
        tmp_path / "model",
    )
    predictions = [Answers.of(Checkpoint.load(tmp_path / "model"), s).values for s in (zoo, source)]
    pd.testing.assert_frame_equal(predictions[0], predictions[1])


def test_readers_are_sent_to_other_processes(packed: Path, tmp_path: Path) -> None:
    source = open_source(pack(packed, tmp_path / "z.zip"))
    ((_, lora),) = Processes(1).map(operator.call, [source.reader("old.bin")])
    assert isinstance(lora, LoRA)
    assert_same(lora, source.load("old.bin"))


def lora_bytes(seed: int = 0) -> bytes:
    lora = random_lora(MODULES, seed)
    sides = [(f"{y.name}.lora_{side}.weight", f) for y in lora.layers for side, f in (("A", y.V.T), ("B", y.U))]
    return save({name: factor.float().contiguous() for name, factor in sides})


def reasons(source: Source) -> dict[str, str]:
    return {entry.path: entry.reason or "" for entry in source.refused}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_lead_out_or_come_twice_are_refused_and_the_rest_opens(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as opened:
        for name in ("../up.safetensors", "/abs.safetensors", "a/../../b.safetensors", "C:\\win.safetensors"):
            opened.writestr(name, lora_bytes())
        for name in ("twice.safetensors", "twice.safetensors", "./twice.safetensors", "good.safetensors"):
            opened.writestr(name, lora_bytes())
        opened.writestr("__MACOSX/._good.safetensors", b"attributes")
    source = open_source(tmp_path / "z.zip")
    assert source.ids == ["good.safetensors"]
    assert len(source.refused) == 5
    assert "more than once" in reasons(source).pop("twice.safetensors")
    assert sum("leads out" in reason for reason in reasons(source).values()) == 4
    with tarfile.open(tmp_path / "z.tar", "w") as tar:
        for name in ("../up.safetensors", "/abs.safetensors", "good.safetensors"):
            info = tarfile.TarInfo(name)
            info.size = len(lora_bytes())
            tar.addfile(info, io.BytesIO(lora_bytes()))
        for name, kind in (("soft.safetensors", tarfile.SYMTYPE), ("hard.safetensors", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    source = open_source(tmp_path / "z.tar")
    assert source.ids == ["good.safetensors"] and len(source.refused) == 4
    assert sum("link" in reason for reason in reasons(source).values()) == 2


def test_a_name_in_utf_8_that_no_flag_marks_is_read_as_it_was_written(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as opened:
        for name in ("aa.safetensors", "bx.safetensors"):
            opened.writestr(name, lora_bytes())
        opened.writestr("labels.csv", "file,score\né.safetensors,2\n")
    content = (tmp_path / "z.zip").read_bytes().replace(b"aa.safetensors", "é.safetensors".encode())
    (tmp_path / "z.zip").write_bytes(content.replace(b"bx.", b"\x82x."))  # é in code page 437
    source = open_source(tmp_path / "z.zip")
    assert source.ids == ["é.safetensors", "éx.safetensors"] and source.labels["score"].tolist()[:1] == [2]
    assert source.load("é.safetensors").layers


def marked_encrypted(path: Path, name: bytes) -> None:
    """Set the flag of encryption in both headers of a member."""
    content = bytearray(path.read_bytes())
    for signature, flags, names in ((b"PK\3\4", 6, 30), (b"PK\1\2", 8, 46)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            if content[at + names : at + names + len(name)] == name:
                content[at + flags] |= 1
    path.write_bytes(content)


def test_an_encrypted_member_is_refused_and_so_is_the_lora_whose_alpha_it_holds(tmp_path: Path) -> None:
    write_peft(tmp_path / "zoo" / "a", random_lora(MODULES, 0))
    write_peft(tmp_path / "zoo" / "b", random_lora(MODULES, 1))
    write_peft(tmp_path / "zoo" / "c", random_lora(MODULES, 2))
    path = pack(tmp_path / "zoo", tmp_path / "z.zip")
    marked_encrypted(path, b"a/adapter_model.safetensors")
    marked_encrypted(path, b"b/adapter_config.json")
    source = open_source(path)
    assert source.ids == ["c/adapter_model.safetensors"]
    assert all("encrypted" in reason for reason in reasons(source).values()) and len(source.refused) == 2
    with pytest.raises(LoRAFormatError, match="encrypted"):
        source.load("b/adapter_model.safetensors")


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "HARMLESS_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("zeros.bin", bytes(5_000_000))
        opened.writestr("good.safetensors", lora_bytes())
    source = open_source(tmp_path / "z.zip")
    assert source.ids == ["good.safetensors"] and "declares 5,000,000 bytes" in reasons(source)["zeros.bin"]
    with tarfile.open(tmp_path / "z.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("zeros.bin")
        info.size = 5_000_000
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(ZooError, match="unpacks to more than"):
        open_source(tmp_path / "z.tar.gz")
    assert not list((cache_folder() / "archives").iterdir())


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.bin", b"\x80\x02" + bytes(1000))
        opened.writestr("b.safetensors", lora_bytes())
    content = bytearray((tmp_path / "z.zip").read_bytes())
    at = content.find(b"PK\1\2")
    content[at + 24 : at + 28] = struct.pack("<I", 900_000)
    (tmp_path / "z.zip").write_bytes(content)
    source = open_source(tmp_path / "z.zip")
    assert source.ids == ["b.safetensors"] and "cannot be unpacked" in reasons(source)["a.bin"]


def test_an_archive_that_is_cut_off_shows_what_is_whole_or_says_why(packed: Path, tmp_path: Path) -> None:
    tar = pack(packed, tmp_path / "z.tar")
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    source = open_source(tar)
    assert 0 < len(source) < len(Zoo.open(packed))
    with tarfile.open(fileobj=io.BytesIO(whole)) as opened:
        second = opened.getmembers()[1].offset
    for damaged in (whole[:second], whole[: second + 100], whole[:second] + b"x" * 512 + whole[second + 512 :]):
        tar.write_bytes(damaged)
        assert any(
            "the mark of its end is not there" in remark for remark in list_tar(LocalFile.of(tar), "z.tar").remarks
        )
    tar.write_bytes(whole)
    assert list_tar(LocalFile.of(tar), "z.tar").remarks == ()
    for name in ("z.zip", "z.tar.gz"):
        path = pack(packed, tmp_path / name)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ZooError, match=r"damaged or cut off"):
            open_source(path)
    (tmp_path / "text.zip").write_text("no archive at all")
    with pytest.raises(ZooError, match="cannot be opened"):
        open_source(tmp_path / "text.zip")
    with pytest.raises(ZooError, match="Check the path"):
        open_source(tmp_path / "nowhere.zip")


def test_a_damaged_member_costs_itself_alone(packed: Path, tmp_path: Path) -> None:
    path = pack(packed, tmp_path / "z.zip")
    with zipfile.ZipFile(path) as opened:
        info = opened.getinfo("lora002/adapter_model.safetensors")
    content = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename)
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)
    source = open_source(path)
    assert info.filename in reasons(source) and len(source) == len(Zoo.open(packed)) - 1


def test_an_archive_that_changes_says_so(packed: Path, tmp_path: Path) -> None:
    path = pack(packed, tmp_path / "z.zip")
    source = open_source(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(LoRAFormatError, match=r"old\.bin: z\.zip has changed"):
        source.load("old.bin")


def test_a_known_archive_is_not_read_again(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(packed, tmp_path / "z.zip")
    first = open_source(path)
    monkeypatch.setattr("lol_core.collections.files.probe_streams", None)
    again = open_source(path)
    assert again.ids == first.ids and again.fingerprint == first.fingerprint


@pytest.mark.parametrize("name", ["z.zip", "z.tar"])
def test_shards_in_an_archive_are_one_lora(tmp_path: Path, name: str) -> None:
    first, second = spread(tmp_path / "packed")
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 4)}, tmp_path / "packed" / "y-00001-of-00002.bin")
    source, folder = open_source(pack(tmp_path / "packed", tmp_path / name)), Zoo.open(tmp_path / "packed")
    assert source.ids == [first.name] == folder.ids
    check(source.load(first.name))
    check(source.reader(first.name)())
    (entry,) = source.entries
    assert entry.size == first.stat().st_size + second.stat().st_size
    reasons = {refused.path: refused.reason or "" for refused in source.refused}
    assert "part 2 of 2" in reasons[second.name] and "not beside it" in reasons["y-00001-of-00002.bin"]


def test_a_header_is_read_without_unpacking_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_peft(tmp_path / "packed" / "large", random_lora((("layer.0.attention.self.key", 2000, 2000, 64),), 0))
    path, read = pack(tmp_path / "packed", tmp_path / "z.zip"), list[int]()
    part_of = archive.part_of

    def counted(whole: Any, start: int, size: int) -> Any:
        part = part_of(whole, start, size)
        plain = part.read

        def counting(count: int = -1) -> bytes:
            data = plain(count)
            read.append(len(data))
            return data

        part.read = counting  # type: ignore[method-assign]  # reads are counted on this one file
        return part

    monkeypatch.setattr(archive, "part_of", counted)
    assert len(open_source(path)) == 1
    assert 0 < sum(read) < path.stat().st_size / 4


def test_what_is_said_of_an_archive_is_kept_with_its_listing(packed: Path, tmp_path: Path) -> None:
    blob = LocalFile.of(pack(packed, tmp_path / "z.tar"))
    listing = replace(archive.list_tar(blob, "z.tar"), remarks=("It is damaged.",))
    again = archive.listing_from_json(archive.listing_to_json(blob.identity, listing), blob)
    assert again == listing


def test_unpacking_stops_when_it_should_and_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    path = pack(packed, tmp_path / "z.tar.gz")
    with pytest.raises(Stopped):
        open_source(path, reporter=Reporter(stop=lambda: True))
    assert not list((cache_folder() / "archives").iterdir())


def test_of_an_archive_that_changed_the_older_copy_goes(packed: Path, tmp_path: Path) -> None:
    path = pack(packed, tmp_path / "z.tar.gz")
    assert len(open_source(path)) == len(open_source(path))
    (tmp_path / "more").mkdir()
    write_peft(tmp_path / "more" / "new", random_lora(MODULES, 9))
    pack(tmp_path / "more", path)
    assert open_source(path).ids == ["adapter_model.safetensors"]
    assert len(list((cache_folder() / "archives").iterdir())) == 1


def test_an_archive_that_is_gone_says_so(packed: Path, tmp_path: Path) -> None:
    path = pack(packed, tmp_path / "z.zip")
    source = open_source(path)
    source.check()
    path.unlink()
    with pytest.raises(ZooError, match="has gone"):
        source.check()
    with pytest.raises(LoRAFormatError, match=r"old\.bin: It cannot be read: No such file"):
        source.load("old.bin")


def test_a_folder_called_as_an_archive_is_a_folder(tmp_path: Path) -> None:
    write_zoo(tmp_path / "odd.zip", 3)
    assert not isinstance(open_source(tmp_path / "odd.zip"), FileSource)


def test_commands_take_an_archive(packed: Path, tmp_path: Path) -> None:
    path = pack(packed, tmp_path / "z.zip")
    result = CliRunner().invoke(app, ["scan", str(path), "--json"])
    found = json.loads(result.stdout)
    assert found["folder"] == str(path) and [lora["path"] for lora in found["loaded"]] == Zoo.open(packed).ids
    assert [entry["path"] for entry in found["refused"]] == ["broken.safetensors"]
