"""The work that pages have done beside them: what each job does with a reporter, and what it works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from uuid import uuid4
from weakref import WeakValueDictionary, finalize

import pandas as pd
import torch

from lol_core.collections.offered import offered
from lol_core.collections.samples import get
from lol_core.collections.source import Source
from lol_core.collections.store import Store
from lol_core.collections.waiting import stopped_by
from lol_core.core.lora import LoRA
from lol_core.core.progress import Progress, Reporter
from lol_core.errors import CheckpointError
from lol_core.experiments import run as run_experiment
from lol_core.experiments.context import Context
from lol_core.experiments.result import Result
from lol_core.experiments.search import SMALL
from lol_core.formats.writing import holding
from lol_core.insight.duplicates import duplicates
from lol_core.insight.editing import NEEDS, Edit, Method, edit
from lol_core.insight.generation import Painter, Sampling, weights_file, write_drawable
from lol_core.insight.maps import Map, MapSettings, draw_map
from lol_core.insight.merge_report import MergeReport
from lol_core.insight.merging import Method as MergeMethod
from lol_core.insight.merging import remarks
from lol_core.insight.overview import Examination
from lol_core.insight.survey import Survey
from lol_core.insight.surveys import Surveys
from lol_core.learning.answers import Answers, is_outside
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.crossvalidation import Folds, crossvalidate
from lol_core.learning.editor import Editor, train_editor
from lol_core.learning.goal import Goal
from lol_core.learning.members import Members
from lol_core.learning.training import Plan, train
from lol_core.learning.verdict import Difference
from ui.access import access
from ui.jobs import Job, running, sentence


def open_collection(address: str, labels: str) -> Job[tuple[str, str], Source]:
    """Opens what lies at an address. Stopped, it ends after the present file; none is read twice."""
    opens = access()

    def work(reporter: Reporter) -> Source:
        return opens.open(address, labels, reporter)

    return Job(work, (address, labels), takes_turns=False).start()


def get_sample(name: str) -> Job[str, Path]:
    """Downloads a sample zoo. Stopped, it keeps what came."""

    def work(reporter: Reporter) -> Path:
        return get(name, reporter=reporter)

    return Job(work, name, takes_turns=False).start()


def look_for_labels(source: Source) -> Job[str, pd.DataFrame]:
    """Reads the columns that files offer as labels."""

    def work(reporter: Reporter) -> pd.DataFrame:
        with stopped_by(reporter):
            return offered(source, reporter)

    return Job(work, source.fingerprint, takes_turns=False).start()


@dataclass
class Run:
    """One model to train and how far it is."""

    title: str
    plan: Plan
    config: TrainingConfig
    out: Path
    resume: bool = False
    progress: Progress = field(default_factory=lambda: Progress("Waiting", 0.0))
    checkpoint: Checkpoint | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.checkpoint is not None or self.error is not None


def train_runs(source: Source, runs: Sequence[Run]) -> Job[Sequence[Run], None]:
    """Trains runs one after the other. Stopped, it ends the present one at its last finished epoch, saved, and skips
    the rest.
    """

    def work(reporter: Reporter) -> None:
        for number, run in enumerate(runs):
            part = reporter.item(number, len(runs), f"{run.title}: ")

            def on_progress(progress: Progress, run: Run = run, part: Reporter = part) -> None:
                run.progress = progress
                part.on_progress(progress)

            if reporter.stopping:
                run.error = "Skipped: training was stopped before it began."
                continue
            try:
                own = Reporter(on_progress, reporter.stop)
                run.checkpoint = train(source, run.plan, run.config, run.out, reporter=own, resume=run.resume)
            except Exception as error:
                run.error = sentence(error)

    job = Job(work, runs).start()
    _last.trainings = [*filter(running, _last.trainings), job]
    return job


@dataclass(frozen=True)
class Validated:
    """A cross-validation, its scores (see `Folds.scores`), and how much better it ranks than each control."""

    folds: Folds
    scores: dict[str, dict[str, tuple[float, float]]]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Validation:
    """A cross-validation of several models. finished: title → what came out, filled as they end."""

    fingerprint: str
    targets: tuple[str, ...]
    finished: dict[str, Validated] = field(default_factory=dict)


def validate(
    source: Source, targets: Sequence[str], configs: Mapping[str, TrainingConfig], folds: int
) -> Job[Validation, None]:
    """Cross-validates models one after the other. Stopped, it drops the present one."""
    subject = Validation(source.fingerprint, tuple(targets))

    def work(reporter: Reporter) -> None:
        for number, (title, config) in enumerate(configs.items()):
            part = reporter.item(number, len(configs), f"{title}: ")
            result = crossvalidate(source, targets, config, folds, reporter=part)
            differences = {control: result.difference(control) for control in ("norms only", "structure only")}
            subject.finished[title] = Validated(result, result.scores(), differences)

    job = Job(work, subject)
    _last.validation = job
    return job.start()


@dataclass(eq=False)
class Last:
    """The trainings that run, the first to begin first, and the cross-validation begun last, of all sessions."""

    trainings: list[Job[Sequence[Run], None]] = field(default_factory=list)
    validation: Job[Validation, None] | None = None


_last = Last()


def found_again() -> tuple[Job[Sequence[Run], None] | None, Job[Validation, None] | None]:
    """What a new session goes on with: on one's own computer a page that is loaded again is the same visitor, whose
    training still runs (others wait for the first), or whose cross-validation came out, which is kept nowhere else.
    """
    if access().served:
        return None, None
    return next(filter(running, _last.trainings), None), _last.validation


def other_trainings(own: Job[Sequence[Run], None] | None) -> list[Job[Sequence[Run], None]]:
    """Those of one's own computer that run or wait beside one's own, begun in another tab or before a reload."""
    return [] if access().served else [job for job in filter(running, _last.trainings) if job is not own]


_READING: WeakValueDictionary[tuple[str, str], Job[str, pd.DataFrame | None]] = WeakValueDictionary()
"""Fingerprint and where surveys are kept → the job that read the weights last."""


def read_weights(source: Source, n_read: int) -> Job[str, pd.DataFrame | None]:
    """Reads the weights of a collection once and finds those that are the same function (see `duplicates`). Stopped, it
    ends after the present file; what is read stays. Its subject is the collection's fingerprint.

    n_read: LoRAs whose weights are known. Who opens the collection again meets the job that runs, or its answer; others
    than its visitor do not meet it while it runs, since they could stop it.
    """
    place = source.fingerprint, str(Surveys(source).path)
    last = _READING.get(place)
    if last is not None and not last.stopping:
        answered = last.result is not None and n_read == len(source)
        if answered or (last.running and not access().served):
            return last

    def work(reporter: Reporter) -> pd.DataFrame | None:
        surveys = Surveys(source).complete(reporter.part(0.0, 0.9))
        same = duplicates(source, surveys, reporter=reporter.part(0.9, 1.0))
        return None if reporter.stopping else same

    _READING[place] = job = Job(work, source.fingerprint, takes_turns=False).start()
    return job


def predict(source: Source, folder: Path, checkpoint: Checkpoint) -> Job[Path, Answers | None]:
    """Asks a model about every LoRA of a collection. Stopped, it keeps the answers so far and goes on from them."""

    def work(reporter: Reporter) -> Answers | None:
        answers = Answers.of(checkpoint, source, reporter=reporter, store=Store())
        return None if reporter.stopping else answers

    return Job(work, folder, takes_turns=False).start()


def examine(source: Source, surveys: Mapping[str, Survey]) -> Job[tuple[str, int], Examination | None]:
    """Looks at every header. Its subject: the collection's fingerprint, and how many weights had been read."""

    def work(reporter: Reporter) -> Examination | None:
        return Examination.of(source, surveys, reporter)

    return Job(work, (source.fingerprint, len(surveys)), takes_turns=False).start()


