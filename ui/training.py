"""How models are to be trained, as chosen on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd
import streamlit as st

from lol_core.collections.source import Source
from lol_core.insight.scores import describe
from lol_core.learning.config import TrainingConfig
from lol_core.learning.devices import devices
from lol_core.learning.models import MODELS
from lol_core.learning.models.apart import Apart
from lol_core.learning.models.gl_net import Order
from lol_core.learning.models.layers import NONLINEARITIES
from lol_core.learning.only import conditions
from lol_core.learning.plan import Plan
from lol_core.learning.tasks import Multiclass, kind_of
from lol_core.learning.training import plan
from ui.keys import key
from ui.numbers import outside
from ui.state import runs_folder
from ui.work import Run

KEPT: dict[str, Any] = {"persist_state": "session"}
"""What is set stays while other pages are looked at."""
_DATE = r"\s*(\d{4}([-./])\d{1,2}\2\d{1,2}|\d{1,2}([-./])\d{1,2}\3\d{4})\b"
PAPER = "https://arxiv.org/abs/2410.04207"


@dataclass(frozen=True)
class Field:
    """A number to choose: where its column is, its name, its label, its limits, and what it starts with."""

    column: int
    name: str
    label: str
    low: float
    high: float
    start: float | None
    help: str | None = None

    def problem(self, value: float | None) -> str | None:
        """What is wrong with a number that was typed."""
        return outside(self.label, value, self.low, self.high)


EVERY_SEED = "Each model is trained once for every seed: another split, another initialisation."
PATIENCE = "Stop after so many epochs without a better validation loss; 0: never."
HOW = (
    Field(0, "seeds", "Seeds", 1, 10, 1, EVERY_SEED),
    Field(0, "first_seed", "First seed", 0, 10_000, 0),
    Field(0, "folds", "Folds of the cross-validation", 2, 20, 5),
    Field(1, "epochs", "Epochs, at most", 1, 2000, 60),
    Field(1, "patience", "Patience", 0, 2000, 15, PATIENCE),
    Field(2, "learning_rate", "Learning rate", 1e-6, 1.0, 1e-3),
    Field(2, "weight_decay", "Weight decay", 0.0, 10.0, 0.0),
    Field(3, "batch_size", "Batch size", 1, 1024, 32),
)
WHAT = (
    Field(0, "width", "Width of the head", 4, 1024, None, "Empty: each model's own."),
    Field(0, "depth", "Hidden layers of the head", 1, 8, 2),
    Field(1, "equivariant_width", "GL-net: equivariant width", 1, 256, 16),
    Field(1, "equivariant_layers", "GL-net: equivariant layers", 1, 6, 1),
    Field(2, "dropout", "Dropout in the head", 0.0, 0.9, 0.0),
)
NORMALIZE = f"Divide each module's U and V by its training standard deviation. [The paper]({PAPER}) does not."
MEAN = f"GL-net as the paper has it for CLIP scores ([appendix D.1.1]({PAPER}))."
SPLIT = (
    "A label that says train, validation or test of each LoRA, such as the split of a paper. Cross-validation draws its"
    " folds all the same."
)
READS = {Order.FIRST: "P = Φ ΔW Ψᵀ", Order.COLUMNS: "P Pᵀ"}
ORDER = (
    "P is the paper's. P Pᵀ keeps less of where A started: it may tell more of LoRAs that each began at their own draw"
    " (page Experiments, *Second order*)."
)
APART = (
    "GL-net, W2T and MVProbe: every ΔW over its norm, log ‖ΔW‖ beside it, and all of it linearly too. Ours, and in none"
    " of the papers (page Experiments, *Size apart*)."
)
SIGMA = f"[Equation (6)]({PAPER}); used between equivariant layers."


@dataclass(frozen=True)
class Choice:
    """What to train. how: fields of a `TrainingConfig`; what: options of models, of which each takes its own, None
    for what each has itself. problems: which numbers are out of their limits, in sentences.
    """

    targets: tuple[str, ...]
    models: tuple[str, ...]
    first_seed: int
    seeds: int
    folds: int
    how: Mapping[str, Any]
    what: Mapping[str, Any]
    problems: tuple[str, ...] = ()

    def config(self, model: str, seed: int | None = None) -> TrainingConfig:
        seed = self.first_seed if seed is None else seed
        return TrainingConfig(model=model, model_config=MODELS[model].configure(**self.what), seed=seed, **self.how)

    def configs(self) -> dict[str, TrainingConfig]:
        """Title → configuration at the first seed."""
        return {MODELS[name].title: self.config(name) for name in self.models}

    def first_plan(self, source: Source) -> Plan:
        """Of the first run, when every model at the first seed and the first model at every seed can be planned: a seed
        decides the split, a model what it takes. Raises LoLError with what is wrong.
        """
        first, *others = self.models
        configs = [self.config(first, self.first_seed + i) for i in range(self.seeds)]
        plans = [plan(source, list(self.targets), config) for config in [*configs, *map(self.config, others)]]
        return plans[0]

    def runs(self, source: Source, seeds: int) -> list[Run]:
        """Every model at so many seeds, planned. Raises LoLError with what is wrong."""
        runs = []
        for name in self.models:
            for seed in range(self.first_seed, self.first_seed + seeds):
                config = self.config(name, seed)
                out = runs_folder(source) / f"{datetime.now():%Y%m%d-%H%M%S-%f}-{name}-seed{seed}"
                title = f"{MODELS[name].title}, seed {seed}"
                runs.append(Run(title, plan(source, list(self.targets), config), config, out))
        return runs


@st.cache_data(max_entries=64, show_spinner="Looking at what would be trained …")
def _described(state: tuple[object, ...], _choice: Choice, _source: Source) -> list[str]:
    return describe(_choice.first_plan(_source))


def described(source: Source, choice: Choice) -> list[str]:
    """What the first run would train, and what is left out, in sentences. Raises LoLError with what is wrong with any
    of the runs.
    """
    state = source.fingerprint, source.labels_digest, choice.targets, repr(choice.configs()), choice.seeds
    return _described(state, choice, source)


@st.cache_data(max_entries=8, show_spinner=False)
def _conditions(fingerprint: str, labels: str, _source: Source) -> dict[str, int]:
    return conditions(_source)


def choose_some(source: Source) -> tuple[str, ...]:
    """Conditions on the LoRAs that take part, where they differ by anything."""
    counts = _conditions(source.fingerprint, source.labels_digest, source)
    if not counts:
        return ()
    return tuple(
        st.multiselect(
            "Only LoRAs with",
            list(counts),
            format_func=lambda condition: f"{condition.replace('=', ' ')} ({counts[condition]:,})",
            placeholder="all LoRAs",
            key=key("only"),
            bind="query-params",
            help="A model reads the modules that all of them have. Of one name any of those chosen.",
        )
    )


def told(labels: pd.Series) -> str:
    """What a column of labels would be learnt as; of numbers and dates that are read as classes also why."""
    values, kind = labels.dropna(), kind_of(labels).kind
    text = f"{kind}, {len(values):,} labelled"
    if kind != Multiclass.kind:
        return text
    words = values.astype(str).drop_duplicates()
    odd = words[pd.to_numeric(words, errors="coerce").isna()]
    bare = words.str.strip().str.rstrip(" %").str.replace(",", ".")
    why = ""
    if len(odd) and pd.to_numeric(bare, errors="coerce").notna().mean() > 0.5:
        why = f"; most are numbers, but not {odd.iloc[0]!r}, so each is a class"
    elif len(odd) and words.str.match(_DATE).mean() > 0.5:
        why = "; dates, of which each is a class, without their order: for that write numbers, such as days"
    return f"{text}, {len(words):,} classes{why}"


def choose_training(
    labels: pd.DataFrame, targets: Sequence[str], models: Sequence[str], only: tuple[str, ...]
) -> Choice:
    """The settings of a training, in an expander. only: which LoRAs take part."""
    with st.expander("Settings", icon=":material/tune:", key=key("settings")):
        columns = st.columns(4)
        how = {field.name: _number(field, columns[field.column]) for field in HOW}
        how["device"] = columns[3].selectbox("Device", ["auto", *devices()], key=key("device"), **KEPT)
        columns = st.columns(4)
        what = {field.name: _number(field, columns[field.column]) for field in WHAT}
        label = "GL-net: σ of the nonlinearity"
        what["sigma"] = columns[2].selectbox(label, list(NONLINEARITIES), key=key("sigma"), help=SIGMA, **KEPT)
        what["order"] = columns[1].selectbox(
            "GL-net: the head reads",
            list(Order),
            format_func=lambda order: READS[order],
            key=key("order"),
            help=ORDER,
            **KEPT,
        )
        groups, last = [None, *labels.columns], columns[3]
        how["group_column"] = last.selectbox(
            "Keep together in the split", groups, format_func=lambda g: g or "(nothing)", key=key("group"), **KEPT
        )
        how["split_column"] = last.selectbox(
            "Parts from a label", groups, format_func=lambda g: g or "(drawn)", key=key("split"), help=SPLIT, **KEPT
        )
        what["normalize"] = last.toggle("Normalise inputs", key=key("normalize"), help=NORMALIZE, **KEPT)
        what["mean_products"] = last.toggle("Mean of products", key=key("mean_products"), help=MEAN, **KEPT)
        apart = last.toggle("Size apart", key=key("apart"), help=APART, **KEPT)
        what["apart"] = frozenset(Apart) if apart else frozenset()
        text = "Weigh rare classes more."
        how["class_weights"] = last.toggle("Class weights", key=key("class_weights"), help=text, **KEPT)
        text = "Also fit each model to permuted labels. Doubles the time."
        how["shuffled_control"] = last.toggle("Shuffled control", key=key("shuffled"), help=text, **KEPT)
    how["only"] = only
    values = how | what
    problems = [problem for field in (*HOW, *WHAT) if (problem := field.problem(values[field.name]))]
    first, seeds, folds = how.pop("first_seed"), how.pop("seeds"), how.pop("folds")
    return Choice(tuple(targets), tuple(models), first, seeds, folds, how, what, tuple(problems))


def _number(field: Field, place: Any) -> Any:
    whole = all(isinstance(limit, int | None) for limit in (field.low, field.high, field.start))
    options = {"step": 1} if whole else {"format": "%g"}
    return place.number_input(field.label, value=field.start, key=key(field.name), help=field.help, **KEPT, **options)
