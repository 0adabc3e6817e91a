"""The page of dialects is what the readers declare, and what they declare is so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lol_core.formats import DIALECTS
from lol_core.formats.reading import Dialect, Spelling

SCRIPT = Path(__file__).parent.parent / "docs" / "write_dialects.py"
SPELLINGS = [(dialect, spelling) for dialect in DIALECTS for spelling in dialect.spellings]


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("write_dialects", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "Run python docs/write_dialects.py"


@pytest.mark.parametrize(("dialect", "spelling"), SPELLINGS, ids=[f"{d.name} {s.key}" for d, s in SPELLINGS])
def test_an_example_key_is_of_its_dialect(dialect: Dialect, spelling: Spelling) -> None:
    key = spelling.key.replace("MODULE", "blocks.0.proj" if "_MODULE" not in spelling.key else "blocks_0_proj")
    assert dialect.parse(key) is not None or spelling.scale.startswith("refused")
