"""What a checkpoint says about itself to people: the model card, and the command that makes it again."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING

from lol_core.collections.names import counted, short_name
from lol_core.collections.runs import training_runs
from lol_core.learning.metrics import METRIC_TITLES
from lol_core.learning.models import find_model
from lol_core.learning.models.registry import VARIABLE

if TYPE_CHECKING:
    from lol_core.learning.checkpoint import Checkpoint

FREE = ("model_config", "device", "mixed_precision")
"""Settings that are no options of the command, and that decide no more than rounding."""
OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        "epochs batch_size learning_rate weight_decay patience class_weights shuffled_control"
        " width dropout normalize equivariant_width equivariant_layers mean_products"
    ).split()
} | {"group_column": "--group", "split_column": "--split", "only": "--only"}
"""Setting → option of `lol train`."""


def model_card(checkpoint: Checkpoint) -> str:
    """The model card, with the fields that the hub reads at its head."""
    name = checkpoint.config.model
    needs = f"- `{name}` is no model of lol_core: who uses it needs the file that defines it, named in `{VARIABLE}`."
    outside = [] if find_model(name).__module__.startswith("lol_core.") else [needs]
    copies = [f"- {sentence}" for sentence in (*copies_told(checkpoint), *runs_told(checkpoint))]
    kept = checkpoint.model.gives_away or ("what it remembers" if checkpoint.model.memorizes else "")
    given = [f"- **It holds {kept} of its training LoRAs: who publishes it publishes them.**"] if kept else []
    headline, shown = checkpoint.task.headline, list(next(iter(checkpoint.metrics.values()), {}))
    lines = [
        "---",
        "library_name: lol_core",
        "tags:",
        *(f"- {tag}" for tag in ("lora", "learning-on-loras", name)),
        "---",
        "",
        f"# {checkpoint.title}",
        "",
        (
            f"A LoL model that predicts {', '.join(checkpoint.task.targets)} ({checkpoint.task.kind}) from the weights"
            f" of a LoRA. Symmetry: {checkpoint.model.symmetry or 'none'}."
        ),
        "",
        f"- Trained on `{checkpoint.zoo}` (fingerprint {checkpoint.fingerprint}): "
        + ", ".join(f"{len(ids)} {part}" for part, ids in checkpoint.split.items())
        + " LoRAs"
        + (f" with {', '.join(checkpoint.config.only)}" if checkpoint.config.only else "")
        + f", seed {checkpoint.config.seed}"
        + (f", grouped by {checkpoint.config.group_column}" if checkpoint.config.group_column else "")
        + (f", in the parts of {checkpoint.config.split_column}." if checkpoint.config.split_column else "."),
        (
            f"- Input: {len(checkpoint.spec.modules)} modules, rank {checkpoint.spec.rank};"
            f" {checkpoint.model.n_parameters:,} parameters."
        ),
        f"- {len(checkpoint.left_out)} LoRAs and {len(checkpoint.left_out_modules)} modules were left out.",
        *copies,
        *given,
        *outside,
        "" if checkpoint.finished else "- **Training was stopped before its end.**",
        "",
        "| part | " + " | ".join(METRIC_TITLES.get(name, name) for name in shown) + " |",
        "|---|" + "---|" * len(shown),
    ]
    rows = list(checkpoint.metrics.items()) + [
        (f"test, control: {name}", values) for name, values in checkpoint.controls.items()
    ]
    lines += [
        f"| {part} | " + " | ".join(_number(values.get(name, math.nan)) for name in shown) + " |"
        for part, values in rows
    ]
    if checkpoint.interval:
        lines += [
            "",
            (
                f"95 % bootstrap interval of the test {METRIC_TITLES[headline]}: {checkpoint.interval[0]:.3f} to"
                f" {checkpoint.interval[1]:.3f}."
            ),
        ]
    if again := command(checkpoint):
        lines += [
            "",
            f"The same again, where `{checkpoint.zoo}` stands for the collection's path or address (with `--labels"
            " TABLE` where they are not in the collection):",
            "",
            "```",
            again,
            "```",
        ]
    return "\n".join(lines) + "\n"


def copies_told(checkpoint: Checkpoint) -> list[str]:
    """A sentence on how many LoRAs are copies of others, or of the test part those that the model knows, if any are."""
    if recalled := checkpoint.recalled:
        told = f"Of the test part {counted(recalled, 'LoRA')} the model knows by a copy"
        return [f"{told}: there the score says nothing."]
    if copies := checkpoint.copies:
        kept = "" if checkpoint.config.split_column else ", in the same part as those"
        return [f"Copies of others among these: {counted(copies, 'LoRA')}{kept}."]
    return []


def runs_told(checkpoint: Checkpoint) -> list[str]:
    """How many training runs have checkpoints in several parts, by their names, in a sentence if two or more do: one
    may as well be a series of numbered LoRAs.
    """
    part_of = {id: part for part, ids in checkpoint.split.items() for id in ids}
    runs = training_runs({id: short_name(id) for id in part_of})
    parts = runs.index.to_series().map(part_of).groupby(runs["run"]).nunique()
    astride = parts.index[parts > 1]
    if len(astride) < 2:
        return []
    return [
        f"{len(astride)} training runs, by the names of their checkpoints, lie in several parts, such as {astride[0]}:"
        " keep each together by a label that names it, with --group or on the page Train; `lol labels` offers folders."
    ]


def _number(value: float) -> str:
    """Four digits; a dash where it is not known, as the rank correlation of a constant."""
    return "–" if math.isnan(value) else f"{value:.4g}"


def command(checkpoint: Checkpoint) -> str | None:
    """The command line that trains the same; None where a setting is none of its options."""
    config, kind = checkpoint.config, find_model(checkpoint.config.model)
    usual = type(config)(model=config.model)
    chosen = {name: value for name, value in vars(config).items() if name not in (*FREE, "model", "seed")}
    own, usual_own = vars(config.shape), vars(kind.configure())
    changed = {name: value for name, value in chosen.items() if value != getattr(usual, name)}
    changed |= {name: value for name, value in own.items() if value != usual_own[name]}
    if not changed.keys() <= OPTIONS.keys():
        return None
    words = ["lol", "train", "--zoo", checkpoint.zoo]
    for target in checkpoint.task.targets:
        words += ["--target", target]
    words += ["--model", config.model, "--seed", str(config.seed)]
    for name, value in changed.items():
        if isinstance(value, bool):
            words += [OPTIONS[name]] * value
        else:
            for each in value if isinstance(value, tuple) else [value]:
                words += [OPTIONS[name], str(each)]
    return shlex.join([*words, "--out", "FOLDER"])
