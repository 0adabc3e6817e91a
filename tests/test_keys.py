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
    """The keyword `key` of every call but those that sort is `key(…)`, or a name that was given it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign)
        for targets, values in ((_each(node.targets[0]), _each(node.value)),)
        for target, value in zip(targets, values, strict=False)
        if isinstance(target, ast.Name) and _made(value)
    }
    raw = [
        f"line {keyword.value.lineno}: {ast.unparse(keyword.value)}"
        for call in nodes
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "key" and not isinstance(keyword.value, ast.Lambda)
        if not _made(keyword.value) and not (isinstance(keyword.value, ast.Name) and keyword.value.id in named)
    ]
    assert not raw, f"{path.name}: {raw}"


def _each(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _made(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "key"
