"""The zoo that comes with the repository: whole, labelled, small enough, and really fine-tuned."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from lol_core.collections.zoo import Zoo
from lol_core.core.geometry import norm
from tests.conftest import SAMPLE_ZOO


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return Zoo.open(SAMPLE_ZOO)


def test_it_is_whole(zoo: Zoo) -> None:
    assert len(zoo) >= 300 and not zoo.refused and not zoo.unjoined_labels
    assert zoo.labels.notna().all().all()
    assert {entry.base_model for entry in zoo.entries} == {"sentence-transformers/all-MiniLM-L6-v2"}
    assert {entry.ranks for entry in zoo.entries} == {(4,)} and {entry.modules for entry in zoo.entries} == {6}
    assert len({entry.digest for entry in zoo.entries}) == len(zoo)


def test_it_fits_into_git() -> None:
    assert sum(path.stat().st_size for path in SAMPLE_ZOO.rglob("*") if path.is_file()) <= 25_000_000


def test_every_lora_was_trained(zoo: Zoo) -> None:
    """A fresh adapter has ΔW = 0; a larger learning rate for longer moves it further."""
    norms = {}
    for id in zoo.ids:
        lora = zoo.load(id)
        lora.check_finite()
        norms[id] = min(norm(layer) for layer in lora.layers)
    series = pd.Series(norms)
    assert (series > 0).all()
    assert series.corr(zoo.labels["learning_rate"] * zoo.labels["steps"], method="spearman") > 0.9


def test_labels_were_measured(zoo: Zoo) -> None:
    base = json.loads((SAMPLE_ZOO / "base.json").read_text())["measured"]
    questions = pd.read_csv(SAMPLE_ZOO / "questions.csv")
    assert questions.groupby("split").size().to_dict() == {name: part["questions"] for name, part in base.items()}
    labels = zoo.labels
    assert labels["accuracy"].between(0.25, 1).all() and (labels["accuracy"] * 1000 % 1 < 1e-6).mean() > 0.5
    assert labels["validation_loss"].min() < base["validation"]["loss"] * 0.8, "fine-tuning improves on the base"
    assert labels["validation_loss"].std() > 0.05
    saw = labels.filter(regex="^saw ")
    assert saw.shape[1] == 20 and (saw.sum(axis=1) == labels["n_sources"]).all()
    always = saw.columns[(saw == 1).all()]
    assert list(always) == ["saw noun.person"], "one source is never dropped"


def test_a_data_card_is_there() -> None:
    card = (SAMPLE_ZOO / "README.md").read_text()
    for fact in ("all-MiniLM-L6-v2", "WordNet", "python -m lol_core finetune glosses", "Apache-2.0"):
        assert fact in card
