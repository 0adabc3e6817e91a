"""From an address to a collection."""

from pathlib import Path

import pytest

from lol_core.collections.opening import open_source
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import ZooError


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
