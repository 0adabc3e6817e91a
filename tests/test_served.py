"""A server opens what was named and nothing else of its machine, and says no path of it."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lol_core.collections.served import LEADS_OUT, Roots
from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import LoRAFormatError, ZooError
from tests.builders import MODULES, random_lora, write_peft, write_zoo

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shared` is named; `secret` beside it is not, and links, tables and archives in `shared` lead there."""
    top = tmp_path_factory.mktemp("machine").resolve()
    write_zoo(top / "shared" / "zoo", 4)
    write_peft(top / "secret", random_lora(MODULES, 9))
    (top / "secret" / "labels.csv").write_text("name,key\nlora000,s3cret\n")
    (top / "secret.safetensors").write_bytes((top / "secret" / WEIGHTS).read_bytes())
    links = top / "shared" / "links"
    write_peft(links / "own", random_lora(MODULES, 1))
    (links / "file.safetensors").symlink_to(top / "secret.safetensors")
    (links / "folder").symlink_to(top / "secret")
    (links / "labels.csv").symlink_to(top / "secret" / "labels.csv")
    (links / "inside.safetensors").symlink_to(Path("..") / "zoo" / "lora002" / WEIGHTS)
    (links / "own" / "adapter_config.json").unlink()
    (links / "own" / "adapter_config.json").symlink_to(top / "secret" / "adapter_config.json")
    (links / "loop").symlink_to("loop")
    (links / "loop.safetensors").symlink_to("loop.safetensors")
    archives = top / "shared" / "archives"
    archives.mkdir()
    weights = (top / "shared" / "zoo" / "lora001" / WEIGHTS).read_bytes()
    with zipfile.ZipFile(archives / "a.zip", "w") as packed:
        link = zipfile.ZipInfo("link.safetensors")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        packed.writestr(link, str(top / "secret.safetensors"))
        for name in ("../../secret.safetensors", str(top / "secret.safetensors"), "good.safetensors"):
            packed.writestr(name, weights)
    with tarfile.open(archives / "a.tar", "w") as rolled:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"link{kind.decode()}.safetensors")
            info.type, info.linkname = kind, str(top / "secret.safetensors")
            rolled.addfile(info)
        for name in ("../../secret.safetensors", "good.safetensors"):
            info = tarfile.TarInfo(name)
            info.size = len(weights)
            rolled.addfile(info, io.BytesIO(weights))
    return top


@pytest.fixture(scope="module")
def roots(machine: Path) -> Roots:
    return Roots.named([str(machine / "shared"), f"faces={machine / 'shared' / 'zoo'}"])


def words(source: Source) -> str:
    """Everything that pages show of a collection."""
    refused = [f"{entry.path} {entry.reason}" for entry in source.refused]
    said = [source.name, source.address, str(source.labels_path), str(source.labels_problem), *source.remarks]
    return "\n".join([*said, *refused, *source.ids, source.table().to_csv(), source.labels.to_csv()])


@pytest.mark.parametrize("address", ["faces", "zoo://faces", "zoo://shared/zoo", "shared/zoo/"])
def test_a_named_place_is_the_same_collection_as_its_folder(address: str, machine: Path, roots: Roots) -> None:
    source, folder = roots.open(address), Zoo.open(machine / "shared" / "zoo")
    assert source.fingerprint == folder.fingerprint and source.labels_digest == folder.labels_digest
    assert source.load(source.ids[0]).layers[0].U.equal(folder.load(folder.ids[0]).layers[0].U)
    assert str(machine) not in words(source) and source.address.startswith("zoo://")
    assert roots.open(source.address).fingerprint == source.fingerprint


def test_places_are_called_by_the_names_that_they_are_given(machine: Path) -> None:
    words = [f"{machine}/shared/", f"shared={machine}/secret", f"a=b={machine}/c=d", f"{machine}/e=f", "/"]
    named = Roots.named(words).places
    assert list(named) == ["shared", "shared-2", "a", "e=f", "root"]
    assert [str(path) for path in named.values()] == [
        *(f"{machine}/{below}" for below in ("shared", "secret")),
        str(Path(f"b={machine}/c=d").resolve()),
        f"{machine}/e=f",
        "/",
    ]
    assert Roots.named([str(machine / "none")]).places, "a disk that is plugged in later"


PARTS = ("..", ".", "", "shared", "faces", "zoo", "links", "folder", "secret", "lora000", "labels.csv", "\0", "~")


