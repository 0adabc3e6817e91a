"""Driving the app in Debian's Chromium: a server of its own, and pages that have settled."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect, sync_playwright

from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
MILLISECONDS = 1000 * PATIENCE
last_port: list[int] = []
expect.set_options(timeout=MILLISECONDS)


def free_port() -> int:
    """That of the last server, where it has ended: what Chromium has compiled of its frontend is compiled no more."""
    for port in (*last_port, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            last_port[:] = [probe.getsockname()[1]]
            break
    return last_port[0]


@contextmanager
def server(
    cache: Path,
    log: Path = Path(os.devnull),
    script: str = "app.py",
    *,
    command: Sequence[str] = ("-m", "streamlit", "run", "{script}", "--server.port={port}", "--server.headless=true"),
    code: Path = ROOT,
    folder: Path = ROOT,
) -> Iterator[str]:
    """The app, or another script, on a free port of this machine; yields its address. log: what it prints is written
    there; command: what Python is started with, in `folder`, where it imports from `code`.
    """
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *(part.format(script=script, port=port) for part in command)],
            cwd=folder,
            env=os.environ | {"LOL_CACHE_DIR": str(cache), "PYTHONPATH": str(code)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert process.poll() is None, "the server has ended"
        try:
            return urlopen(f"{address}/_stcore/health", timeout=PATIENCE).status == 200
        except OSError:
            return False

    try:
        until(healthy, f"the server at {address}")
        yield address
    finally:
        process.kill()  # no test asks how it ends, and jobs that it still runs would be waited for
        process.wait(PATIENCE)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


def cleared(page: Page) -> Page:
    """As a new visitor has it: a light page of 1280 × 900 that holds nothing and has stored nothing."""
    if page.url.startswith("http"):
        page.evaluate("localStorage.clear(); sessionStorage.clear()")
    page.context.clear_cookies()
    page.goto("about:blank")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    return page


def settled(page: Page) -> Page:
    """Wait until the script of the page has run and nothing is drawn as a skeleton any more."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=MILLISECONDS)
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')", timeout=MILLISECONDS)
    return page


def downloaded(page: Page, button: Locator) -> Path:
    """What a button gives. It is clicked again when nothing comes, as a person would: a rerun of the page puts a file
    off that is only made when it is asked for.
    """
    for milliseconds in (MILLISECONDS / 20, MILLISECONDS / 5, MILLISECONDS):
        with suppress(TimeoutError):
            with settled(page).expect_download(timeout=milliseconds) as download:
                button.click()
            return Path(download.value.path())
    raise AssertionError(f"no file came of {button}")
