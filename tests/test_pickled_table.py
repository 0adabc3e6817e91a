"""A pickled table is read as data: what it asks to be called is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lol_core.collections.layouts.pickled_table import read_table


class Runs:
    """What a pickle may ask for: here to make a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("damaged", ["runs", "cut", "nothing"])
def test_a_pickled_table_is_never_run(tmp_path: Path, damaged: str) -> None:
    torch.save({"runs": Runs(tmp_path / "made")}.get(damaged, [1]), tmp_path / "table.pt")
    content = (tmp_path / "table.pt").read_bytes()
    assert read_table(content[: -50 if damaged == "cut" else None]) is None
    assert not (tmp_path / "made").exists()
