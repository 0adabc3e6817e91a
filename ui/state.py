"""The session's state, typed, in one place; and what is cached across sessions."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import streamlit as st

from lol_core.collections.cache import cache_folder
from lol_core.collections.columns import values
from lol_core.collections.source import Source
from lol_core.core.lora import LoRA
from lol_core.errors import CheckpointError
from lol_core.experiments.result import Result
from lol_core.insight.generation import Painter
from lol_core.insight.maps import Map, MapSettings
from lol_core.insight.overview import Examination
from lol_core.insight.survey import Survey
from lol_core.insight.surveys import Surveys
from lol_core.learning.answers import Answers
from lol_core.learning.checkpoint import Checkpoint, read_description, title_of
from lol_core.learning.editor import Editor
from lol_core.learning.members import Members
from ui import visitors, work
from ui.access import access
from ui.jobs import Job, sentence
from ui.work import Edited, Merged, Merging, Run, Validation, Wish

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
MAX_OPEN = 4
MAX_RECENT = 8
MAX_OFFERED = 20
MAX_EDITED = 4
"""LoRAs whose edits are kept: each edit holds a LoRA for every step of its way."""


@dataclass(eq=False)
class Session:
    """What one visitor has open. folder: of what the visitor makes, where the app is served; opened: by (address,
    labels file); extra_checkpoints: folders opened by path; same: LoRAs that are the same function, by fingerprint;
    examined: how many weights had been read, and what the look at every header gave, by fingerprint; maps: pictures
    drawn so far; answers: what models say, see ui/predicting.py; selections, isolated, computed: see ui/selection.py,
    by collection; linked: what `ui.choice` last wrote into the URL, by key; edits: by fingerprint and id of the LoRA,
    see `edits_of`, each of what the one before it gave; members: what directions are made of, by fingerprint and model;
    editors: networks that edit, by when their model was made; picture: the format in which figures are saved; page: the
    present one; url: what stands in the URL on every page, empty for what opens first, the labels file in the folder,
    and no guided visit.
    """

    folder: Path | None = field(default_factory=lambda: access().visitor_folder())
    opened: dict[tuple[str, str], Source] = field(default_factory=dict)
    extra_checkpoints: list[str] = field(default_factory=list)
    training: Job[Sequence[Run], None] | None = None
    validation: Job[Validation, None] | None = None
    drawing: Job[None, None] | None = None
    survey: Job[str, pd.DataFrame | None] | None = None
    same: dict[str, pd.DataFrame] = field(default_factory=dict)
    examining: Job[tuple[str, int], Examination | None] | None = None
    examined: dict[str, tuple[int, Examination]] = field(default_factory=dict)
    mapping: Job[MapSettings, Map | None] | None = None
    experiment: Job[str, Result] | None = None
    editing: Job[Wish, Edited] | None = None
    edits: dict[tuple[str, str], list[tuple[Wish, Edited]]] = field(default_factory=dict)
    members: dict[tuple[str, str], Members] = field(default_factory=dict)
    editors: dict[str, Editor] = field(default_factory=dict)
    merging: Job[Merging, Merged] | None = None
    merged: tuple[Merging, Merged] | None = None
    drawing_edit: Job[None, None] | None = None
    opening: Job[tuple[str, str], Source] | None = None
    maps: dict[MapSettings, Map] = field(default_factory=dict)
    answers: dict[tuple[str, str, str], Job[Path, Answers | None]] = field(default_factory=dict)
    selections: dict[str, tuple[str, ...]] = field(default_factory=dict)
    isolated: bool = False
    computed: dict[str, dict[str, pd.DataFrame]] = field(default_factory=dict)
    linked: dict[str, list[str]] = field(default_factory=dict)
    getting: Job[str, Path] | None = None
    offering: Job[str, pd.DataFrame] | None = None
    picture: str = "svg"
    page: str = "Home"
    url: dict[str, str] = field(default_factory=lambda: {"collection": "", "labels": "", "selected": "", "visit": ""})


def session() -> Session:
    if "session" not in st.session_state:
        training, validation = work.found_again()
        st.session_state["session"] = made = Session(training=training, validation=validation)
        if made.folder is not None:
            visitors.watch(made.folder, made)
    state: Session = st.session_state["session"]
    return state


def edits_of(place: tuple[str, str]) -> list[tuple[Wish, Edited]]:
    """The edits so far of a LoRA, given by its collection's fingerprint and its id; to be changed in place. Those of
    MAX_EDITED LoRAs are kept, of the ones looked at last.
    """
    state = session()
    own = state.edits.get(place, [])
    others = [(other, made) for other, made in state.edits.items() if made and other != place]
    state.edits = dict(others[-(MAX_EDITED - 1) :]) | {place: own}
    return own


def kept() -> Path:
    """Where what this visitor makes is kept."""
    if (folder := session().folder if access().served else None) is None:
        return cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)  # in use
    return folder


def recent() -> list[tuple[str, str]]:
    """(address, labels file) of the collections opened by hand, the latest first, without folders and files that have
    gone.
    """
    try:
        known = json.loads((kept() / "recent.json").read_text())
        return [(str(address), str(labels)) for address, labels in known if "://" in address or Path(address).exists()]
    except (OSError, ValueError, TypeError):
        return []


def remember(address: str, labels: str) -> None:
    """Put a collection at the head of the recent ones."""
    known = [entry for entry in recent() if entry[0] != address]
    kept().mkdir(parents=True, exist_ok=True)
    (kept() / "recent.json").write_text(json.dumps([(address, labels), *known][:MAX_RECENT]))


def runs_folder(source: Source) -> Path:
    """Where models trained on a collection are kept: in the user's cache, never in the collection; by its address, so
    that they stay when its LoRAs change.
    """
    digest = hashlib.sha256(source.address.encode()).hexdigest()[:16]
    return kept() / "runs" / f"{source.name.replace('/', '-')}-{digest}"


@st.cache_resource(max_entries=32, show_spinner="Loading the model …")
def _load_checkpoint(folder: str, modified: float) -> Checkpoint:
    return Checkpoint.load(folder)


def load_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint, read once as long as it does not change. Raises CheckpointError."""
    try:
        return _load_checkpoint(str(folder), (folder / "checkpoint.json").stat().st_mtime)
    except OSError as error:
        raise CheckpointError(f"{folder}: no checkpoint there. Choose a folder that training wrote.") from error


