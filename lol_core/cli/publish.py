"""`labels`, `zoo get`, `zoo publish` and `model publish`: columns that files offer, sample zoos, folders to upload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lol_core.cli.console import (
    LARGEST_SEED,
    Address,
    AsJson,
    LabelsFile,
    PartsLabel,
    end_without_loras,
    err,
    out,
    print_json,
    print_table,
    stoppable,
)
from lol_core.errors import ZooError

zoo = typer.Typer(help="Collections as data sets.", no_args_is_help=True)
model = typer.Typer(help="Trained models as repositories.", no_args_is_help=True)
Out = Annotated[Path, typer.Option("--out", help="The folder to make; it must not be there.")]
Licence = Annotated[str, typer.Option(help='As the hub names it, such as "cc-by-4.0" or "mit".')]


def labels(
    collection: Address,
    take: Annotated[list[str] | None, typer.Option(help="A column to take; may be given several times.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="The table of labels to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Columns that cards, headers, training states and names offer as labels. None is used unless it is taken."""
    from lol_core.collections.labels import as_table
    from lol_core.collections.offered import described, offered
    from lol_core.collections.offered import take as taken
    from lol_core.collections.opening import open_source

    with stoppable() as reporter:
        source = open_source(collection, reporter=reporter)
        table = offered(source, reporter)
    if take or out_file is not None:
        if out_file is None:
            raise ZooError("Name the file to write by --out, such as labels.csv.")
        if not take:
            raise ZooError(f"Name the columns to write by --take: {', '.join(table.columns) or 'none is offered'}.")
        if out_file.exists():
            raise ZooError(f"{out_file} is there already. Name another file.")
        as_table(taken(source, take, table)).to_csv(out_file, index=False)
        out.print(f"Written to {out_file}; use it as --labels.", highlight=False, soft_wrap=True)
        return
    rows = described(table)
    if as_json:
        print_json({"collection": source.address, "columns": rows})
    elif rows:
        print_table(rows)
    elif len(source):
        out.print(f"The files of {len(source)} LoRAs offer no labels.", highlight=False)
    end_without_loras(source)


@zoo.command("get")
def get_zoo(
    name: Annotated[str, typer.Argument(help="glosses, faces or emojinette.")],
    place: Annotated[
        str, typer.Option("--from", metavar="URL|FOLDER", help="Where the archives lie, if not in the release.")
    ] = "",
) -> None:
    """A sample zoo with its trained models and its base model: of this clone, or from a release archive."""
    from lol_core.collections.samples import archive_of, get, release, sample_zoos

    if (place or release()) and name not in sample_zoos():
        err.print(f"Downloading {archive_of(name).bytes / 1e6:,.0f} MB, once.", highlight=False)
    with stoppable() as reporter:
        folder = get(name, place, reporter)
    out.print(f"{name} is in {folder}", highlight=False, soft_wrap=True)


@zoo.command("pack")
def pack_zoos(
    out_folder: Annotated[Path, typer.Option("--out", help="Where the archives are written.")],
    samples: Annotated[Path, typer.Argument(help="The folder with the sample zoos.")] = Path("sample_loras"),
    place: Annotated[str, typer.Option("--release", metavar="URL", help="Where they will lie.")] = "",
) -> None:
    """For makers of a release: write the archives of all sample zoos, and their manifest into the program."""
    from lol_core.collections.samples import SAMPLES, pack, write_manifest

    archives = {name: pack(name, samples, out_folder) for name in SAMPLES}
    write_manifest(place, archives)
    print_table(
        [{"archive": str(out_folder / a.file), "bytes": a.bytes, "sha256": a.sha256} for a in archives.values()]
    )


@zoo.command("publish")
def publish_zoo(
    folder: Annotated[Path, typer.Argument(help="A folder of LoRAs.")],
    *,
    out_folder: Out,
    licence: Licence,
    labels: LabelsFile = None,
    title: Annotated[str | None, typer.Option(help="Of the card; by default the folder's name.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the parts that are drawn.")] = 0,
    group: Annotated[str | None, typer.Option(help="Label column whose groups stay in one part.")] = None,
    split: PartsLabel = None,
) -> None:
    """Write a folder ready to upload as a data set: LoRAs, labels, parts, card, licence, checksums."""
    from lol_core.collections.folder import Zoo
    from lol_core.collections.names import counted
    from lol_core.collections.publishing import publish

    with stoppable() as reporter:
        opened = Zoo.open(folder, labels, reporter=reporter)
        publish(
            opened,
            out_folder,
            licence=licence,
            title=title,
            seed=seed,
            group=group,
            split=split,
            reporter=reporter,
        )
    out.print(
        f"{counted(len(opened), 'LoRA')} in {out_folder}. Read its README.md before you upload it.", highlight=False
    )
    card, files = "README.md", {path.name for path in folder.iterdir() if path.is_file()}
    if card in files:
        out.print(f"{card} there is a new one: what yours says of the LoRAs has to be taken over.", highlight=False)
    if others := sorted(name for name in files if not (out_folder / name).exists()):
        text = f"Left behind, as they are no LoRAs: {', '.join(others[:6])}{' …' if len(others) > 6 else ''}."
        out.print(f"{text} A licence among them may have to go along.", highlight=False, soft_wrap=True)


@model.command("publish")
def publish_model(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")], out_folder: Out, licence: Licence
) -> None:
    """Write a folder ready to upload as a model: weights, description, card with licence, checksums."""
    from lol_core.learning.publishing import publish

    publish(checkpoint, out_folder, licence=licence)
    out.print(f"The model in {out_folder}. Read its README.md before you upload it.", highlight=False)
