"""Headers that thousands of entries share are looked into once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lol_core.collections.entry import Entry
from lol_core.core.batch import shared_spec
from lol_core.core.header import ModuleHeader, distinct_headers
from lol_core.learning.evaluation import structure_features
from tests.builders import random_lora

COUNT = 1000


def entries(count: int, *, shared: bool) -> list[Entry]:
    """Synthetic entries of two structures in turn."""
    kinds = [
        Entry.of(random_lora(shapes), path="", size=1)
        for shapes in ([("a", 6, 4, 2), ("b", 5, 4, 2)], [("a", 6, 4, 3)])
    ]
    made = [replace(kinds[i % 2], path=str(i), size=i) for i in range(count)]
    return made if shared else [replace(e, headers=tuple(map(replace, e.headers)), alphas=(*e.alphas,)) for e in made]


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """The names of the modules of which a method or property is asked, from now on."""
    calls: list[str] = []
    own: Any = getattr(ModuleHeader, name)
    method: Any = own.fget if isinstance(own, property) else own

    def call(self: ModuleHeader, *arguments: object) -> object:
        calls.append(self.name)
        return method(self, *arguments)

    monkeypatch.setattr(ModuleHeader, name, property(call) if isinstance(own, property) else call)
    return calls


def test_a_specification_is_compared_with_each_structure_once(monkeypatch: pytest.MonkeyPatch) -> None:
    members = entries(COUNT, shared=True)
    spec = shared_spec(members[::2])
    calls = counted(monkeypatch, "misfit")
    problems = [spec.misfits(member) for member in members]
    assert problems[::2] == [[]] * (COUNT // 2)
    assert problems[1::2] == [["1 of 2 modules are missing, first b."]] * (COUNT // 2)
    assert calls == ["a", "b", "a"]
    problems[0].append("a list is the caller's own")
    assert spec.misfits(members[0]) == []


def test_what_entries_share_is_told_from_each_structure_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, own = entries(COUNT, shared=True), entries(40, shared=False)
    assert len(distinct_headers(one)) == 2 and len(distinct_headers(own)) == 40
    assert shared_spec(one) == shared_spec(own) and shared_spec(one).mixed_ranks
    np.testing.assert_array_equal(structure_features(one[:40]), structure_features(own))
    calls = counted(monkeypatch, "update")
    shared_spec(one)
    assert calls == ["a", "b", "a"]
