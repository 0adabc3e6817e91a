"""The app from the command line: `lol-explorer [COLLECTION]`, or `lol app [COLLECTION]`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from lol_core.cli.console import reported
from lol_core.collections.names import named_place, user_path
from lol_core.errors import needing

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = "LOL_COLLECTION"
"""The environment variable that names the collection with which the app opens."""
ROOTS = "LOL_ROOTS"
"""The one that names what an app for others opens: folders or NAME=FOLDER, with the system's separator of paths."""
SERVED = "LOL_SERVED"
"""The one that says, when it is not empty, that an app is for others, whatever its address."""

LAUNCH = """
import os, streamlit
try:
    streamlit.App({script!r}).run(config={settings!r})
except KeyboardInterrupt:
    os._exit(130)
"""
"""Ctrl-C waits for no job beside the pages: what those write is whole or is not there."""


def main_script() -> Path:
    """The app's main script: at the top of a clone, in the package `lol_explorer` of a wheel."""
    return ROOT / "app.py" if (ROOT / "pages").is_dir() else ROOT / "lol_explorer" / "app.py"


def app(
    collection: Annotated[str, typer.Argument(help="What to open first, by default a sample zoo.")] = "",
    *,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Where the app answers on this computer.")] = 8501,
    headless: Annotated[bool, typer.Option("--headless", help="Open no browser window.")] = False,
    address: Annotated[
        str, typer.Option(help="On which of this computer's addresses; 0.0.0.0 is all of them. For others: see --root.")
    ] = "127.0.0.1",
    root: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="Serve to others what is named so, and nothing else of this computer. Can be given several times; the"
            " sample zoos by default.",
        ),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="For others, also at this computer's own address, behind a proxy.")
    ] = False,
) -> None:
    """Open the explorer in the browser."""
    with reported(), needing("app"):
        if find_spec("streamlit") is None:
            raise ModuleNotFoundError(name="streamlit")
    places = [str(_place(word)) for word in root or ()]
    settings: dict[str, object] = {"server.port": port, "server.address": address}
    settings |= {"server.headless": True} if headless else {}
    code = LAUNCH.format(script=str(main_script()), settings=settings)
    command = [sys.executable, "-P", "-c", code]  # -P: nothing is imported from where it is started
    place = user_path(collection)
    named = {COLLECTION: str(place.resolve()) if os.path.exists(place) else collection} if collection else {}
    named |= {ROOTS: os.pathsep.join(places)} if places else {}
    named |= {SERVED: "1"} if serve else {}
    if os.name == "posix":  # the server takes the place of this process, so that a signal reaches it
        os.execve(sys.executable, command, os.environ | named)
    raise typer.Exit(subprocess.call(command, env=os.environ | named))


def _place(word: str) -> str:
    """The same word with the whole path."""
    name, path = named_place(word)
    place = user_path(path)
    if not os.path.exists(place):
        raise typer.BadParameter(f"{place}: there is nothing to serve.", param_hint="--root")
    word = f"{name}={place.resolve()}" if name else str(place.resolve())
    if os.pathsep in word:
        text = f"{word}: {os.pathsep!r} stands between places in {ROOTS}. Rename it."
        raise typer.BadParameter(text, param_hint="--root")
    return word


def main() -> None:
    typer.run(app)
