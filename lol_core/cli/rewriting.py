"""`convert`, `resize`, `canonical` and `merge`: LoRAs written anew, one or thousands. Nothing is replaced unless
told.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from lol_core.cli.console import (
    LARGEST_SEED,
    AsJson,
    Readers,
    Workers,
    err,
    interrupted,
    out,
    print_json,
    print_table,
    stoppable,
)
from lol_core.cli.inputs import loras_of, read_all
from lol_core.errors import DataMissingError, LoLError

if TYPE_CHECKING:
    from lol_core.core.lora import LoRA
    from lol_core.insight.rewriting import Resized

TOLD = ("left out", "notes")
"""What `told_of` may say of a file."""
SHOWN = 20
"""Refused LoRAs that are named on the terminal: a second run over thousands of files finds them all there already."""


class Form(StrEnum):
    """As `formats.writing.FORMS`, which takes PyTorch's time to import."""

    PEFT = "PEFT"
    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    MLX = "MLX"


class Way(StrEnum):
    """As `insight.merging.Method`, which takes PyTorch's time to import."""

    SUM = "sum"
    TIES_SVD = "ties_svd"
    DARE_LINEAR_SVD = "dare_linear_svd"
    DARE_TIES_SVD = "dare_ties_svd"
    MAGNITUDE_PRUNE_SVD = "magnitude_prune_svd"
    KNOTS = "knots"
    LEARNED = "learned"
    LINEAR = "linear"
    TIES = "ties"
    DARE_LINEAR = "dare_linear"
    DARE_TIES = "dare_ties"
    MAGNITUDE_PRUNE = "magnitude_prune"


