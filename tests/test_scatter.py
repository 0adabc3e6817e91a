"""The map of many points: its columns, and when the page chooses it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import SAMPLE_ZOO
from tests.test_pages import opened, settled
from ui.scatter import UNKNOWN, VIRIDIS, colour_column, pack, unpack


@given(st.lists(st.booleans(), max_size=70))
def test_a_mask_comes_back_as_the_positions_it_marks(marks: list[bool]) -> None:
    assert list(unpack(pack(np.array(marks, bool)), len(marks))) == [i for i, mark in enumerate(marks) if mark]


def test_many_numbers_are_a_scale_and_what_is_no_number_is_unknown() -> None:
    values = pd.Series([*range(20), np.nan, np.inf], name="loss", dtype=float)
    scale, column = colour_column(values, len(values))
    assert (scale.kind, scale.title, scale.low, scale.high, scale.colours) == ("numbers", "loss", 0, 19, VIRIDIS)
    numbers = np.frombuffer(column, np.float32)
    assert list(numbers[:20]) == list(range(20)) and np.isnan(numbers[20:]).all()


def test_of_many_categories_the_frequent_ones_have_colours_and_the_others_are_grey() -> None:
    values = pd.Series([f"c{k}" for k in range(9) for _ in range(10 - k)] + [None], name="tag", dtype=object)
    scale, column = colour_column(values, len(values))
    assert scale.names == tuple(f"c{k}" for k in range(7)) and len(set(scale.colours)) == 7
    assert (scale.rest, scale.unknown) == ("other or unknown", UNKNOWN)
    codes = np.frombuffer(column, np.uint8)
    assert [scale.names[code] if code < 7 else None for code in codes] == [
        value if value in scale.names else None for value in values
    ]


def test_few_numbers_are_categories_and_no_values_one_colour() -> None:
    assert colour_column(pd.Series([1, 2, 1]), 3)[0].names == ("1", "2")
    scale, column = colour_column(None, 3)
    assert len(scale.colours) == 1 and column == bytes(3)


def test_the_page_draws_many_points_by_webgl_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    few = settled(opened("Map", SAMPLE_ZOO))
    assert few.get("plotly_chart") and not any("WebGL" in caption.value for caption in few.caption)
    monkeypatch.setattr("ui.scatter.MAX_PLOTLY", 100)
    many = settled(opened("Map", SAMPLE_ZOO))
    assert not many.exception and not many.get("plotly_chart")
    assert any("More than 100 points are drawn by WebGL" in caption.value for caption in many.caption)
    saved = many.toggle(key="map.to_save").set_value(True).run()
    assert saved.get("plotly_chart") and any("Drawn by Plotly" in caption.value for caption in saved.caption)
    solid = settled(opened("Map", SAMPLE_ZOO, dimensions="3"))
    assert solid.get("plotly_chart")
