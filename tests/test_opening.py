"""From an address to a collection."""

import zipfile
from pathlib import Path

import pytest

from lol_core.collections.opening import is_collection, open_source
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import ZooError
from tests.builders import write_zoo


def test_a_path_opens_the_folder_there_and_the_source_knows_its_address(synthetic_folder: Path) -> None:
    source = open_source(synthetic_folder)
    assert len(source) > 0
    assert open_source(source.address).ids == source.ids


def test_a_stopped_reporter_ends_the_opening(synthetic_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        open_source(synthetic_folder, cache=tmp_path, reporter=Reporter(stop=lambda: True))


def test_a_place_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ZooError):
        open_source(tmp_path / "nowhere")
    with pytest.raises(ZooError, match="No address"):
        open_source("")  # of a variable of the shell that is not set, not the folder that one is in


@pytest.mark.parametrize("pattern", ["lora00[02]", "lora00[02]/adapter_model.safetensors", "**/*0[02]/*.safe*"])
def test_a_pattern_is_the_collection_of_what_it_matches(pattern: str, tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 4)
    zoo, source = Zoo.open(tmp_path / "zoo"), open_source(tmp_path / "zoo" / pattern)
    assert source.ids == [zoo.ids[0], zoo.ids[2]] and is_collection(source.address)
    assert [entry.digest for entry in source.entries] == [zoo.by_id[id].digest for id in source.ids]
    assert source.load(source.ids[1]).layers[0].scale == zoo.load(zoo.ids[2]).layers[0].scale
    assert source.labels.equals(zoo.labels.loc[source.ids])
    source.check()
    assert open_source(source.address).fingerprint == source.fingerprint


def test_a_pattern_that_matches_nothing_says_so_and_a_name_that_looks_like_one_is_a_name(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo [1]", 2)
    assert len(open_source(tmp_path / "zoo [1]")) == 2
    assert open_source(tmp_path / "zoo [1]" / "*0").ids == ["lora000/adapter_model.safetensors"]
    with pytest.raises(ZooError, match="nothing matches"):
        open_source(tmp_path / "zoo [2]" / "*")


def test_a_file_is_the_collection_of_its_one_lora(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 2)
    zoo = Zoo.open(tmp_path / "zoo")
    path = zoo.path(zoo.ids[1])
    source = open_source(path)
    assert source.ids == [path.name] and source.labels.empty and not is_collection(str(path))
    assert source.load(path.name).layers[0].scale == zoo.load(zoo.ids[1]).layers[0].scale, "by what lies beside it"


def test_archives_in_a_collection_are_named_and_not_looked_into(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 1)
    with zipfile.ZipFile(tmp_path / "zoo" / "more.ZIP", "w") as archive:
        archive.writestr("inner.tar.gz", b"")
    (tmp_path / "zoo" / "linked.zip").symlink_to("more.ZIP")
    for place, name in ((tmp_path / "zoo", "more.ZIP"), (tmp_path / "zoo" / "more.ZIP", "inner.tar.gz")):
        (refused,) = open_source(place).refused
        assert refused.path == name and "open it by its own address" in (refused.reason or "")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("zip://a::b.zip", "Open b.zip itself"),
        ("https://[example.org/b.zip", "is no URL"),
        ("~nobody of that name/loras", "not a folder"),
        ("~nobody of that name/*", "nothing matches"),
        ("~nobody of that name/a.zip", "cannot be read"),
        (300 * "a", "not a folder"),
        ("a\0b.zip", "not a folder"),
        (__file__, "no folder, no archive"),
        ("hf:/someone/adapters", "write hf://someone/adapters"),
        ("hf/someone/adapters", "write hf://someone/adapters"),
        ("huggingface.co/someone/adapters/", "write hf://someone/adapters"),
        ("someone/adapters", "write hf://someone/adapters"),
        ("HF://some--one/adapters", "no name on the hub"),
    ],
)
def test_what_no_single_place_is_named_by_is_refused_with_a_sentence(address: str, reason: str) -> None:
    with pytest.raises(ZooError, match=reason):
        open_source(address)
