"""The app from the command line: `lol-explorer [COLLECTION]`, or `lol app [COLLECTION]`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = "LOL_COLLECTION"
"""The environment variable that names the collection with which the app opens."""


def main_script() -> Path:
    """The app's main script: at the top of a clone, in the package `lol_explorer` of a wheel."""
    return ROOT / "app.py" if (ROOT / "pages").is_dir() else ROOT / "lol_explorer" / "app.py"


def app(
    collection: Annotated[str, typer.Argument(help="What to open first, by default a sample zoo.")] = "",
    port: Annotated[int, typer.Option(help="Where the app answers on this computer.")] = 8501,
    headless: Annotated[bool, typer.Option("--headless", help="Open no browser window.")] = False,
) -> None:
    """Open the explorer in the browser."""
    command = [sys.executable, "-m", "streamlit", "run", str(main_script()), f"--server.port={port}"]
    if headless:
        command.append("--server.headless=true")
    place = Path(collection).expanduser()
    named = {COLLECTION: str(place.resolve()) if place.exists() else collection} if collection else {}
    if os.name == "posix":  # the server takes the place of this process, so that a signal reaches it
        os.execve(sys.executable, command, os.environ | named)
    raise typer.Exit(subprocess.call(command, env=os.environ | named))


def main() -> None:
    typer.run(app)
