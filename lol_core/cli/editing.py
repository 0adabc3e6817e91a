"""`edit`: a LoRA changed towards a wished label, written as a file that other programs load. `editor`: a network that
is trained to do so. `sample`: new LoRAs from the distribution of a collection.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lol_core.cli.console import (
    LARGEST_SEED,
    AsJson,
    LabelsFile,
    Readers,
    Seed,
    at_least_zero,
    err,
    open_collection,
    out,
    print_json,
    print_table,
    stoppable,
)
from lol_core.cli.inputs import id_of, loras_of, only_of, read_all
from lol_core.cli.rewriting import AsForm, AsWidth, Force, Form, Inputs, Job, Out, told_of, write_resized, write_whole
from lol_core.collections.names import user_path
from lol_core.errors import DataMissingError

if TYPE_CHECKING:
    from lol_core.collections.source import Source
    from lol_core.core.lora import LoRA
    from lol_core.core.progress import Reporter


EPOCHS = 25
"""As `learning.editor.EditorConfig`, which takes PyTorch's time to import."""


class Direction(StrEnum):
    """As `insight.editing.Method`, which takes PyTorch's time to import."""

    LINEAR = "linear"
    PATTERN = "pattern"
    GRADIENT = "gradient"
    EQUIVARIANT = "equivariant"
    RANDOM = "random"


