"""Keys of widgets carry their page's name, so pages never meet each other's state: read from the source; a journey
in tests/test_journey.py visits every page after every other.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = sorted([ROOT / "app.py", *(ROOT / "pages").glob("*.py"), *(ROOT / "ui").glob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_key_is_made_by_the_one_function(path: Path) -> None:
    """The keyword `key` of every call but those that sort is `key(…)`."""
    tree = ast.parse(path.read_text())
    raw = [
        f"line {keyword.value.lineno}: {ast.unparse(keyword.value)}"
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "key"
        and not isinstance(keyword.value, ast.Lambda)
        and not (isinstance(keyword.value, ast.Call) and ast.unparse(keyword.value.func) == "key")
    ]
    assert not raw, f"{path.name}: {raw}"
