"""One reporter for all long work."""

from __future__ import annotations

import pytest

from lol_core.core.progress import SILENT, Progress, Reporter, Stopped
from ui import jobs


def test_a_part_of_the_work_reports_its_share_of_the_whole() -> None:
    seen: list[Progress] = []
    whole = Reporter(seen.append)
    inner = whole.part(0.2, 0.6, "Fold 1: ").part(0.5, 1.0)
    inner.count("Reading LoRA", 2, 4)
    inner.show("done", 1.0, ({"epoch": 1.0},))
    assert [progress.message for progress in seen] == ["Fold 1: Reading LoRA 2 of 4", "Fold 1: done"]
    assert [progress.fraction for progress in seen] == pytest.approx([0.5, 0.6])
    assert seen[1].history == ({"epoch": 1.0},)
    seen.clear()
    whole.item(2, 4, "Third: ").show("half", 0.5)
    assert seen == [Progress("Third: half", 0.625)]


def test_a_stop_reaches_every_part_and_says_what_is_kept() -> None:
    asked: list[bool] = []
    whole = Reporter(stop=lambda: bool(asked))
    part = whole.part(0.0, 0.5)
    part.check("Nothing is lost.")
    asked.append(True)
    with pytest.raises(Stopped, match=r"Stopped\. What was read is kept\."):
        part.check("What was read is kept.")
    assert part.stopping and not SILENT.stopping


def test_the_time_left_follows_the_pace_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth is read in a second, the rest takes ninety: from the pace so far half a minute was told for all of it."""
    now = 0.0
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now)
    job: jobs.Job[None, None] = jobs.Job(lambda reporter: None, None)
    told = {}
    for second in range(91):
        now = float(second)
        job._update(Progress("", 0.1 * min(second, 1) + 0.01 * max(0, second - 1)))
        told[second] = job.seconds_left
    assert told[0] is None
    assert all(left == pytest.approx(91 - second, rel=0.15) for second, left in told.items() if second > 3)
    assert len(job._passed) < 60