def edit(
    lora: Annotated[str, typer.Argument(help="A file, a PEFT folder, or with --of a LoRA of that collection.")],
    *,
    checkpoint: Annotated[Path, typer.Option(help="The model whose prediction is to change; it must be GL-invariant.")],
    to: Annotated[str, typer.Option("--to", help="The wish: Smiling=1, clip_score=2, class=dog.")],
    out_path: Annotated[Path, typer.Option("--out", help="The file, or for PEFT the folder, that is written.")],
    collection: Annotated[
        str | None,
        typer.Option(
            "--of",
            metavar="FOLDER|ARCHIVE|PATTERN|ADDRESS",
            help="The collection that the model was trained on, of which directions are made; all but gradient need"
            " it.",
        ),
    ] = None,
    labels: LabelsFile = None,
    method: Annotated[
        Direction,
        typer.Option(
            help="linear: how the collection's updates go with the label; pattern: with the model's gradient, without"
            " labels; gradient: of the model alone, which changes the prediction more than what the LoRA does;"
            " equivariant: a network trained to edit, which `lol editor` makes; random: the control."
        ),
    ] = Direction.LINEAR,
    size: Annotated[float, typer.Option(help="How far ΔW moves, as a share of ‖ΔW‖.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the random direction.")] = 0,
    to_form: Annotated[
        Form | None, typer.Option("--format", case_sensitive=False, help="The form; by default the file's own.")
    ] = None,
    dtype: AsWidth = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Change a LoRA so that a model says something else of it: same modules, same rank, ready for diffusers."""
    with stoppable() as reporter:
        from lol_core.insight.editing import NEEDS, Method
        from lol_core.insight.editing import edit as edit_loras
        from lol_core.learning.answers import is_outside
        from lol_core.learning.checkpoint import Checkpoint
        from lol_core.learning.editor import Editor
        from lol_core.learning.goal import Goal
        from lol_core.learning.known import UNLIKE
        from lol_core.learning.members import Members

        model = Checkpoint.load(checkpoint)
        goal, chosen = Goal.parse(model.task, to), Method(method)
        if chosen in NEEDS and collection is None:
            raise DataMissingError(
                f"The method {chosen} needs {NEEDS[chosen]}: give --of with what the model was trained on"
                f" ({model.zoo}), or --method gradient."
            )
        source = None if collection is None else open_collection(collection, labels, reporter=reporter.part(0.0, 0.1))
        given = _lora(lora, source, reporter.part(0.1, 0.2))
        needed = source if chosen in NEEDS else None
        editor = Editor.load(model) if chosen is Method.EQUIVARIANT else None
        members = None if needed is None else Members.of(model, needed, reporter.part(0.2, 0.8))
        part = reporter.part(0.2 if members is None else 0.8, 1.0)
        made = edit_loras(
            model,
            [given],
            goal,
            method=chosen,
            size=size,
            members=members,
            editor=editor,
            seed=seed,
            reporter=part,
        )[0]
        row = write_whole(made.lora, out_path, Job(out_path.parent, to_form, dtype, force), [given])
    steps = [
        {"moved": moved, goal.reading: float(value)}
        for moved, value in zip(made.moved, goal.read(made.predictions), strict=True)
    ]
    modules = [{"module": name, "moved": float(gap)} for name, gap in made.by_module.items()]
    report = {"lora": lora, "model": model.title, "to": goal.name, "method": str(chosen)}
    outside = is_outside(model, made.lora)
    if as_json:
        way = {"steps": steps, "written step": made.reached, "wish met": made.met, "outside": outside}
        print_json(report | way | {"modules": modules} | row | told_of(given))
        return
    print_table(steps)
    print_table(modules[:5])
    step = ", ".join(f"{name} {number:.4g}" for name, number in steps[made.reached].items())
    out.print(f"Written to {row['written']} as {row['form']}: the step of {step}.", highlight=False, soft_wrap=True)
    for note in given.notes:
        err.print(note, highlight=False, soft_wrap=True)
    if outside:
        out.print(f"To the model it is {UNLIKE}.", highlight=False, soft_wrap=True)
    if not made.met:
        text = f"The wish {goal.name} is not reached: give a larger --size, or another --method."
        out.print(text, highlight=False, soft_wrap=True)


def editor(
    checkpoint: Annotated[Path, typer.Argument(help="The model that it follows; it must be GL-invariant.")],
    *,
    collection: Annotated[
        str,
        typer.Option(
            "--of", metavar="FOLDER|ARCHIVE|PATTERN|ADDRESS", help="The collection that the model was trained on."
        ),
    ],
    labels: LabelsFile = None,
    epochs: Annotated[int, typer.Option(min=1, help="Over the model's training part.")] = EPOCHS,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Of its first weights and of what it is shown.")
    ] = 0,
    force: Force = False,
) -> None:
    """Train a network that gives LoRAs back to edit what a model reads, for `edit --method equivariant`. It is written
    beside the model.
    """
    with stoppable() as reporter:
        from lol_core.learning.checkpoint import Checkpoint
        from lol_core.learning.editor import FILE, EditorConfig, train_editor
        from lol_core.learning.members import Members

        model = Checkpoint.load(checkpoint)
        if (checkpoint / FILE).exists() and not force:
            raise DataMissingError(f"{checkpoint / FILE} is there already. Give --force to train another.")
        source = open_collection(collection, labels, reporter=reporter.part(0.0, 0.05))
        members = Members.of(model, source, reporter.part(0.05, 0.15))
        config = EditorConfig(epochs=epochs, seed=seed)
        train_editor(model, members, config, reporter=reporter.part(0.15, 1.0)).save(checkpoint)
    out.print(f"Written to {checkpoint / FILE}.", highlight=False, soft_wrap=True)


def sample(
    inputs: Inputs,
    *,
    out_folder: Out,
    count: Annotated[int, typer.Option(min=1, help="How many are made.")] = 10,
    rank: Annotated[int | None, typer.Option(min=1, help="Of each; by default the inputs' largest.")] = None,
    components: Annotated[
        int | None, typer.Option(min=1, help="The principal components of largest variance that vary; by default all.")
    ] = None,
    spread: Annotated[
        float,
        typer.Option(callback=at_least_zero, help="How far they are from the mean: 1 as the collection, 0 the mean."),
    ] = 1.0,
    seed: Seed = 0,
    to: AsForm = None,
    dtype: AsWidth = None,
    force: Force = False,
    workers: Readers = None,
    as_json: AsJson = False,
) -> None:
    """Make new LoRAs by a Gaussian over the principal components of the updates of many of one base model. What another
    gauge changes plays no part.
    """
    with stoppable() as reporter:
        from lol_core.insight.principal import sample_new

        loras = read_all(
            [load for _, load in loras_of(inputs, reporter.part(0.0, 0.1), workers, written=[out_folder])],
            reporter.part(0.1, 0.5),
            workers,
        )
        job, rows = Job(out_folder, to, dtype, force), []
        made = sample_new(
            loras, count, rank=rank, components=components, spread=spread, seed=seed, reporter=reporter.part(0.5, 1.0)
        )
        for number, one in enumerate(made, 1):
            rows.append({"lora": f"{number:04d}"} | write_resized(one, out_folder / f"{number:04d}", job, loras))
    print_json({"from": len(loras), "written": rows}) if as_json else print_table(rows)


def _lora(name: str, source: Source | None, reporter: Reporter) -> LoRA:
    """A LoRA of the collection where it is named so there, else a file of its own."""
    if source is not None and not os.path.exists(user_path(name)):
        return source.load(id_of(source, name))
    return only_of(name, f"lol edit ONE --of {name}", reporter)()
