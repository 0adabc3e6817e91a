"""The command line: `python -m lol_core …`. Tables for people, `--json` for machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import Progress as Bar
from rich.progress import TaskID

from lol_core.cli.console import AsJson, bar_for, err, out, print_json, print_table, reported
from lol_core.cli.finetune import finetune
from lol_core.collections.zoo import Zoo
from lol_core.core.batch import stack
from lol_core.core.groups import GROUPS, named
from lol_core.core.progress import Reporter
from lol_core.core.symmetry import TOLERANCES, act, promises, relative_change, sample_for
from lol_core.errors import LoLError
from lol_core.experiments import NAMES as EXPERIMENTS
from lol_core.experiments import run as run_experiment
from lol_core.experiments.result import blocks, write_report
from lol_core.experiments.trials import SMALL, Budget, Context
from lol_core.formats import probe as probe_file
from lol_core.formats import read, suggest_base_model
from lol_core.insight.generation import Painter, Sampling, contact_sheet
from lol_core.learning.checkpoint import Checkpoint, TrainingConfig
from lol_core.learning.crossvalidation import crossvalidate as cross_validate
from lol_core.learning.devices import find_device
from lol_core.learning.evaluation import METRIC_TITLES
from lol_core.learning.leaderboard import verdicts
from lol_core.learning.models import MODELS, ModelConfig, find_model
from lol_core.learning.models.gl_net import GLNetConfig
from lol_core.learning.training import plan
from lol_core.learning.training import train as train_model

app = typer.Typer(
    help="Learning on LoRAs: look at LoRA files, train models that read them, check their symmetry.",
    no_args_is_help=True,
    add_completion=False,
)
app.add_typer(finetune, name="finetune")

LabelsFile = Annotated[
    Path | None, typer.Option("--labels", help="A CSV or Parquet table of labels, if not labels.csv in the folder.")
]


@app.command()
def probe(path: Path, as_json: AsJson = False) -> None:
    """What a file's header says: dialect, modules, ranks, scales, base model. The weights are not read."""
    with reported():
        lora = probe_file(path)
    modules = [
        {
            "name": y.name,
            "kind": y.kind,
            "n": y.n,
            "m": y.m,
            "rank": y.rank,
            "alpha": y.alpha,
            "scale": y.scale,
            "dora": y.magnitude is not None,
            "dtype": y.dtype,
        }
        for y in lora.layers
    ]
    summary = {
        "path": str(path),
        "dialect": lora.dialect,
        "base_model": lora.base_model,
        "suggested_base_model": suggest_base_model(lora),
        "modules": len(modules),
        "ranks": list(lora.ranks),
        "parameters": lora.parameters,
        "dtypes": list(lora.dtypes),
    }
    if as_json:
        print_json(
            summary
            | {
                "modules": modules,
                "metadata": dict(lora.metadata),
                "extras": list(lora.extras),
                "notes": list(lora.notes),
            }
        )
        return
    print_table([{"": key, "value": value} for key, value in summary.items()])
    print_table(modules)
    for note in lora.notes:
        out.print(note, highlight=False)


@app.command()
def scan(folder: Path, labels: LabelsFile = None, as_json: AsJson = False) -> None:
    """Every LoRA of a folder, and every file that is none, with the reason."""
    with reported(), Bar(console=err, transient=True) as bar:
        zoo = Zoo.open(folder, labels, progress=bar_for("Reading headers", bar))
    loaded = [
        {
            "path": e.path,
            "dialect": e.dialect,
            "base_model": e.base_model,
            "modules": e.modules,
            "ranks": list(e.ranks),
            "parameters": e.parameters,
        }
        for e in zoo.entries
    ]
    refused = [{"path": e.path, "reason": e.reason} for e in zoo.refused]
    if as_json:
        about = {
            "folder": str(zoo.folder),
            "fingerprint": zoo.fingerprint,
            "unjoined_labels": list(zoo.unjoined_labels),
            "labels_problem": zoo.labels_problem,
        }
        print_json(about | {"loaded": loaded, "refused": refused})
        return
    print_table(loaded)
    if refused:
        out.print(f"{len(refused)} files were refused:")
        print_table(refused)
    if zoo.labels_problem:
        err.print(zoo.labels_problem, highlight=False, soft_wrap=True)
    out.print(f"{len(loaded)} LoRAs, {len(refused)} refused, {zoo.labels.shape[1]} label columns.", highlight=False)


