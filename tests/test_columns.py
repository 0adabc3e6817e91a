"""What is known of a whole collection at once: the same from an index as from entries that are objects."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from lol_core.collections.columns import contents, database, detailed, size, structures, values
from lol_core.collections.folder import Zoo
from lol_core.collections.memory import MemorySource
from lol_core.collections.page import Filters
from lol_core.collections.source import Source
from lol_core.core.batch import shared_spec
from lol_core.errors import ZooError
from lol_core.insight.overview import Examination, overview
from lol_core.insight.surveys import Surveys
from tests.builders import MODULES, random_lora, write_peft

RANKS = {"cats": 2, "dogs": 3, "cat-and-dog": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Zoo:
    for seed, (name, rank) in enumerate(RANKS.items()):
        shapes = [(module, n, m, rank) for module, n, m, _ in MODULES[: 3 if rank == 2 else 2]]
        write_peft(tmp_path / "zoo" / name, random_lora(shapes, seed))
    return Zoo.open(tmp_path / "zoo")


@pytest.fixture
def memory(folder: Zoo) -> MemorySource:
    return MemorySource({id: folder.load(id) for id in folder.ids})


@pytest.fixture(params=["folder", "memory"])
def source(request: pytest.FixtureRequest) -> Source:
    found: Source = request.getfixturevalue(request.param)
    return found


def names(ids: set[str]) -> set[str]:
    return {id.split("/")[0] for id in ids}


def test_search_and_filters_find_the_same_in_every_source(source: Source) -> None:
    index = database(source)
    for query, expected in (
        ("", set(RANKS)),
        ("CAT", {"cats", "cat-and-dog"}),
        ("dog cat", {"cat-and-dog"}),
        ("/^(cats|dogs)/", {"cats", "dogs"}),
        ("nothing like it", set()),
    ):
        assert names(index.matching(query)) == expected, query
    assert names(index.matching("cat", Filters(ranks=(3, 2)))) == {"cats", "cat-and-dog"}
    assert names(index.matching(filters=Filters(ranks=(3,)))) == {"dogs"}
    assert names(database(source).matching()) == set(RANKS), "and is not written twice"
    with pytest.raises(ZooError, match="no regular expression"):
        index.matching("/(/")


def test_an_expression_that_takes_forever_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lol_core.collections.page.PATIENCE", 0.2)
    write_peft(tmp_path / ("a" * 40 + "b"), random_lora(MODULES, 0))
    index = database(Zoo.open(tmp_path))
    for ask in (index.matching, index.page):
        with pytest.raises(ZooError, match="takes too long"):
            ask("/(a|aa)+$/")
    for more in ("((a{1000}){1000}){1000}", "(" * 5000 + ")" * 5000):
        with pytest.raises(ZooError, match="no regular expression"):
            index.matching(f"/{more}/")


def test_columns_are_what_the_entries_say(source: Source) -> None:
    assert list(contents(source)) == [entry.content for entry in source.entries]
    assert size(source) == sum(entry.size for entry in source.entries) > 0
    for field in ("dialect", "parameters", "suggested_base"):
        expected = pd.Series([getattr(entry, field) for entry in source.entries], source.ids, name=field)
        pd.testing.assert_series_equal(values(source, field), expected)
    assert set(values(source, "ranks")) == {"2", "3"} and len(set(values(source, "dtypes"))) == 1


def test_structures_stand_for_all(source: Source) -> None:
    some = structures(source, source.ids)
    assert len(some) == 2 and shared_spec(some) == shared_spec(source.entries)
    assert [entry.path for entry in structures(source, source.ids[:1])] == source.ids[:1]
    assert structures(source, source.ids[::-1])[0].path == source.ids[-1], "in the order that is given"


def test_details_are_read_many_at_a_time(folder: Zoo) -> None:
    for entry, alone in zip(detailed(folder), folder.entries, strict=True):
        assert entry == alone and dict(entry.metadata) == dict(alone.metadata) and entry.metadata["peft_type"] == "LORA"
    assert [entry.path for entry in detailed(folder, folder.ids[:0:-1])] == folder.ids[:0:-1]


def test_a_spec_is_the_same_whether_or_not_headers_are_shared(folder: Zoo) -> None:
    entries = list(folder.entries) * 2
    apart = [dataclasses.replace(entry, headers=(*entry.headers,)) for entry in entries]
    assert len({id(entry.headers) for entry in entries}) == 2 < len({id(entry.headers) for entry in apart})
    assert shared_spec(entries) == shared_spec(apart) and shared_spec(entries).rank == 3


def test_the_table_of_some_is_part_of_the_table_of_all(source: Source) -> None:
    surveys = Surveys(source).complete()
    whole, part = overview(source, surveys, source.ids), overview(source, surveys, source.ids[1:])
    pd.testing.assert_frame_equal(whole.loc[source.ids[1:]], part)
    examined = Examination.of(source, surveys)
    assert examined is not None
    pd.testing.assert_series_equal(examined.rank_used, whole["rank used"].astype(float))