class Width(StrEnum):
    """The numbers that factors are written in."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


Inputs = Annotated[
    list[str], typer.Argument(help="Files, PEFT folders, folders, archives, addresses of the hub, or patterns.")
]
Out = Annotated[Path, typer.Option("--out", help="The folder that is written to.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]
AsForm = Annotated[Form | None, typer.Option("--to", case_sensitive=False, help="The form; by default the file's own.")]
AsWidth = Annotated[
    Width | None, typer.Option("--dtype", help="The numbers that factors are written in; by default the inputs'.")
]


def convert(
    inputs: Inputs,
    *,
    to: Annotated[Form, typer.Option("--to", case_sensitive=False, help="The form that other programs expect.")],
    out_folder: Out,
    dtype: AsWidth = None,
    force: Force = False,
    workers: Workers = "1",
    as_json: AsJson = False,
) -> None:
    """Write LoRAs in another form: the same update, under the names and in the files that other programs expect."""
    _rewrite(inputs, Job(out_folder, to, dtype, force), workers, as_json)


def resize(
    inputs: Inputs,
    *,
    out_folder: Out,
    rank: Annotated[int | None, typer.Option(min=1, help="The largest rank that is kept.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="The share of each module's energy Σσ² that is kept, such as 0.95.")
    ] = None,
    to: AsForm = None,
    dtype: AsWidth = None,
    force: Force = False,
    workers: Workers = "1",
    as_json: AsJson = False,
) -> None:
    """Cut LoRAs to a lower rank by their singular values; the error is printed for each."""
    if (rank is None) == (energy is None):
        raise typer.BadParameter("Give either --rank or --energy.")
    _rewrite(inputs, Job(out_folder, to, dtype, force, rank, energy), workers, as_json)


def canonical(
    inputs: Inputs,
    out_folder: Out,
    to: AsForm = None,
    dtype: Annotated[Width, typer.Option("--dtype", help="The numbers that factors are written in.")] = Width.FLOAT32,
    *,
    force: Force = False,
    workers: Workers = "1",
    as_json: AsJson = False,
) -> None:
    """Write the one copy that all LoRAs of the same function share: U Σ^½ and V Σ^½ of each ΔW, its signs fixed."""
    _rewrite(inputs, Job(out_folder, to, dtype, force, canonical=True), workers, as_json)


def merge(
    inputs: Annotated[list[str], typer.Argument(help="Two LoRAs or more, of one base model.")],
    *,
    out_path: Annotated[Path, typer.Option("--out", help="The file, or for PEFT the folder, that is written.")],
    method: Annotated[
        Way,
        typer.Option(
            help="sum: Σ w ΔW. The _svd ones (on ΔW, as peft has them), knots (TIES in a shared core) and learned (a"
            " network trained for one base model; there is one for each sample zoo) read ΔW, and give the same whatever"
            " factors a LoRA is written with; the last five read the factors, and do not."
        ),
    ] = Way.SUM,
    weight: Annotated[list[float] | None, typer.Option(help="One for each LoRA, by default 1.")] = None,
    mean: Annotated[bool, typer.Option("--mean", help="Weights 1/k: with --rank the LoRA nearest to all.")] = False,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="The largest rank; by default the inputs' for the _svd ones, and no cut for others."),
    ] = None,
    density: Annotated[float, typer.Option(help="Of entries that TIES keeps, and DARE does not drop: a share.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the entries that DARE drops.")] = 0,
    to: AsForm = None,
    dtype: AsWidth = None,
    force: Force = False,
    workers: Readers = None,
    as_json: AsJson = False,
) -> None:
    """Merge LoRAs of one base model, with what was lost to the rank and how far it is from their sum printed."""
    from lol_core.insight.anatomy import Comparison
    from lol_core.insight.merging import Method, remarks
    from lol_core.insight.merging import merge as merge_loras

    with stoppable() as reporter:
        written = [out_path, out_path.with_name(f"{out_path.name}.safetensors")]
        if not (chosen := list(loras_of(inputs, reporter.part(0.0, 0.1), workers, written=written))):
            raise DataMissingError(f"There is no LoRA in {', '.join(inputs)}.")
        if weight and (mean or len(weight) != len(chosen)):
            raise DataMissingError(
                f"{len(chosen)} LoRAs and {len(weight)} weights. Give --weight once for each LoRA, or --mean alone."
            )
        loras = read_all([load for _, load in chosen], reporter.part(0.1, 0.5), workers)
        weights = weight or [1 / len(chosen) if mean else 1.0] * len(chosen)
        merged = merge_loras(
            loras, weights, rank, Method(method), density=density, seed=seed, reporter=reporter.part(0.5, 0.9)
        )
        away = merged.lost
        if method is not Way.SUM:
            exact = merge_loras(loras, weights, reporter=reporter.part(0.9, 1.0)).lora
            away = Comparison.of(exact, merged.lora).distance
        row = {"method": str(method)} | write_resized(merged, out_path, Job(out_path.parent, to, dtype, force), loras)
        row["from the sum"] = away
        extras = list(dict.fromkeys(tensor for lora in loras for tensor in lora.extras))
        noted = {name: list(lora.notes) for (name, _), lora in zip(chosen, loras, strict=True) if lora.notes}
        doubts = remarks(loras)
    if as_json:
        told = {"left out": extras, "remarks": doubts, "notes": noted}
        said = {name: some for name, some in told.items() if some}
        print_json({"merged": [name for name, _ in chosen], "invariant": Method(method).invariant, **row, **said})
        return
    print_table([row])
    for remark in [*(f"{name}: {' '.join(notes)}" for name, notes in noted.items()), *doubts]:
        err.print(remark, highlight=False, soft_wrap=True)
    if not Method(method).invariant:
        err.print(
            f"{method} reads the factors: the same LoRAs written with others, (UR, VR⁻ᵀ), merge to something else. sum,"
            " knots, learned and the _svd methods read ΔW alone.",
            highlight=False,
        )


@dataclass(frozen=True)
class Job:
    """What is done with every LoRA. to, dtype: None for the form and numbers of what it was given; rank,
    energy: what is kept, both None for all; canonical: whether factors are brought to their canonical form.
    """

    out: Path
    to: Form | None
    dtype: Width | None
    force: bool
    rank: int | None = None
    energy: float | None = None
    canonical: bool = False

    def __call__(self, item: tuple[str, Callable[[], LoRA]]) -> dict[str, Any]:
        """The row of one LoRA; a sentence in place of numbers where it could not be done."""
        from lol_core.core.canonical import canonical
        from lol_core.insight.rewriting import Resized, ranks_of_energy

        name, load = item
        try:
            given = load()
            lora = canonical(given) if self.canonical else given
            if not (self.out / name).resolve().is_relative_to(self.out.resolve()):
                raise DataMissingError(f"{name} would be written outside {self.out}.")
            path = self.out / name.removesuffix(".safetensors")  # which a folder may be called too
            rank = self.rank or max(lora.ranks) if self.energy is None else ranks_of_energy(lora, self.energy)
            row = {"lora": name} | write_resized(Resized.of(lora, rank), path, self, [given])
            return row | told_of(given)
        except LoLError as error:
            return {"lora": name, "refused": str(error).removeprefix(f"{name}: ")}


def _rewrite(inputs: Sequence[str], job: Job, workers: str, as_json: bool) -> None:
    from lol_core.learning.executor import Lost, executor

    rows = []
    with stoppable() as reporter:
        items = list(loras_of(inputs, reporter, written=[job.out]))
        if not items:
            raise DataMissingError(f"There is no LoRA in {', '.join(inputs)}.")
        if twice := [name for name, count in Counter(name for name, _ in items).items() if count > 1]:
            raise DataMissingError(f"Two LoRAs would be written as {twice[0]}. Write them into folders of their own.")
        with closing(executor(workers).map(job, items)) as results:
            for item, row in results:
                rows.append({"lora": item[0], "refused": row.reason} if isinstance(row, Lost) else row)
                reporter.count("Writing: LoRA", len(rows), len(items))
                if reporter.stopping:
                    break
    written, refused = ([row for row in rows if ("refused" in row) is bad] for bad in (False, True))
    if as_json:
        print_json({"finished": len(rows) == len(items), "written": written, "refused": refused})
    else:
        noted = {row["lora"]: row["notes"] for row in written if "notes" in row}
        shown = [{name: value for name, value in row.items() if name not in TOLD} for row in written]
        print_table(sorted(shown, key=lambda row: row["lora"]))
        for name, notes in list(noted.items())[:SHOWN]:
            err.print(f"{name}: {' '.join(notes)}", highlight=False, soft_wrap=True)
        if len(noted) > SHOWN:
            err.print(f"… and {len(noted) - SHOWN:,} more; --json lists them all.", highlight=False)
        for row in refused[:SHOWN]:
            err.print(f"{row['lora']}: {row['refused']}", highlight=False, soft_wrap=True)
        if len(refused) > SHOWN:
            err.print(f"… and {len(refused) - SHOWN:,} more; --json lists them all.", highlight=False)
        out.print(f"{len(written)} of {len(items)} LoRAs written to {job.out}.", highlight=False, soft_wrap=True)
    if len(rows) < len(items):
        raise interrupted("Stopped before the end. The same command writes the rest.")
    if len(written) < len(items):
        raise typer.Exit(1)


def told_of(given: LoRA) -> dict[str, list[str]]:
    """What JSON says of a file beside numbers, as far as there is any: tensors that are not written, and notes."""
    told = dict(zip(TOLD, (list(given.extras), list(given.notes)), strict=True))
    return {name: some for name, some in told.items() if some}


def write_resized(made: Resized, path: Path, job: Job, given: Sequence[LoRA]) -> dict[str, Any]:
    """As `write_whole`, with what was lost to the rank."""
    return write_whole(made.lora, path, job, given) | {"lost": made.lost}


def write_whole(lora: LoRA, path: Path, job: Job, given: Sequence[LoRA]) -> dict[str, Any]:
    """Write a LoRA whole, under a temporary name first. given: those that it was made of. Raises LoRAFormatError, and
    DataMissingError where something is there already.
    """
    import torch

    from lol_core.formats.writing import FOLDERS, FORMS, forms_of, holding, names_in, write

    family = lora.dialect.partition("/")[0]
    own = family if family in FORMS else next(iter(forms_of(lora)), FORMS[0])
    form = str(job.to or own)
    names_in(form, lora)
    if form in FOLDERS and path.suffix == ".safetensors":
        files = [other for other in forms_of(lora) if other not in FOLDERS]
        rather = f", or choose a form that is a file (--to {' or '.join(files)})" if files else ""
        raise DataMissingError(
            f"{path} is called as a file, and the form {form} is a folder. Name a folder, such as"
            f" {path.with_suffix('')}{rather}."
        )
    if form not in FOLDERS and path.suffix != ".safetensors":
        path = path.with_name(f"{path.name}.safetensors")
    if path.exists() and not job.force:
        raise DataMissingError(f"{path} is there already. Choose another place, or --force.")
    if path.is_dir() and (
        others := {file.name for file in path.iterdir()} - {*FOLDERS.values(), "adapter_config.json"}
    ):
        raise DataMissingError(f"{path} holds more than a LoRA, such as {min(others)}: it is not replaced.")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{uuid4().hex[:12]}.writing")  # short: a long name has no room for more
    try:
        write(lora, new, form, getattr(torch, job.dtype) if job.dtype else holding(*given))
        if path.is_dir():  # which a rename does not replace: set aside, and deleted once the new one stands there
            old = path.rename(new.with_suffix(".old"))
            os.replace(new, path)
            shutil.rmtree(old)
        else:
            os.replace(new, path)
    finally:
        if new.is_dir():
            shutil.rmtree(new)
        else:
            new.unlink(missing_ok=True)
    ranks = lora.ranks
    kept = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
    shown = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return {"written": str(path), "form": form, "rank": shown, "kB": round(kept / 1000, 1)}
