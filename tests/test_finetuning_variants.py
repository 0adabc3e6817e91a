"""Each variant of LoRA, really trained for a few steps by its library and read back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from lol_core.collections.zoo import Zoo
from lol_core.core.parametrisation import Hadamard, Kronecker, Tucker
from lol_core.core.symmetry import TOLERANCES
from lol_core.errors import LoLError
from lol_core.experiments import variants as experiment
from lol_core.experiments.kept import Kept
from lol_core.experiments.variants import MERGE, NONE, ORBIT, PROMISE, READ, SCORE, STORED
from lol_core.finetuning import adapters
from lol_core.finetuning.adapters import build
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.variants import VARIANTS, named, recipe_of
from tests.conftest import ROOT
from tests.test_finetuning_images import RECIPE, base_folder, celeba

__all__ = ["base_folder", "celeba"]


def in_this_process(
    machine: Machine,
    start: Callable[..., None],
    started: tuple[Any, ...],
    work: Callable[..., Any],
    todo: Sequence[tuple[Any, ...]],
) -> Iterator[Any]:
    start(*started, "cpu")
    return (work(*arguments) for arguments in todo)


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_every_variant_is_trained_by_its_library_and_read_as_that_merges_it(
    base_folder: Path, celeba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "spread", in_this_process)
    (tmp_path / "small-diffusion").symlink_to(base_folder)
    out = tmp_path / "variants"
    shutil.copytree(celeba, out / "people-1")
    recipe = replace(RECIPE, base="tiny", steps=(2,), batch_sizes=(1,))

    def made(count: int) -> list[str]:
        rows = build(tmp_path, out, VARIANTS, 1, Machine(), recipe=recipe)
        return [key for key, _ in islice(rows, count)]

    assert [*made(3), *made(20)] == [variant.key for variant in VARIANTS], "what was stopped goes on"
    rows = {}
    for variant in VARIANTS:
        zoo = Zoo.open(out / variant.key)
        row = experiment.of_zoo(variant, zoo, Kept(tmp_path / "kept.jsonl", {}))
        assert len(zoo) == 1 and row.words[READ] == "1 of 1" and "1 LoRAs, fewer than 30" in row.words[SCORE]
        assert row.numbers[MERGE][0] <= TOLERANCES[torch.float32], variant.title  # of a small ΔW beside W
        assert row.numbers[PROMISE][0] <= TOLERANCES[torch.float64] < 1e-3 < row.numbers[NONE][0], variant.title
        assert all(column in row.words or column in row.numbers for column in experiment.COLUMNS)
        rows[variant.key] = zoo.load(zoo.ids[0])
    kinds = {"loha": Hadamard, "lokr": Kronecker, "lokr-factorised": Kronecker, "locon-mid": Tucker}
    for key, kind in kinds.items():
        assert all(isinstance(layer.parametrisation, kind) for layer in rows[key].layers), key
    assert all(layer.magnitude is not None for layer in rows["dora"].layers)
    plain = experiment.structure("LoRA", [rows["lora"]])
    assert plain.words[STORED] == f"{rows['lora'].parameters:,}"
    assert plain.words[ORBIT] == str(16 * len(rows["lora"].layers))


def test_a_variant_that_is_none_is_answered_with_those_there_are() -> None:
    with pytest.raises(LoLError, match="No variant dorra. There are lora, pissa"):
        named(["dorra"])
    assert [variant.key for variant in named(["loha"])] == ["loha"]


def test_the_recipe_is_that_of_faces_cut_short() -> None:
    recipe = recipe_of(ROOT / "sample_loras")
    assert (recipe.name, recipe.steps, recipe.batch_sizes, recipe.prompts) == ("variants", (40,), (1,), ("person",))
    assert len(recipe.attributes) == 5 and recipe.images_per_subject == 21