@app.command()
def train(
    zoo: Annotated[Path, typer.Option(help="The folder of LoRAs.")],
    target: Annotated[list[str], typer.Option(help="Label column to predict; may be given several times.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Where the checkpoint goes.")],
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = "gl_net",
    seed: int = 0,
    labels: LabelsFile = None,
    epochs: int = TrainingConfig.epochs,
    batch_size: int = TrainingConfig.batch_size,
    learning_rate: float = TrainingConfig.learning_rate,
    weight_decay: float = TrainingConfig.weight_decay,
    patience: Annotated[
        int, typer.Option(help="Epochs without a better validation loss before stopping; 0: never.")
    ] = TrainingConfig.patience,
    width: Annotated[int, typer.Option(help="Width of the head.")] = ModelConfig.width,
    dropout: float = ModelConfig.dropout,
    equivariant_width: Annotated[int, typer.Option(help="GL-net only.")] = GLNetConfig.equivariant_width,
    equivariant_layers: Annotated[int, typer.Option(help="GL-net only.")] = GLNetConfig.equivariant_layers,
    mean_products: Annotated[
        bool, typer.Option(help="GL-net only: the mean of each product (appendix D.1.1).")
    ] = False,
    normalize: Annotated[
        bool, typer.Option(help="Divide each module's factors by their training standard deviation.")
    ] = ModelConfig.normalize,
    class_weights: bool = False,
    group: Annotated[str | None, typer.Option(help="Label column whose groups stay on one side of the split.")] = None,
    shuffled_control: Annotated[bool, typer.Option(help="Also fit the model to permuted labels.")] = False,
    device: str = "auto",
    resume: Annotated[
        bool, typer.Option(help="Go on with a training that was stopped (Ctrl-C) in the same folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a LoL model and report its test scores beside its controls. Ctrl-C stops it with everything saved."""
    shape = find_model(model).configure(
        width=width,
        dropout=dropout,
        equivariant_width=equivariant_width,
        equivariant_layers=equivariant_layers,
        mean_products=mean_products,
        normalize=normalize,
    )
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
        device=device,
        group_column=group,
        shuffled_control=shuffled_control,
    )
    interrupted = False
    with reported(), Bar(console=err, transient=True) as bar, _interrupts() as stop:
        opened = Zoo.open(zoo, labels)
        planned = plan(opened, target, config)
        task = bar.add_task("Starting", total=1.0)

        checkpoint = train_model(opened, planned, config, out_folder, reporter_for(bar, task, stop), resume=resume)
        interrupted = not checkpoint.finished
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
        for given in verdicts(checkpoint):
            out.print(f"It is {given.sentence}. {given.evidence}", highlight=False, soft_wrap=True)
        out.print(f"{checkpoint.title}: saved in {out_folder}", highlight=False)
    if interrupted:
        err.print("Stopped before the end. Go on with the same command and --resume.")


@app.command()
def crossvalidate(
    zoo: Annotated[Path, typer.Option(help="The folder of LoRAs.")],
    target: Annotated[list[str], typer.Option(help="Label column to predict; may be given several times.")],
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = "gl_net",
    folds: int = 5,
    seed: int = 0,
    labels: LabelsFile = None,
    epochs: int = TrainingConfig.epochs,
    learning_rate: float = TrainingConfig.learning_rate,
    width: Annotated[int, typer.Option(help="Width of the head.")] = ModelConfig.width,
    dropout: float = ModelConfig.dropout,
    equivariant_width: Annotated[int, typer.Option(help="GL-net only.")] = GLNetConfig.equivariant_width,
    group: Annotated[str | None, typer.Option(help="Label column whose groups stay in one fold.")] = None,
    device: str = "auto",
    as_json: AsJson = False,
) -> None:
    """Predict every LoRA by a model that has not seen it, and say how much better that ranks them than the controls
    do.
    """
    shape = find_model(model).configure(width=width, dropout=dropout, equivariant_width=equivariant_width)
    config = TrainingConfig(
        model=model,
        model_config=shape,
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        group_column=group,
    )
    with reported(), Bar(console=err, transient=True) as bar, _interrupts() as stop:
        opened = Zoo.open(zoo, labels)
        shown = bar.add_task("Starting", total=1.0)
        found = cross_validate(
            opened,
            target,
            config,
            folds,
            reporter_for(bar, shown, stop),
        )
    scores, controls = found.scores(), [name for name in found.predicted if name != "model"]
    metric = found.task.ranked
    differences = {name: found.difference(name) for name in controls}
    if as_json:
        print_json(
            {
                "model": model,
                "targets": target,
                "folds": folds,
                "seed": seed,
                "LoRAs": len(found.truth),
                "mean and std over folds": scores,
                "pooled": {name: dict(pooled) for name, pooled in found.pooled().items()},
                "compared by": metric,
                "model less control": {name: asdict(gap) for name, gap in differences.items()},
            }
        )
        return
    names = list(scores["model"])
    print_table(
        [
            {"": part} | {METRIC_TITLES[name]: f"{values[name][0]:.3f} ± {values[name][1]:.3f}" for name in names}
            for part, values in scores.items()
        ]
    )
    for name, gap in differences.items():
        line = (
            f"{METRIC_TITLES[metric]} over all {len(found.truth)} LoRAs, {model} less {name}: {gap.value:+.3f}"
            f" (95 % {gap.low:+.3f} to {gap.high:+.3f})"
        )
        out.print(line, highlight=False, soft_wrap=True)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(EXPERIMENTS)}.")],
    out_folder: Annotated[
        Path,
        typer.Option(
            "--out", help="results.md and the folder results/ go there; fits that are there are not made again."
        ),
    ],
    samples: Annotated[Path, typer.Option("--zoo", help="The folder of the sample zoos.")] = Path("sample_loras"),
    seeds: int = Budget.seeds,
    small: Annotated[
        bool, typer.Option(help="A few LoRAs, one seed, two epochs: shows how it runs; the scores mean nothing.")
    ] = False,
    work: Annotated[Path, typer.Option(help="Where figure4 puts the LoRAs it makes.")] = Path("build"),
    threads: Annotated[int, typer.Option(help="Threads of PyTorch; the last digits depend on it.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Repeat a table or figure of the paper on the sample zoos, beside the paper's numbers. Ctrl-C stops it; the
    same command goes on.
    """
    torch.set_num_threads(threads)
    with reported(), Bar(console=err, transient=True) as bar, _interrupts() as stop:
        shown = bar.add_task("Starting", total=1.0)

        budget = replace(SMALL if small else Budget(), seeds=1 if small else seeds)
        result = run_experiment(
            name, Context(samples, out_folder / "results" / "fits", budget, reporter_for(bar, shown, stop), work)
        )
        place = result.write(out_folder / "results")
        report = write_report(out_folder)
    if as_json:
        print_json(
            {
                "name": name,
                "title": result.title,
                "cells": result.cells.to_dict("records"),
                "findings": [vars(f) for f in result.findings],
                "settings": result.settings,
                "written": [str(place), str(report)],
            }
        )
        return
    for heading, table in blocks(result.cells):
        print_table(
            [{heading: row} | values for row, values in zip(table.index, table.to_dict("records"), strict=True)]
        )
    for finding in result.findings:
        out.print(f"{finding.holds}: {finding.paper} Here: {finding.here}", highlight=False, soft_wrap=True)
    out.print(f"Written to {place}", highlight=False, soft_wrap=True)


def reporter_for(bar: Bar, task: TaskID, stop: Callable[[], bool]) -> Reporter:
    return Reporter(lambda p: bar.update(task, completed=p.fraction, description=p.message), stop)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks for an orderly stop; a second one interrupts at once."""
    import signal

    pressed: list[int] = []

    def handler(number: int, _frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder.")],
    path: Annotated[Path, typer.Argument(help="A LoRA file, a PEFT folder, or a folder of LoRAs.")],
    as_json: AsJson = False,
) -> None:
    """What a trained model says about a LoRA or about every LoRA of a folder."""
    with reported():
        model = Checkpoint.load(checkpoint)
        notes: list[str] = []
        if path.is_dir() and not any(
            (path / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")
        ):
            zoo = Zoo.open(path)
            notes = model.compare(zoo)
            table, refused = model.predict_zoo(zoo)
        else:
            lora = read(path)
            if problems := model.spec.misfits(lora):
                raise LoLError(f"{path} does not fit this model: {' '.join(problems)}")
            lora.check_finite()
            table, refused = model.task.frame(model.predict([lora]), [str(path)]), {}
    if as_json:
        print_json(
            {
                "model": model.title,
                "predictions": {id: row.to_dict() for id, row in table.iterrows()},
                "refused": refused,
                "notes": notes,
            }
        )
        return
    print_table([{"lora": id} | row.to_dict() for id, row in table.iterrows()])
    for id, reason in refused.items():
        err.print(f"{id}: {reason}", highlight=False, soft_wrap=True)
    for note in notes:
        err.print(note, highlight=False, soft_wrap=True)


@app.command()
def invariance(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder.")],
    lora: Annotated[Path, typer.Option(help="A LoRA file or PEFT folder.")],
    group: Annotated[str, typer.Option(help=f"{', '.join(group.key for group in GROUPS)}.")] = "gl",
    condition: Annotated[float, typer.Option(help="Condition number of R, at least 1 (gl and scaling).")] = 10.0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    trials: int = 8,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """How far a model's prediction moves when the LoRA's factors are replaced by (UR, VR⁻ᵀ): the largest of several
    draws.
    """
    precisions = {"float32": torch.float32, "float64": torch.float64}
    if dtype not in precisions or condition < 1 or trials < 1:
        raise typer.BadParameter("--dtype is float32 or float64, --condition and --trials are at least 1.")
    try:
        drawn_from = named(group)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with reported(), torch.no_grad():
        known = Checkpoint.load(checkpoint)
        one = read(lora)
        one.check_finite()
        model = known.model.to(precisions[dtype])
        batch = stack([one], known.spec, torch.float64).to(dtype=precisions[dtype])
        before = torch.from_numpy(known.task.decode(model(batch)))
        generator = torch.Generator().manual_seed(seed)
        moved = [
            torch.from_numpy(
                known.task.decode(
                    model(act(sample_for(batch, drawn_from, condition=condition, generator=generator), batch))
                )
            )
            for _ in range(trials)
        ]
    changes = [relative_change(after, before) for after in moved]
    promised = promises(model.symmetry, drawn_from)
    report = {
        "model": known.title,
        "symmetry": None if model.symmetry is None else model.symmetry.key,
        "group": group,
        "condition": condition if drawn_from.conditioned else 1.0,
        "dtype": dtype,
        "trials": trials,
        "relative_change": max(changes),
        "promised": promised,
        "holds": max(changes) <= TOLERANCES[precisions[dtype]],
        "prediction_before": before[0].tolist(),
        "prediction_after": moved[changes.index(max(changes))][0].tolist(),
    }
    if as_json:
        print_json(report)
    else:
        print_table([{"": key, "value": value} for key, value in report.items()])


@app.command()
def generate(
    base: Annotated[str, typer.Option(help="The text-to-image model: a diffusers folder or hub id.")],
    prompt: Annotated[list[str], typer.Option(help="What to draw; may be given several times.")],
    out_path: Annotated[
        Path, typer.Option("--out", help="A .png file for one sheet of all, or a folder for single images.")
    ],
    lora: Annotated[
        list[Path] | None,
        typer.Option(
            help="A LoRA file or PEFT folder; may be given several times. The base alone is drawn beside them."
        ),
    ] = None,
    strength: Annotated[float, typer.Option(help="Factor of ΔW; 0 is the base model.")] = 1.0,
    seed: int = Sampling.seed,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = Sampling.steps,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance; 1 is none, Stable Diffusion likes about 7.5.")
    ] = Sampling.guidance,
    device: str = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw images with LoRAs and without, from the same prompts and seed."""
    sampling = Sampling(seed, steps, guidance, strength)
    columns: list[Path | None] = [None, *(lora or [])]
    with reported(), Bar(console=err, transient=True) as bar:
        for given in lora or []:
            if not given.exists():
                raise LoLError(f"{given}: no such file. Give a LoRA file or a PEFT folder.")
        painter = Painter(base, str(find_device(device)))
        show = bar_for("Drawing", bar)
        drawn = []
        for i, path in enumerate(columns):
            show(i, len(columns))
            drawn.append(painter.draw(path, prompt, sampling))
        titles = ["base model" if path is None else path.stem for path in columns]
        written = []
        if out_path.suffix.lower() == ".png":
            out_path.parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(list(zip(*drawn, strict=True)), titles, prompt).save(out_path)
            written.append(out_path)
        else:
            out_path.mkdir(parents=True, exist_ok=True)
            for title, images in zip(titles, drawn, strict=True):
                for i, image in enumerate(images, 1):
                    written.append(out_path / f"{title.replace(' ', '-')}-{i:02d}.png")
                    image.save(written[-1])
    if as_json:
        print_json(
            {
                "base": base,
                "loras": [str(p) for p in lora or []],
                "prompts": prompt,
                "sampling": vars(sampling),
                "written": [str(p) for p in written],
            }
        )
    else:
        out.print(f"{len(columns) * len(prompt)} images in {out_path}", highlight=False)