@given(
    scheme=st.sampled_from(("", "zoo://", "file://", "local://", "/", "//", "zip://a.zip::file://", "s3://")),
    parts=st.lists(st.sampled_from(PARTS), max_size=6),
    absolute=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_no_address_leads_out_of_what_is_named(
    scheme: str, parts: list[str], absolute: bool, machine: Path, roots: Roots
) -> None:
    address = scheme + (f"{machine}/" if absolute else "") + "/".join(parts)
    try:
        place = roots.find(address)
    except ZooError:
        return
    assert place == place.resolve() and place.is_relative_to(machine / "shared")
    assert not absolute and scheme in ("", "zoo://")


@pytest.mark.parametrize("below", ["", "/labels.csv", "/none"])
def test_what_is_not_there_and_what_may_not_be_seen_are_told_alike(below: str, machine: Path, roots: Roots) -> None:
    answers = set()
    for address in (
        f"{machine}/secret",
        "shared/../secret",
        "shared/links/folder",
        f"file://{machine}/secret",
        "other",
        "shared/links/loop",
        "shared/" + 300 * "x",
        "shared/\ud800",
    ):
        with pytest.raises(ZooError) as caught:
            roots.open(address + below)
        answers.add(str(caught.value).replace(address + below, "it"))
        with pytest.raises(ZooError):
            roots.open("faces", labels=address + below)
    assert len(answers) == 1


@pytest.mark.parametrize("address", ["https://example.org/a.zip", "s3://a/b", "memory://a", "zip://a.zip"])
def test_of_other_machines_only_the_hub_is_opened(address: str, roots: Roots) -> None:
    with pytest.raises(ZooError, match="not among what is served"):
        roots.open(address)
    for page in ("hf://../a", "https://huggingface.co/../a"):
        with pytest.raises(ZooError):
            roots.open(page)


def test_links_that_lead_out_are_refused_with_what_they_would_bring(machine: Path, roots: Roots) -> None:
    source = roots.open("shared/links")
    assert source.ids == ["inside.safetensors"], "a link within the place is followed"
    refused = {entry.path: str(entry.reason) for entry in source.refused}
    assert refused["file.safetensors"] == LEADS_OUT
    assert all(entry.size < 0 for entry in source.refused if entry.reason == LEADS_OUT), "not even how large it is"
    assert LEADS_OUT in refused[f"own/{WEIGHTS}"], "its settings, without which its scale is not known"
    assert source.labels.empty and "s3cret" not in words(source) and str(machine) not in words(source)
    assert not any("folder" in id for id in [*source.ids, *refused])


def test_a_file_that_becomes_a_link_is_not_read_through_it(machine: Path, roots: Roots) -> None:
    place, secret = machine / "shared" / "later", machine / "secret.safetensors"
    write_peft(place, random_lora(MODULES, 3))
    source, file = roots.open("shared/later"), place / WEIGHTS
    status = file.stat()
    assert secret.stat().st_size == status.st_size
    os.utime(secret, ns=(status.st_atime_ns, status.st_mtime_ns))
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(LoRAFormatError, match="leads out"):
        source.load(WEIGHTS)


def test_a_folder_that_cannot_be_read_is_refused_and_the_listing_can_be_stopped(
    machine: Path, roots: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, scandir = machine / "shared" / "zoo" / "lora001", os.scandir

    def refusing(path: str) -> object:
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    source = roots.open("faces")
    (refused,) = source.refused
    assert len(source) == 3 and refused.path == "lora001/" and "Permission denied" in str(refused.reason)
    assert str(machine) not in words(source)
    with pytest.raises(Stopped, match="Nothing was read"):
        roots.open("faces", reporter=Reporter(stop=lambda: True))


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_archives_bring_nothing_from_outside_themselves(name: str, machine: Path, roots: Roots) -> None:
    source = roots.open(f"shared/archives/{name}")
    assert source.ids == ["good.safetensors"] and source.address == f"zoo://shared/archives/{name}"
    assert len(source.refused) == 3
    said = words(source)
    assert str(machine / "shared") not in said and "leads out of the archive" in said and "A link" in said


def test_a_damaged_archive_and_table_are_called_by_their_addresses(machine: Path, roots: Roots) -> None:
    (machine / "shared" / "bad.zip").write_bytes(b"PK")
    (machine / "shared" / "bad.csv").write_text("name\n")
    for address, labels in (("shared/bad.zip", None), ("faces", "zoo://shared/bad.csv")):
        with pytest.raises(ZooError) as caught:
            roots.open(address, labels)
        assert "bad." in str(caught.value) and str(machine) not in str(caught.value)


def test_a_file_that_is_no_archive_is_refused_for_what_it_is(machine: Path, roots: Roots) -> None:
    with pytest.raises(ZooError, match=f"{WEIGHTS}: neither a folder nor an archive") as caught:
        roots.open(f"shared/zoo/lora000/{WEIGHTS}")
    assert str(machine) not in str(caught.value)
