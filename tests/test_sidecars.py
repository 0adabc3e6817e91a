"""What other programs write beside a LoRA: shown, searched, filtered, and never written."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from unittest.mock import Mock

import pytest

from lol_core.collections.columns import detailed
from lol_core.collections.index import Index
from lol_core.collections.page import Filters
from lol_core.collections.sidecar import Sidecar, read_sidecar
from lol_core.collections.zoo import Zoo
from tests.builders import write_zoo
from tests.test_index import adapter
from ui.points import any_previews

CIVITAI = {
    "id": 7,
    "modelId": 3,
    "name": "v2",
    "trainedWords": ["owlstyle, feathers", "night"],
    "baseModel": "SDXL 1.0",
    "description": "<p>Better eyes</p>",
    "model": {
        "name": "Owls",
        "type": "LORA",
        "tags": ["animal", "style"],
        "description": "<p>Use at <b>0.8</b>.<br/>Credit &amp; fun</p>",
        "allowNoCredit": False,
        "allowCommercialUse": ["Image", "Rent"],
        "allowDerivatives": True,
        "allowDifferentLicense": False,
    },
}


def test_civitais_description_of_a_version(tmp_path: Path) -> None:
    adapter(tmp_path / "owls.safetensors")
    (tmp_path / "owls.civitai.info").write_text(json.dumps(CIVITAI))
    (tmp_path / "owls.preview.png").write_bytes(b"png")
    (tmp_path / "owls.png").write_bytes(b"png")
    fresh, kept = (Zoo.open(tmp_path).entries[0].sidecar for _ in range(2))
    assert fresh == kept
    assert kept.title == "Owls v2" and kept.trigger_words == ("owlstyle", "feathers", "night")
    assert kept.tags == ("animal", "style") and kept.base_model == "SDXL 1.0" and kept.preview == "owls.preview.png"
    assert kept.notes == "Use at 0.8.\nCredit & fun\nBetter eyes"
    assert kept.licence == "commercial use: Image, Rent; not: no credit needed; derivatives; not: another licence"
    assert Zoo.open(tmp_path).preview("owls.safetensors") == tmp_path / "owls.preview.png"
    assert kept.files == ("owls.civitai.info", "owls.preview.png")


def test_lora_managers_metadata(tmp_path: Path) -> None:
    adapter(tmp_path / "owls.safetensors")
    content = {
        "file_name": "owls",
        "model_name": "My owls",
        "base_model": "Flux.1 D",
        "notes": "for the book",
        "tags": ["mine"],
        "modelDescription": "<p>Long</p>",
        "civitai": CIVITAI,
    }
    (tmp_path / "owls.metadata.json").write_text(json.dumps(content))
    sidecar = read_sidecar(tmp_path / "owls.safetensors")
    assert (sidecar.title, sidecar.base_model, sidecar.tags) == ("My owls", "Flux.1 D", ("mine",))
    assert sidecar.notes == "for the book\nLong" and sidecar.trigger_words[0] == "owlstyle"
    (tmp_path / "owls.metadata.json").write_text(json.dumps({"base_model": "Unknown", "civitai": None, "tags": None}))
    assert not read_sidecar(tmp_path / "owls.safetensors")


def test_the_web_uis_notes(tmp_path: Path) -> None:
    adapter(tmp_path / "owls.safetensors")
    content = {
        "description": "An owl",
        "sd version": "SD1",
        "activation text": "owl, <lora>",
        "preferred weight": 0.7,
        "negative text": "cat",
        "notes": "",
    }
    (tmp_path / "owls.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    sidecar = read_sidecar(tmp_path / "owls.safetensors")
    assert sidecar.trigger_words == ("owl", "<lora>") and sidecar.base_model == "SD1"
    assert sidecar.notes == "An owl\nNegative prompt: cat"
    (tmp_path / "owls.civitai.info").write_text(json.dumps(CIVITAI))
    assert read_sidecar(tmp_path / "owls.safetensors").base_model == "SDXL 1.0"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"model": 3, "trainedWords": {"a": 1}}']
)
def test_a_sidecar_that_says_nothing_costs_nothing(content: bytes, tmp_path: Path) -> None:
    adapter(tmp_path / "owls.safetensors")
    for ending in (".civitai.info", ".metadata.json", ".json"):
        (tmp_path / f"owls{ending}").write_bytes(content)
    (entry,) = Zoo.open(tmp_path).entries
    assert entry.reason is None and entry.sidecar == Sidecar()


def test_sidecars_are_searched_filtered_and_kept_up_to_date(tmp_path: Path) -> None:
    for seed, name in enumerate(("owls", "cats")):
        adapter(tmp_path / f"{name}.safetensors", seed)
    index = Index(tmp_path)
    index.update()
    assert index.page("feathers").total == 0
    (tmp_path / "owls.civitai.info").write_text(json.dumps(CIVITAI))
    os.utime(tmp_path / "owls.civitai.info", (1, 1))
    index.update()
    assert [entry.path for entry in index.page("FEATHERS 0.8").entries] == ["owls.safetensors"]
    assert index.page(filters=Filters(tags=("style", "other"))).total == 1
    assert index.counts("tag") == {"animal": 1, "style": 1}
    (tmp_path / "owls.civitai.info").unlink()
    index.update()
    assert index.page("feathers").total == 0


@pytest.mark.parametrize("count, pictured", [(6, False), (7, True)])
def test_whether_any_comes_with_a_picture_is_asked_of_many_at_a_time(
    count: int, pictured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zoo(tmp_path / "zoo", count)
    if pictured:
        (tmp_path / "zoo" / "lora003" / "adapter_model.preview.png").write_bytes(b"png")
    zoo = Zoo.open(tmp_path / "zoo", cache=tmp_path / "cache")
    with monkeypatch.context() as patch:
        connect = Mock(wraps=sqlite3.connect)
        patch.setattr(sqlite3, "connect", connect)
        assert any_previews(zoo) is pictured
        assert connect.call_count == 1
    zoo.entries.database.unlink()
    assert [entry.path for entry in detailed(zoo)] == zoo.ids, "as each alone, with no details"