def load_or_stop(folder: Path | str) -> Checkpoint:
    """A checkpoint; ends the page with the reason when it cannot be read."""
    try:
        return load_checkpoint(Path(folder))
    except CheckpointError as error:
        st.error(sentence(error))
        st.stop()


def trained(source: Source) -> list[Path]:
    """Folders of the models that this user trained on a collection, newest first."""
    newest = sorted(runs_folder(source).glob("*/checkpoint.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    return [path.parent for path in newest]


@st.cache_resource(max_entries=1, show_spinner=False)
def _shipped(folders: tuple[Path, ...]) -> dict[str, list[Path]]:
    """Fingerprint of a collection → models of it that come with what can be opened, in the order of their making."""
    described = []
    for folder in folders:
        with suppress(CheckpointError):
            described.append((read_description(folder), folder))
    shipped: dict[str, list[Path]] = {}
    for description, folder in sorted(described, key=lambda each: each[0]["created"]):
        shipped.setdefault(description["fingerprint"], []).append(folder)
    return shipped


def checkpoints(source: Source) -> dict[str, Path]:
    """Title → folder: the models opened by path, those trained on this collection, newest first, and those that came
    with it.
    """
    opened = [Path(f) for f in reversed(session().extra_checkpoints)]
    folders = [*opened, *trained(source), *_shipped(tuple(access().models)).get(source.fingerprint, ())]
    titles: dict[str, Path] = {}
    for folder in folders:
        try:
            read_description(folder)
            title = load_checkpoint(folder).title
        except CheckpointError:
            continue
        stem, copies = title, 2
        while title in titles:
            title, copies = f"{stem} ({copies})", copies + 1
        titles[title] = folder
    return titles


def loaded_checkpoints(source: Source) -> dict[str, Checkpoint]:
    """Title → checkpoint, of those offered for this collection that can be read."""
    models = {}
    for title, folder in checkpoints(source).items():
        with suppress(CheckpointError):
            models[title] = load_checkpoint(folder)
    return models


@st.cache_resource(max_entries=64, show_spinner=False)
def _load_lora(fingerprint: str, digest: str, id: str, _source: Source) -> LoRA:
    return _source.load(id)


def load_lora(source: Source, id: str) -> LoRA:
    """A LoRA with its weights, cached by content. Raises LoRAFormatError."""
    return _load_lora(source.fingerprint, source.by_id[id].content, id, source)


LOOKS = 20
"""How often the surveys of a collection are taken from the disk while its weights are being read."""


@st.cache_resource(max_entries=4, show_spinner=False)
def _surveys(fingerprint: str, count: int, _source: Source) -> dict[str, Survey]:
    return Surveys(_source).known()


def surveys_of(source: Source) -> dict[str, Survey]:
    """id → what has been read of the weights so far, taken from the disk only when there is more of it: while they are
    being read, LOOKS times at most, since all are taken each time.
    """
    if not len(source):
        return {}
    count, job = Surveys(source).count(), session().survey
    if job is not None and job.running and job.subject == source.fingerprint:
        count -= count % max(1, len(source) // LOOKS)
    return _surveys(source.fingerprint, count, source)


def of_other_collections(source: Source) -> dict[str, Path]:
    """Title → folder of the latest models trained on other collections, that could be opened here."""
    ours = runs_folder(source)
    newest = sorted(ours.parent.glob("*/*/checkpoint.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    titles: dict[str, Path] = {}
    for folder in [path.parent for path in newest if path.parent.parent != ours][:MAX_OFFERED]:
        try:
            description = read_description(folder)  # the weights of all of them may be large
        except CheckpointError:
            continue
        config, targets = description["config"], description["task"].get("targets", ())
        title = title_of(config["model"], targets, config.get("seed", 0))
        titles.setdefault(f"{title}, trained on {description['zoo']}", folder)
    return titles


@st.cache_data(max_entries=8, show_spinner=False)
def _bases(fingerprint: str, _source: Source) -> dict[tuple[str | None, str | None], int]:
    columns = (values(_source, column) for column in ("base_model", "suggested_base"))
    claimed, suggested = ([None if pd.isna(base) else str(base) for base in column] for column in columns)
    return dict(Counter(zip(claimed, suggested, strict=True)))


def bases_of(source: Source) -> dict[tuple[str | None, str | None], int]:
    """How many of its LoRAs have each base model: as claimed, and as the shapes suggest."""
    return _bases(source.fingerprint, source)


def known_base(source: Source) -> str:
    """The folder of the base model that this collection's files name, when it comes with what can be opened; empty when
    it does not.
    """
    named = {claimed for claimed, _ in bases_of(source)}
    folder = access().bases.get(Path(named.pop() or "").name) if len(named) == 1 else None
    return "" if folder is None else str(folder)


@st.cache_resource(max_entries=2, show_spinner=False)
def painter(base: str, device: str) -> Painter:
    """A base model that draws; it is opened at its first image."""
    return Painter(base, device)
