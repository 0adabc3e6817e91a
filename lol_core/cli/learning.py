"""Commands that learn and predict: `train`, `crossvalidate`, `predict`. Defaults are those of the configurations."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lol_core.cli.console import (
    KEPT,
    Amount,
    AsJson,
    Count,
    Device,
    LabelsFile,
    PartsLabel,
    Passes,
    Seed,
    Share,
    Workers,
    err,
    interrupted,
    on_cluster,
    open_collection,
    out,
    print_json,
    print_table,
    stoppable,
)
from lol_core.errors import LoLError
from lol_core.learning.storage import Storage

if TYPE_CHECKING:
    from lol_core.learning.checkpoint import Checkpoint
    from lol_core.learning.crossvalidation import Folds

MODEL_NAMES = (
    "mlp, o_align, svd, dense, gl_net, dsire, spectral, w2t, mvprobe, probex, tucker, two_orders,"
    " nearest_spectra, spectral_sizes, triplets, views"
)


Patience = Annotated[
    int, typer.Option(min=0, help="Epochs without a better validation loss before stopping; 0: never.")
]
Width = Annotated[int | None, typer.Option(min=1, help="Width of the head; by default the model's own.")]
OfGLNet = Annotated[int, typer.Option(min=1, help="GL-net only.")]
MeanProducts = Annotated[
    bool, typer.Option("--mean-products", help="GL-net only: the mean of each product (appendix D.1.1).")
]
Normalize = Annotated[
    bool, typer.Option("--normalize", help="Divide each module's factors by their training standard deviation.")
]
ClassWeights = Annotated[bool, typer.Option("--class-weights", help="Weigh rare classes more.")]
Only = Annotated[
    list[str] | None,
    typer.Option(
        help="Take LoRAs with NAME=VALUE alone: base, rank, kind (such as LoRA or LoRA with DoRA) or a label; several"
        " of one name mean any of them."
    ),
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Any other choice that the model has, as depth=1, GL-net's order=columns or apart='unit norm,log sizes'; a"
        " name that it does not have is answered by those that it has.",
    ),
]
Stored = Annotated[Storage, typer.Option(help="How factors are kept; those of 16 bits take half the place.")]


def train(
    zoo: Annotated[str, typer.Option(help="A folder, archive or address of LoRAs.")],
    *,
    target: Annotated[list[str], typer.Option(help="Label column to predict; may be given several times.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Where the checkpoint goes.")],
    model: Annotated[str, typer.Option(help=f"One of {MODEL_NAMES}, or of your own.")] = "gl_net",
    seed: Seed = 0,
    labels: LabelsFile = None,
    epochs: Passes = 60,
    batch_size: Count = 32,
    learning_rate: Amount = 1e-3,
    weight_decay: Amount = 0.0,
    patience: Patience = 15,
    width: Width = None,
    dropout: Share = 0.0,
    equivariant_width: OfGLNet = 16,
    equivariant_layers: OfGLNet = 1,
    mean_products: MeanProducts = False,
    normalize: Normalize = False,
    option: Option = None,
    class_weights: ClassWeights = False,
    group: Annotated[str | None, typer.Option(help="Label column whose groups stay on one side of the split.")] = None,
    split: PartsLabel = None,
    only: Only = None,
    shuffled_control: Annotated[
        bool, typer.Option("--shuffled-control", help="Also fit the model to permuted labels.")
    ] = False,
    storage: Stored = Storage.FLOAT32,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was stopped (Ctrl-C) in the same folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a LoL model and report its test scores beside its controls. Ctrl-C stops it with everything saved."""
    from lol_core.learning.config import TrainingConfig
    from lol_core.learning.leaderboard import verdicts
    from lol_core.learning.metrics import METRIC_TITLES
    from lol_core.learning.models import find_model
    from lol_core.learning.training import plan
    from lol_core.learning.training import train as train_model

    kind = find_model(model)
    shape = kind.configure(
        width=width,
        dropout=dropout,
        equivariant_width=equivariant_width,
        equivariant_layers=equivariant_layers,
        mean_products=mean_products,
        normalize=normalize,
    )
    shape = shape.having(*option or ())
    config = TrainingConfig(
        model=model,
        model_config=shape,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        patience=patience,
        class_weights=class_weights,
        seed=seed,
        storage=storage,
        device=device,
        group_column=group,
        split_column=split,
        only=tuple(only or ()),
        shuffled_control=shuffled_control,
    )
    with stoppable() as reporter:
        opened = open_collection(zoo, labels)
        planned = plan(opened, target, config)

        checkpoint = train_model(opened, planned, config, out_folder, reporter=reporter, resume=resume)
    if int(os.environ.get("RANK", "0")):  # of several processes the first one reports
        return
    report = {
        "model": model,
        "targets": target,
        "task": checkpoint.task.kind,
        "seed": seed,
        "checkpoint": str(out_folder),
        "finished": checkpoint.finished,
        "split": {part: len(ids) for part, ids in checkpoint.split.items()},
        "parameters": checkpoint.model.n_parameters,
        "epochs": len(checkpoint.history),
        "test": dict(checkpoint.metrics["test"]),
        "test by target": checkpoint.metrics["test"].by_target,
        "train": dict(checkpoint.metrics["train"]),
        "interval": checkpoint.interval,
        "controls": {name: dict(scores) for name, scores in checkpoint.controls.items()},
        "verdicts": [asdict(given) for given in verdicts(checkpoint)],
        "left_out": checkpoint.left_out,
        "left_out_modules": list(checkpoint.left_out_modules),
    }
    if as_json:
        print_json(report)
    else:
        names = list(checkpoint.metrics["test"])
        scores = {"train": checkpoint.metrics["train"], "test": checkpoint.metrics["test"]} | {
            f"control: {k}": v for k, v in checkpoint.controls.items()
        }
        print_table(
            [{"": part} | {METRIC_TITLES[name]: values[name] for name in names} for part, values in scores.items()]
        )
        if checkpoint.interval:
            low, high = checkpoint.interval
            headline = METRIC_TITLES[checkpoint.task.headline]
            out.print(f"95 % bootstrap interval of the test {headline}: {low:.3f} to {high:.3f}.", highlight=False)
        _print_parts(checkpoint)
        for given in verdicts(checkpoint):
            out.print(f"It is {given.sentence}. {given.evidence}.", highlight=False, soft_wrap=True)
        out.print(f"{checkpoint.title}: saved in {out_folder}", highlight=False)
    if not checkpoint.finished:
        raise interrupted("Stopped before the end. Go on with the same command and --resume.")