def map_of(
    source: Source, settings: MapSettings, checkpoint: Checkpoint | None, start: pd.DataFrame | None
) -> Job[MapSettings, Map | None]:
    """Places a collection in a space and draws it."""

    def work(reporter: Reporter) -> Map | None:
        return draw_map(source, settings, checkpoint=checkpoint, start=start, reporter=reporter)

    return Job(work, settings).start()


def draw_sheets(
    painter: Painter, source: Source, ids: Sequence[str | None], prompts: Sequence[str], *, sampling: Sampling
) -> Job[None, None]:
    """Draws the prompts with one LoRA after the other (None: the base alone) into the painter's cache, downloading what
    is not here. Stopped, it ends between two sampling steps; what is finished stays.
    """

    def work(reporter: Reporter) -> None:
        for number, id in enumerate(ids):
            part = reporter.item(number, len(ids), f"Drawing {number + 1} of {len(ids)}: ")
            part.show("reading its weights", 0.0)
            with stopped_by(reporter):
                lora = None if id is None else weights_file(source, id)
            painter.draw(lora, prompts, sampling, part)

    return Job(work, None).start()


@dataclass(frozen=True)
class Wish:
    """An edit that a page asks for. lora: fingerprint of the collection, and id, of the LoRA that all began with;
    number: how many edits came before.
    """

    lora: tuple[str, str]
    number: int
    goal: Goal
    method: Method
    size: float


