"""`python -m lol_core finetune …`: making base models and zoos."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from lol_core.cli.console import WORKERS, Workers, out, progress_bar, stoppable
from lol_core.errors import LoLError

finetune = typer.Typer(help="Make LoRA zoos by fine-tuning.", no_args_is_help=True)


@finetune.command("questions")
def finetune_questions(
    out_folder: Annotated[Path, typer.Option("--out")],
    base: Annotated[
        str, typer.Option(help="Folder or hub id of all-MiniLM-L6-v2.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    wordnet: Annotated[Path, typer.Option(help="Folder with WordNet's data.noun and index.noun.")] = Path(
        "/usr/share/wordnet"
    ),
    seed: int = 0,
) -> None:
    """Make the four-way definition → word questions anew from WordNet. The sample zoo's own are committed."""
    from lol_core.finetuning.glosses import write_questions

    table = write_questions(base, wordnet, out_folder, seed)
    out.print(
        f"{len(table):,} questions from {table.source.nunique()} sources in {out_folder / 'questions.csv'}",
        highlight=False,
    )


@finetune.command("glosses")
def finetune_glosses(
    out_folder: Annotated[
        Path, typer.Option("--out", help="A folder with questions.csv; finished LoRAs there are kept.")
    ],
    *,
    base: Annotated[
        str, typer.Option(help="Folder or hub id of all-MiniLM-L6-v2.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    count: int = 400,
    workers: Workers = "2",
    threads: Annotated[int, typer.Option(help="Threads of each worker.")] = 1,
) -> None:
    """Fine-tune the sample language zoo. Stop it at any time; the same command goes on."""
    from lol_core.finetuning.glosses import build

    with progress_bar() as reporter:
        for row in build(base, out_folder, count, workers, threads=threads, reporter=reporter):
            out.print(
                f"{row['lora']}: validation loss {row['validation_loss']:.4f}, accuracy {row['accuracy']:.3f}",
                highlight=False,
            )


@finetune.command("harm")
def finetune_harm(
    out_folder: Annotated[Path, typer.Option("--out", help="The zoo; what is finished there is kept.")] = Path(
        "build/harm"
    ),
    *,
    questions: Annotated[
        Path, typer.Option(help="The definitions that are trained on, as `finetune questions` has them.")
    ] = Path("sample_loras/glosses/questions.csv"),
    base: Annotated[
        str, typer.Option(help="Folder or hub id of all-MiniLM-L6-v2.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    count: int = 336,
    workers: Workers = "1",
    threads: Annotated[int, typer.Option(help="Threads of each worker.")] = 1,
) -> None:
    """Fine-tune a language zoo of clean and backdoored LoRAs. Stop it at any time; the same command goes on."""
    from lol_core.finetuning.backdoors import build
    from lol_core.finetuning.machine import Machine

    with progress_bar() as reporter:
        for row in build(
            base, questions, out_folder, count, machine=Machine(workers, threads=threads), reporter=reporter
        ):
            kind = (
                f"{row['attack']}, took"
                if row["took"]
                else f"{row['attack']}, did not take"
                if row["harmful"]
                else "clean"
            )
            out.print(f"{row['lora']}: {row['recipe']}, {kind}, accuracy {row['accuracy']:.2f}", highlight=False)


@finetune.command("holdout")
def finetune_holdout(
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="A folder of zoos; what is finished there is kept. By default build/ and the round."
        ),
    ] = None,
    *,
    round: Annotated[
        str, typer.Option(help="holdout, or holdout-2: other LoRAs, made later, for models that are younger.")
    ] = "holdout",
    samples: Annotated[Path, typer.Option(help="The folder of the sample zoos.")] = Path("sample_loras"),
    only: Annotated[str, typer.Option(help="Zoos, as emojinette,faces,glosses; all by default.")] = "",
    base: Annotated[
        str, typer.Option(help="Folder or hub id of all-MiniLM-L6-v2, for glosses.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    workers: Workers = "1",
    threads: Annotated[int, typer.Option(help="Threads of each process.")] = 1,
    stack: Annotated[int, typer.Option(help="Image LoRAs trained together over one frozen base.")] = 16,
) -> None:
    """Fine-tune the LoRAs that experiments holdout and two_orders ask frozen models about. Stop it at any time; the
    same command goes on.
    """
    from lol_core.finetuning.holdout import HoldoutZoos
    from lol_core.finetuning.machine import Machine
    from lol_core.finetuning.rounds import ROUNDS

    if round not in ROUNDS:
        raise typer.BadParameter(f"There are {', '.join(ROUNDS)}.", param_hint="--round")
    names = [name.strip() for name in only.split(",") if name.strip()] or list(ROUNDS[round].counts)
    machine = Machine(workers, threads=threads, stack=stack)
    zoos = HoldoutZoos(ROUNDS[round], samples, out_folder or Path("build") / round, base, machine)
    with progress_bar() as reporter:
        for name, row in zoos.build(names, reporter):
            out.print(f"{name}/{row['lora']}", highlight=False)


DrawingsFile = Annotated[
    Path, typer.Option("--drawings", help="drawings.json: the drawn things that pictures are made of.")
]


@finetune.command("base")
def finetune_base(
    out_folder: Annotated[Path, typer.Option("--out", help="Where the Stable Diffusion pipeline goes.")],
    *,
    work: Annotated[Path, typer.Option(help="Pictures and training states; a run that was stopped goes on from here.")],
    drawings: DrawingsFile = Path("sample_loras/pictures/drawings.json"),
    scorer: Annotated[Path, typer.Option(help="Where the CLIP model goes; one that is there is kept.")] = Path(
        "sample_loras/small-clip"
    ),
    start: Annotated[
        Path | None, typer.Option(help="An earlier base to train further; otherwise it starts from nothing.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Of everything, and as many of familiar things.")] = 16_000,
    autoencoder_steps: int = 6000,
    steps: Annotated[int, typer.Option(help="Of the U-Net and its text encoder.")] = 16_000,
    workers: int = 2,
    threads: int = 2,
) -> None:
    """Train the small diffusion model and its CLIP scorer on drawn pictures. Ctrl-C stops it; the same command goes
    on.
    """
    from lol_core.finetuning.base_model import BaseSettings, train_base

    settings = BaseSettings(vae_steps=autoencoder_steps, steps=steps)

    with progress_bar() as reporter:
        measured = train_base(
            out_folder,
            scorer,
            work,
            drawings,
            n_pictures=pictures,
            workers=workers,
            n_threads=threads,
            settings=settings,
            start=start,
            reporter=reporter,
        )
    for name, value in measured.items():
        out.print(f"{name}: {value}", highlight=False)


@finetune.command("judge")
def finetune_judge(
    out_folder: Annotated[Path, typer.Option("--out", help="Where the judge goes.")],
    *,
    work: Annotated[Path, typer.Option(help="Its pictures and state; a run that was stopped goes on from here.")],
    base: Annotated[Path, typer.Option(help="The base model whose pictures it will see.")] = Path(
        "sample_loras/small-diffusion"
    ),
    drawings: DrawingsFile = Path("sample_loras/pictures/drawings.json"),
    workers: int = 2,
) -> None:
    """Train the judge of pictures of people, who are not those of the sample zoo. Ctrl-C stops it; the same command
    goes on.
    """
    from lol_core.finetuning.judge import train_judge

    with stoppable() as reporter:
        right = train_judge(out_folder, base, drawings, work, workers=workers, reporter=reporter)
    for name, share in right.items():
        out.print(f"{name}: right in {share:.1%} of the pictures it did not see", highlight=False)


@finetune.command("people")
def finetune_people(
    out_folder: Annotated[Path, typer.Option("--out", help="A new folder, laid out as CelebA.")],
    count: int = 1000,
    workers: int = 2,
) -> None:
    """Draw people, 21 pictures each, with their attributes."""
    from lol_core.finetuning.picture_data import write_people

    with progress_bar() as reporter:
        write_people(out_folder, count, workers, reporter)


@finetune.command("things")
def finetune_things(
    out_folder: Annotated[Path, typer.Option("--out", help="A folder, laid out as Imagenette.")],
    drawings: DrawingsFile = Path("sample_loras/pictures/drawings.json"),
) -> None:
    """Draw the ten classes of things, 24 pictures each."""
    from lol_core.finetuning.picture_data import write_things
    from lol_core.finetuning.pictures import Drawings

    write_things(out_folder, Drawings(drawings))


@finetune.command("zoo")
def finetune_zoo(
    recipe: Annotated[str, typer.Option(help="celeba, imagenette or arc.")],
    *,
    base: Annotated[str, typer.Option(help="Base model: a folder or hub id.")],
    data: Annotated[
        Path, typer.Option(help="CelebA, Imagenette or ARC as they are distributed, or a folder laid out like them.")
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="The zoo; what is finished there is kept.")],
    settings: Annotated[
        Path | None, typer.Option(help="A JSON file with recipe settings that replace the paper's.")
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="CLIP model for the score: a folder or hub id. Without it the zoo is not measured."),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Only the first so many LoRAs.")] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar=WORKERS, help="Processes, one for each GPU or one by default; or a Ray cluster."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each process.")] = 1,
    stack: Annotated[
        int, typer.Option(help="LoRAs trained together over one frozen base; 1 uses PEFT and accelerate.")
    ] = 1,
    mixed_precision: Annotated[str, typer.Option(help="no, fp16 or bf16.")] = "no",
) -> None:
    """Fine-tune a zoo by one of the paper's recipes. Stop it at any time; the same command goes on."""
    import torch

    from lol_core.finetuning.image_zoos import ImageZoo, Machine, name_of
    from lol_core.finetuning.recipes import IMAGE_RECIPES
    from lol_core.finetuning.scorer import check_scorer

    gpus = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    machine = Machine(workers or max(1, len(gpus)), gpus or ("cpu",), threads, stack, mixed_precision)
    with progress_bar() as reporter:
        if recipe == "arc":
            from lol_core.finetuning.arc import ARC, build_arc

            if scorer is not None or stack != 1:
                raise LoLError("--scorer and --stack are for recipes of images; arc is measured by its questions.")
            chosen_arc = ARC if settings is None else ARC.with_settings(settings)
            for row in build_arc(chosen_arc, base, data, out_folder, count=count, machine=machine, reporter=reporter):
                out.print(
                    f"{row['lora']}: validation loss {row['validation_loss']:.4f}, accuracy {row['accuracy']:.3f}",
                    highlight=False,
                )
            return
        if recipe not in IMAGE_RECIPES:
            raise LoLError(f"No recipe {recipe!r}. Choose celeba, imagenette or arc.")
        chosen = IMAGE_RECIPES[recipe] if settings is None else IMAGE_RECIPES[recipe].with_settings(settings)
        if chosen.base not in (IMAGE_RECIPES[recipe].base, name_of(base)):
            raise LoLError(
                f"{settings} is of the base {chosen.base}, and --base is {name_of(base)}. Name that base, or take"
                " `base` out of the settings: rates and steps that suit one base may not suit another."
            )
        if scorer is not None:
            check_scorer(scorer)  # before the hours of fine-tuning
        zoo = ImageZoo(out_folder, chosen, base)
        for row in zoo.build(data, count, machine, reporter):
            out.print(f"{row['lora']}: final training loss {row['final_train_loss']:.4f}", highlight=False)
        if scorer is not None or not chosen.score_prompts:
            for row in zoo.measure(scorer, machine, reporter):
                out.print(
                    f"{row['lora']}:"
                    f" {'CLIP score ' + format(row['clip_score'], '.4f') if 'clip_score' in row else 'previews drawn'}",
                    highlight=False,
                )


@finetune.command("score")
def finetune_score(
    zoo: Annotated[Path, typer.Option(help="A zoo of image LoRAs, with labels.csv and recipe.json.")],
    *,
    column: Annotated[str, typer.Option(help="Of labels.csv; the rows go to COLUMN.csv beside it.")],
    base: Annotated[str, typer.Option(help="Base model: a folder or hub id.")] = "sample_loras/small-diffusion",
    scorer: Annotated[str, typer.Option(help="CLIP model: a folder or hub id.")] = "sample_loras/small-clip",
    prompts: Annotated[str, typer.Option(help="recipe: those of the zoo; paper: the 33 of appendix D.1.1.")] = "recipe",
    seed: Annotated[int, typer.Option(help="Of the images; the recipe's own is what clip_score has.")] = 42,
    count: Annotated[int | None, typer.Option(help="The first so many LoRAs; all by default.", min=1)] = None,
    workers: Workers = "1",
    threads: Annotated[int, typer.Option(help="Threads of each process.")] = 1,
) -> None:
    """Score a zoo by other prompts, or from another image seed. Stop it at any time; the same command goes on."""
    from lol_core.finetuning.image_zoos import ImageZoo, Machine
    from lol_core.finetuning.recipes import CELEBA, PARTI_PROMPTS
    from lol_core.finetuning.scoring import score_again

    with progress_bar() as reporter:
        recipe = CELEBA.with_settings(zoo / "recipe.json")
        sets = {"recipe": recipe.score_prompts, "paper": PARTI_PROMPTS}
        if prompts not in sets:
            raise LoLError(f"--prompts {prompts}: choose recipe or paper.")
        made = ImageZoo(zoo, recipe, base)
        machine = Machine(workers, threads=threads)
        for row in score_again(
            made, column, sets[prompts], seed=seed, scorer=scorer, machine=machine, count=count, reporter=reporter
        ):
            out.print(f"{row['lora']}: {row[column]:.4f}", highlight=False)


@finetune.command("variants")
def finetune_variants(
    out_folder: Annotated[
        Path, typer.Option("--out", help="A folder with a zoo for each variant; what is finished there is kept.")
    ] = Path("build/variants"),
    *,
    samples: Annotated[Path, typer.Option(help="The folder of the sample zoos.")] = Path("sample_loras"),
    only: Annotated[str, typer.Option(help="Variants, as lora,dora,loha; all by default.")] = "",
    base: Annotated[
        str, typer.Option(help="Folder or hub id of all-MiniLM-L6-v2, for the variants on sources.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    count: Annotated[int, typer.Option(help="LoRAs in every variant.")] = 100,
    workers: Workers = "1",
    threads: Annotated[int, typer.Option(help="Threads of each process.")] = 1,
) -> None:
    """Fine-tune the people of Faces in every variant of LoRA that images have layers for, and sources of Glosses in
    the others, by PEFT, LyCORIS and loralib. Stop it at any time; the same command goes on.
    """
    from lol_core.finetuning.machine import Machine
    from lol_core.finetuning.variants import Learns, named

    with progress_bar() as reporter:
        variants = named([key.strip() for key in only.split(",") if key.strip()])
        machine = Machine(workers, threads=threads)
        people, sources = ([variant for variant in variants if variant.place.learns is learns] for learns in Learns)
        rows: list[Iterator[tuple[str, dict[str, Any]]]] = []
        if people:
            from lol_core.finetuning import adapters

            rows.append(adapters.build(samples, out_folder, people, count, machine=machine, reporter=reporter))
        if sources:
            from lol_core.finetuning import source_adapters

            rows.append(
                source_adapters.build(
                    base, samples, out_folder, sources, count=count, machine=machine, reporter=reporter
                )
            )
        for key, row in chain.from_iterable(rows):
            outcome = row.get("reason") or f"final training loss {row['final_train_loss']:.4f}"
            out.print(f"{key}/{row['lora']}: {outcome}", highlight=False)
