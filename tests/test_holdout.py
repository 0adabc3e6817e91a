"""Models judged on held-out LoRAs: the rule, its intervals, and what was frozen beforehand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lol_core.errors import DataMissingError, TaskError, ZooError
from lol_core.experiments.context import Context
from lol_core.experiments.frozen import Frozen, digests
from lol_core.experiments.holdout import aimed_at
from lol_core.experiments.holdout_readings import (
    EXAMS,
    FAMILIES,
    FIRST,
    OURS,
    RIVALS,
    Exam,
    Reading,
    Readings,
    held_out,
    measured,
)
from lol_core.experiments.result import Holds
from lol_core.experiments.table2 import QUESTION as CLIP_QUESTION
from lol_core.experiments.table5 import LOSS_QUESTION
from lol_core.finetuning.holdout import HoldoutZoos
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.rounds import ROUNDS
from lol_core.learning.bootstrap import interval, mean_of, over_trainings
from tests.builders import write_zoo
from tests.conftest import ROOT
from tests.test_experiments import SAMPLES

FITS = ROOT / "benchmarks" / "fits"


def test_trainings_that_differ_widen_an_interval_and_equal_ones_do_not() -> None:
    right = np.random.default_rng(0).random((200, 1)) < 0.7
    same, other = mean_of(right), mean_of(np.zeros_like(right))
    alone, twice, mixed = (
        interval(over_trainings(trainings, seed=0), 200, seed=0, draws=500)
        for trainings in ([same], [same, same], [same, other])
    )
    assert alone == interval(same, 200, seed=0, draws=500) and twice == pytest.approx(alone)
    assert mixed[0] < 0.1 and mixed[1] > 0.6  # now one of them alone, now the other


def readings(lead: dict[str, float]) -> Readings:
    """Accuracies of .5 for all, in two trainings, and of .5 + lead for ours."""

    def of(accuracy: float) -> list[Reading]:
        right = (np.arange(400) % 100 < 100 * accuracy).astype(float)
        return [Reading("accuracy", right, np.ones(400))] * 2

    every = [column for columns in FAMILIES.values() for column in columns]
    scores = {column: {rival: of(0.5) for rival in RIVALS} | {OURS: of(0.5 + lead.get(column, 0))} for column in every}
    return Readings({}, scores, None, draws=200)


def test_a_family_counts_where_a_model_is_above_in_each_of_its_questions() -> None:
    above = dict.fromkeys((column for columns in FAMILIES.values() for column in columns), 0.02)
    assert readings(above).families(OURS) == (list(FAMILIES), [])
    language = FAMILIES["language"]
    sure = above | dict.fromkeys((*language, "classes, accuracy"), 0.4)
    assert readings(sure).families(OURS) == (list(FAMILIES), ["classes", "language"])
    for column in language:
        assert "language" not in readings(sure | {column: -0.01}).families(OURS)[0]
    partly = replace(readings(sure), of={name: of for name, of in readings(sure).of.items() if name != language[0]})
    assert "language" not in partly.families(OURS)[0]


def test_a_goal_is_reached_by_enough_families_and_surely_by_enough_of_them() -> None:
    every = [column for columns in FAMILIES.values() for column in columns]
    for lead, apart, certain in ((0.4, Holds.YES, Holds.YES), (0.02, Holds.NO, Holds.YES), (-0.02, Holds.NO, Holds.NO)):
        read = readings(dict.fromkeys(every, lead))
        assert [aimed_at(read, OURS, "Ours", way).holds for way in (False, True)] == [apart, certain]
        assert read.certain(OURS) == (list(FAMILIES) if certain is Holds.YES else [])
    one = readings({column: 0.4 if column == "classes, accuracy" else -0.02 for column in every})
    assert one.certain(OURS) == ["classes"] and aimed_at(one, OURS, "Ours", True).holds is Holds.NO
    some = replace(one, of={"classes, accuracy": one.of["classes, accuracy"]})
    assert aimed_at(some, OURS, "Ours").holds is Holds.NOT_CLEAR, "four families are not asked yet"


def test_differences_are_of_the_same_loras_and_widen_with_their_number() -> None:
    gaps = readings({"classes, accuracy": 0.1})
    one, many = (gaps.apart("classes, accuracy", OURS, KERNEL, among) for KERNEL in ["gl_net"] for among in (1, 20))
    assert one.value == pytest.approx(0.1) and many.low < one.low < 0.1 < one.high < many.high


def test_what_changed_since_the_freeze_is_named(tmp_path: Path) -> None:
    now = digests()
    assert "learning/models/tucker.py" in now and "experiments/holdout_readings.py" in now
    Frozen({**now, "learning/models/tucker.py": "other", "core/gone.py": "0"}, {}).write(tmp_path / "frozen.json")
    assert Frozen.read(tmp_path / "frozen.json").changed() == {"learning/models/tucker.py", "core/gone.py"}
    with pytest.raises(DataMissingError, match="committed in benchmarks/fits"):
        measured(Context(tmp_path, tmp_path / "elsewhere", work=tmp_path))


@pytest.mark.parametrize("exam", EXAMS.values(), ids=list(EXAMS))
def test_the_committed_freeze_holds_its_own_digest_and_is_the_one_that_fits_were_made_by(exam: Exam) -> None:
    frozen = Frozen.read(FITS / exam.frozen)
    assert json.loads((FITS / exam.frozen).read_text())["digest"] == frozen.digest
    kept = FITS / exam.kept
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert lines and {line["about"]["frozen"] for line in lines} == {frozen.digest}


def test_a_zoo_in_the_making_is_not_asked_about(tmp_path: Path) -> None:
    write_zoo(tmp_path / "holdout" / "glosses", 2)
    with pytest.raises(ZooError, match="2 of 48 LoRAs. `python -m lol_core finetune holdout --round holdout`"):
        held_out(Context(SAMPLES, FITS, work=tmp_path), LOSS_QUESTION)
    assert held_out(Context(SAMPLES, FITS, work=tmp_path), LOSS_QUESTION, known=True) is None
    assert held_out(Context(SAMPLES, FITS, work=tmp_path), CLIP_QUESTION) is None
    write_zoo(tmp_path / "holdout" / "faces", 100)
    with pytest.raises(ZooError, match="clip_score not measured yet"):
        held_out(Context(SAMPLES, FITS, work=tmp_path), CLIP_QUESTION)


def test_zoos_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / FIRST.frozen).write_text((FITS / FIRST.frozen).read_text())
    with pytest.raises(DataMissingError, match="finetune holdout"):
        measured(Context(tmp_path, tmp_path, work=tmp_path))
    with pytest.raises(TaskError, match="There are"):
        list(HoldoutZoos(ROUNDS["holdout"], tmp_path, tmp_path, "", Machine()).build(["cats"]))
