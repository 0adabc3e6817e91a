"""The command line: `python -m lol_core …`. Tables for people, `--json` for machines. A command imports what it works
with when it runs, so that help and errors of usage come at once.
"""

from __future__ import annotations

import atexit
import gc
from typing import Any

import typer
from typer.core import TyperGroup

from lol_core.cli.app import app as start
from lol_core.cli.audit import audit, health
from lol_core.cli.comparing import compare, nearest
from lol_core.cli.console import reported
from lol_core.cli.editing import edit, editor, sample
from lol_core.cli.experiment import experiment
from lol_core.cli.files import probe, scan
from lol_core.cli.finetune import finetune
from lol_core.cli.generate import generate
from lol_core.cli.invariance import invariance
from lol_core.cli.learning import crossvalidate, predict, train
from lol_core.cli.publish import labels, model, zoo
from lol_core.cli.rewriting import canonical, convert, merge, resize
from lol_core.cli.store import store
from lol_core.cli.survey import duplicates, survey


class Reported(TyperGroup):
    """Commands whose errors are told in one sentence from their first import on: that of models runs the files that
    LOL_MODELS names.
    """

    def invoke(self, ctx: Any) -> Any:
        gc.set_threshold(100_000)  # what PyTorch and pandas make on import stays; looking through it took a tenth
        atexit.register(gc.freeze)  # and a last look at the end, as it all goes, another
        with reported():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Reported,
    help="Learning on LoRAs: look at LoRA files, train models that read them, check their symmetry.",
    no_args_is_help=True,
    add_completion=False,
)
app.command("app")(start)
app.add_typer(finetune, name="finetune")
app.add_typer(store, name="store")
app.add_typer(zoo, name="zoo")
app.add_typer(model, name="model")
for command in (
    probe,
    scan,
    labels,
    survey,
    health,
    audit,
    duplicates,
    nearest,
    compare,
    convert,
    resize,
    canonical,
    merge,
    edit,
    editor,
    sample,
    train,
    crossvalidate,
    experiment,
    predict,
    invariance,
    generate,
):
    app.command()(command)
app.command("compress", help="Another name for resize.")(resize)
