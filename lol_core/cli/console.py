"""What the commands share: consoles, tables, JSON, progress, and errors told in one sentence."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from lol_core.core.progress import SILENT, Reporter, Stopped
from lol_core.errors import LoLError, needing

if TYPE_CHECKING:
    from lol_core.collections.index import Readers as CollectionReaders
    from lol_core.collections.source import Source
    from lol_core.learning.executor import Executor

out, err = (Console(stderr=stderr, markup=False, emoji=False) for stderr in (False, True))
"""Brackets and colons in names are names."""
INTERRUPTED = 130
"""The exit code of what Ctrl-C ended, as shells have it: 128 and the number of the signal."""
KEPT = "What was read is kept; the same command goes on."
WORKERS = "N|ray|ray://HOST:10001"
Workers = Annotated[str, typer.Option(metavar=WORKERS, help="How many processes; or a Ray cluster, here or elsewhere.")]
AT_A_TIME = "How many files are read at a time; by default 4, of the hub or a URL 16"
Readers = Annotated[int | None, typer.Option("--workers", min=1, help=f"{AT_A_TIME}.")]
"""`--workers` of a command that mostly waits for files: threads, for processes start too slowly to pay."""
Address = Annotated[
    str, typer.Argument(metavar="FOLDER|ARCHIVE|PATTERN|ADDRESS", help="Also a pattern in quotes, or hf://owner/name.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto for the best there is.")]
Count = Annotated[int, typer.Option(min=1)]
Passes = Annotated[int, typer.Option(min=0)]
LARGEST_SEED = 2**32 - 1
"""Of NumPy and scikit-learn."""
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED)]
Share = Annotated[float, typer.Option(min=0, max=1)]


def at_least_zero(value: float) -> float:
    """A callback of numbers that are finite and not below 0: `min` lets NaN pass."""
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"{value:g} is no number from 0 on.")
    return value


Amount = Annotated[float, typer.Option(callback=at_least_zero)]
LabelsFile = Annotated[
    Path | None, typer.Option("--labels", help="A CSV or Parquet table of labels, if not labels.csv in the folder.")
]
PartsLabel = Annotated[
    str | None, typer.Option(help="Label column that says train, validation or test; by default parts are drawn.")
]

_COMMANDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that move, colour or turn what a terminal shows."""
_WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some disk space, or choose another place."),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "Choose a place that you may write to."),
}


@contextmanager
def reported() -> Iterator[None]:
    """Errors made on purpose end the command with their sentence and exit code 1, as do a package that is missing and a
    disk that does not take what is written; what was stopped ends with INTERRUPTED.
    """
    try:
        with needing("images"):
            yield
    except Stopped as stopped:
        raise interrupted(f"{stopped}") from stopped
    except LoLError as error:
        raise _ended(f"{error}") from error
    except Exception as error:
        if (sentence := _of_the_disk(error)) is None:
            raise
        raise _ended(sentence) from error


def interrupted(sentence: str) -> typer.Exit:
    """What ends a command that was stopped. sentence: what is kept, and how to go on."""
    err.print(sentence, highlight=False, soft_wrap=True)
    return typer.Exit(INTERRUPTED)


def _ended(sentence: str) -> typer.Exit:
    err.print(Text.assemble(("Error:", "red"), f" {sentence}"), highlight=False, soft_wrap=True)
    return typer.Exit(1)


def _of_the_disk(error: Exception) -> str | None:
    """What an error of the file system means to who asked for a file; None for other errors. safetensors has its own
    class for them, which names the number in its text.
    """
    named = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
    place = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    if number is None or (number not in _WAYS_OUT and place is None):
        return None
    return f"{f'{place}: ' if place else ''}{os.strerror(number)}. {_WAYS_OUT.get(number, 'Check the path.')}"


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(_finite(value), indent=1, default=str, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """NaN and infinities become null: JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def print_table(rows: Sequence[Mapping[Any, Any]]) -> None:
    table = Table()
    for name in rows[0] if rows else []:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    out.print(table)


def _cell(value: object) -> str:
    """Six digits of a number; a NaN, as the rank correlation of a constant, is not known. What a name or a file would
    tell the terminal to do is shown.
    """
    if isinstance(value, float):
        return "not known" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else _COMMANDS.sub(lambda command: repr(command[0])[1:-1], str(value))


@contextmanager
def progress_bar(stop: Callable[[], bool] = lambda: False) -> Iterator[Reporter]:
    """A reporter whose progress is a bar on the terminal, gone when the work ends."""
    with Bar(console=err, transient=True) as bar:
        task = bar.add_task("Starting", total=1.0)
        yield Reporter(lambda p: bar.update(task, completed=p.fraction, description=p.message), stop)


@contextmanager
def stoppable() -> Iterator[Reporter]:
    """The reporter of `progress_bar`; Ctrl-C asks for an orderly stop, a second one interrupts at once."""
    pressed: list[int] = []

    def handler(number: int, _frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with progress_bar(lambda: bool(pressed)) as reporter:
            yield reporter
    finally:
        signal.signal(signal.SIGINT, before)


def on_cluster(workers: str) -> Executor | None:
    """The cluster that `--workers` names, which reads headers too; processes here start too slowly for that."""
    if not workers.startswith("ray"):
        return None
    from lol_core.learning.executor import executor

    return executor(workers)


def end_without_loras(source: Source) -> None:
    """End the command with exit code 1 where a collection holds no LoRA: with what was refused, or looked for."""
    if not len(source):
        from lol_core.collections.opening import without_loras

        raise _ended(without_loras(source))


def open_collection(
    address: str, labels: Path | None = None, reporter: Reporter = SILENT, readers: CollectionReaders = None
) -> Source:
    """`open_source`, with what it has to say of the whole, such as the size of weights that are to be downloaded, on
    the terminal.
    """
    from lol_core.collections.opening import open_source

    source = open_source(address, labels, reporter=reporter, readers=readers)
    for remark in source.remarks:
        err.print(remark, highlight=False, soft_wrap=True)
    return source