@dataclass
class Edited:
    """An edit, and its steps as files that diffusers loads, none where it has no form for them; they go with this
    object. outside: of each step, whether it is unlike the LoRAs that the model was trained on; members, editor: what
    its direction came from, for the next one; key: tells it from every other of this server.
    """

    edit: Edit
    outside: Sequence[bool]
    members: Members | None
    editor: Editor | None
    folder: Path | None
    key: str = field(default_factory=lambda: uuid4().hex)

    def file(self, step: int) -> Path | None:
        return None if self.folder is None else self.folder / f"{step}.safetensors"


def edit_lora(
    checkpoint: Checkpoint,
    source: Source,
    lora: LoRA,
    wish: Wish,
    *,
    members: Members | None,
    editor: Editor | None,
    drawable: bool,
) -> Job[Wish, Edited]:
    """Edits a LoRA; first it reads the collection where the method needs it and `members` is None, and trains an editor
    where it needs one and there is none, `editor` or beside the model.
    """

    def work(reporter: Reporter) -> Edited:
        own, learnt = members, editor
        if wish.method is Method.EQUIVARIANT and learnt is None:
            with suppress(CheckpointError):
                learnt = Editor.load(checkpoint)
        trains = wish.method is Method.EQUIVARIANT and learnt is None
        reads = own is None and (trains or wish.method in NEEDS)
        read_by = (0.1 if trains else 0.7) if reads else 0.0
        learnt_by = 0.95 if trains else read_by
        if reads:
            with stopped_by(reporter):
                own = Members.of(checkpoint, source, reporter.part(0.0, read_by))
        if trains and own is not None:
            learnt = train_editor(checkpoint, own, reporter=reporter.part(read_by, learnt_by))
        made = edit(
            checkpoint,
            [lora],
            wish.goal,
            method=wish.method,
            size=wish.size,
            members=own,
            editor=learnt,
            reporter=reporter.part(learnt_by, 1.0),
        )[0]
        outside = [is_outside(checkpoint, one) for one in made.loras]
        if not drawable:
            return Edited(made, outside, own, learnt, None)
        edited = Edited(made, outside, own, learnt, folder := Path(mkdtemp()))
        finalize(edited, rmtree, folder, ignore_errors=True)
        for step, one in enumerate(made.loras):
            write_drawable(one, folder / f"{step}.safetensors", wish.lora[1])
        return edited

    return Job(work, wish).start()


@dataclass(frozen=True)
class Merging:
    """A merge that a page asks for. place: fingerprint of the collection; ids: of its LoRAs, a weight for each; rank:
    None for all of it.
    """

    place: str
    ids: tuple[str, ...]
    weights: tuple[float, ...]
    rank: int | None
    method: MergeMethod
    density: float


@dataclass
class Merged:
    """A merge, and files that diffusers loads, none where it has no form for them: of the merge, which goes with this
    object, and of each LoRA. given: the numbers of the LoRAs; notes: on the file of each;
    remarks: what should make one doubt it; key: tells it from every other of this server.
    """

    report: MergeReport
    given: torch.dtype
    notes: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]
    file: Path | None = None
    parts: tuple[Path, ...] = ()
    key: str = field(default_factory=lambda: uuid4().hex)


def merge_loras(source: Source, loras: Sequence[LoRA], asked: Merging, *, drawable: bool) -> Job[Merging, Merged]:
    """Merges LoRAs of a collection and compares the merge with them."""

    def work(reporter: Reporter) -> Merged:
        report = MergeReport.of(
            loras, asked.weights, asked.rank, asked.method, density=asked.density, reporter=reporter.part(0.0, 0.9)
        )
        made = Merged(report, holding(*loras), tuple(lora.notes for lora in loras), tuple(remarks(loras)))
        if not drawable:
            return made
        with stopped_by(reporter):
            made.parts = tuple(weights_file(source, id) for id in asked.ids)
        made.file = (folder := Path(mkdtemp())) / "merge.safetensors"
        finalize(made, rmtree, folder, ignore_errors=True)
        write_drawable(report.merged.lora, folder / "merge.safetensors", "The merge")
        return made

    return Job(work, asked).start()


def draw_files(
    painter: Painter, files: Sequence[Path | None], prompts: Sequence[str], sampling: Sampling
) -> Job[None, None]:
    """Draws the prompts with one file after the other (None: the base alone) into the painter's cache."""

    def work(reporter: Reporter) -> None:
        for number, file in enumerate(files):
            part = reporter.item(number, len(files), f"Drawing {number + 1} of {len(files)}: ")
            painter.draw(file, prompts, sampling, part)

    return Job(work, None).start()


def run_small(name: str, samples: Path, place: Path) -> Job[str, Result]:
    """Runs one of the paper's tables or figures small; its scores mean nothing. Stopped, it ends after the present fit,
    which stays in the folder `place`.
    """

    def work(reporter: Reporter) -> Result:
        return run_experiment(name, Context(samples, place / "fits", SMALL, reporter, place))

    return Job(work, name).start()