def _print_parts(checkpoint: Checkpoint) -> None:
    """How many LoRAs were learnt from and judged by, and what took no part."""
    from lol_core.learning.card import copies_told, runs_told

    sizes = {part: len(ids) for part, ids in checkpoint.split.items()}
    parts = f"{sum(sizes.values())} LoRAs: {', '.join(f'{count} {part}' for part, count in sizes.items())}."
    for line in (parts, *copies_told(checkpoint), *runs_told(checkpoint), *_left_out(checkpoint)):
        out.print(line, highlight=False, soft_wrap=True)


def _left_out(result: Checkpoint | Folds) -> list[str]:
    """What took no part, in sentences."""
    lines = []
    if result.left_out:
        lora, why = next(iter(result.left_out.items()))
        lines.append(f"{len(result.left_out)} left out, such as {lora}: {why}")
    if modules := result.left_out_modules:
        lines.append(
            f"Modules that not all of them have, and that were not read: {len(modules)}, such as {modules[0]}."
        )
    return lines


def crossvalidate(
    zoo: Annotated[str, typer.Option(help="A folder, archive or address of LoRAs.")],
    *,
    target: Annotated[list[str], typer.Option(help="Label column to predict; may be given several times.")],
    model: Annotated[str, typer.Option(help=f"One of {MODEL_NAMES}, or of your own.")] = "gl_net",
    folds: Annotated[int, typer.Option(min=2)] = 5,
    seed: Seed = 0,
    labels: LabelsFile = None,
    epochs: Passes = 60,
    batch_size: Count = 32,
    learning_rate: Amount = 1e-3,
    weight_decay: Amount = 0.0,
    patience: Patience = 15,
    width: Width = None,
    dropout: Share = 0.0,
    equivariant_width: OfGLNet = 16,
    equivariant_layers: OfGLNet = 1,
    mean_products: MeanProducts = False,
    normalize: Normalize = False,
    option: Option = None,
    class_weights: ClassWeights = False,
    group: Annotated[str | None, typer.Option(help="Label column whose groups stay in one fold.")] = None,
    only: Only = None,
    storage: Stored = Storage.FLOAT32,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Predict every LoRA by a model that has not seen it, and say how much better that ranks them than the controls
    do.
    """
    from lol_core.insight.scores import over_folds
    from lol_core.learning.config import TrainingConfig
    from lol_core.learning.crossvalidation import crossvalidate as cross_validate
    from lol_core.learning.metrics import METRIC_TITLES
    from lol_core.learning.models import find_model

    kind = find_model(model)
    shape = kind.configure(
        width=width,
        dropout=dropout,
        equivariant_width=equivariant_width,
        equivariant_layers=equivariant_layers,
        mean_products=mean_products,
        normalize=normalize,
    )
    shape = shape.having(*option or ())
    config = TrainingConfig(
        model=model,
        model_config=shape,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        patience=patience,
        class_weights=class_weights,
        seed=seed,
        storage=storage,
        device=device,
        group_column=group,
        only=tuple(only or ()),
    )
    with stoppable() as reporter:
        opened = open_collection(zoo, labels)
        validated = cross_validate(opened, target, config, folds, reporter=reporter)
    scores, controls = validated.scores(), [name for name in validated.predicted if name != "model"]
    metric = validated.task.ranked
    differences = {name: validated.difference(name) for name in controls}
    if as_json:
        print_json(
            {
                "model": model,
                "targets": target,
                "folds": folds,
                "seed": seed,
                "LoRAs": len(validated.truth),
                "mean and std over folds": scores,
                "pooled": {name: dict(pooled) for name, pooled in validated.pooled().items()},
                "compared by": metric,
                "model less control": {name: asdict(gap) for name, gap in differences.items()},
                "left_out": validated.left_out,
                "left_out_modules": list(validated.left_out_modules),
            }
        )
        return
    names = list(scores["model"])
    print_table(
        [
            {"": part} | {METRIC_TITLES[name]: over_folds(*values[name]) for name in names}
            for part, values in scores.items()
        ]
    )
    for line in (f"{len(validated.truth)} LoRAs in {folds} folds.", *_left_out(validated)):
        out.print(line, highlight=False, soft_wrap=True)
    for name, gap in differences.items():
        line = (
            f"{METRIC_TITLES[metric]} within folds, {model} less {name}: {gap.value:+.3f}"
            f" (95 % {gap.low:+.3f} to {gap.high:+.3f})"
        )
        out.print(line, highlight=False, soft_wrap=True)


def predict(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder.")],
    *,
    address: Annotated[str, typer.Argument(help="A LoRA file or PEFT folder; or a collection of many.")],
    device: Device = "auto",
    workers: Workers = "1",
    as_json: AsJson = False,
) -> None:
    """What a trained model says about a LoRA or about every LoRA of a collection, and which of them are unlike those
    that it was trained on.
    """
    from lol_core.collections.folder import load_file
    from lol_core.collections.opening import is_collection
    from lol_core.collections.store import Store
    from lol_core.formats import IN_FOLDER
    from lol_core.learning.answers import Answers
    from lol_core.learning.checkpoint import Checkpoint
    from lol_core.learning.known import UNLIKE

    finished = True
    with stoppable() as reporter:
        model = Checkpoint.load(checkpoint, device)
        notes: list[str] = []
        path = Path(address)
        if is_collection(address) and not any((path / name).is_file() for name in IN_FOLDER):
            zoo = open_collection(address, reporter=reporter.part(0.0, 0.1), readers=on_cluster(workers))
            if not len(zoo) and not zoo.refused:
                raise LoLError(f"There is no LoRA in {address}.")
            notes = model.compare(zoo)
            answers = Answers.of(model, zoo, workers=workers, reporter=reporter.part(0.1, 1.0), store=Store())
            finished = len(answers.values) + len(answers.refused) == len(zoo)
        else:
            lora = load_file(path, str(path))
            if problems := model.spec.misfits(lora):
                raise LoLError(f"{path} does not fit this model: {' '.join(problems)}")
            answers, notes = Answers.of_lora(model, lora, str(path)), [*lora.notes, *model.doubts(lora)]
    outside = answers.marks["outside"].astype(bool)
    if as_json:
        print_json(
            {
                "model": model.title,
                "predictions": answers.values.to_dict("index"),
                "outside": outside.to_dict(),
                "finished": finished,
                "refused": answers.refused,
                "notes": notes,
            }
        )
    else:
        marks = {id: {"outside": "yes" if far else ""} for id, far in outside.items()}
        print_table([{"lora": id} | row | marks.get(id, {}) for id, row in answers.values.to_dict("index").items()])
        for id, reason in answers.refused.items():
            err.print(f"{id}: {reason}", highlight=False, soft_wrap=True)
        if outside.any():
            notes.append(f"{outside.sum()} of {len(outside)}, marked as outside, are {UNLIKE}.")
        for note in notes:
            err.print(note, highlight=False, soft_wrap=True)
    if not finished:
        raise interrupted(f"Stopped before the end: these are the predictions so far. {KEPT}")
