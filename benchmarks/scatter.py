"""`python -m benchmarks.scatter`: the map of 100,000 and of 1,000,000 points in Debian's Chromium.

The points are synthetic: no LoRA was made for them. WebGL is computed by the processor here, so that a graphics card
only shortens the times. Each is taken from a click or key until the browser shows what it asked for, and stands beside
the same of 1,000 points in the same run; Python's share is in it. Medians, with every sample.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import Browser, Page, expect

from tests.browser import chromium, server
from tests.test_scatter_browser import Traffic

PATIENCE = 300_000  # milliseconds
STEPPED = "before => document.querySelector('[data-testid=mapCard]').innerText != before"


def seconds(act: Callable[[], object], done: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    done()
    return time.perf_counter() - started


def shows(page: Page, condition: str) -> None:
    """Wait until a condition on the map's attributes holds, asked at every frame."""
    map_ = "document.querySelector('[data-testid=pointMap]')?.dataset"
    page.wait_for_function(f"(() => {{ const map = {map_}; return map && {condition} }})()", polling="raf")


def measure(browser: Browser, address: str, count: int, repeats: int) -> dict[str, object]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    traffic = Traffic(page)
    page.goto(f"{address}/?points={count}")  # the points are made at the first visit
    shows(page, "map.drawn")
    settled = page.get_by_test_id("stApp")
    sent = traffic.received
    times: dict[str, list[float]] = {}

    def add(what: str, took: float) -> None:
        times.setdefault(what, []).append(took)
        expect(settled).to_have_attribute("data-test-script-state", "notRunning")

    for _ in range(repeats):
        add("page opened until the map is drawn", seconds(page.reload, lambda: shows(page, "map.drawn")))
    legend = page.get_by_role("button", name=re.compile(r"^cloud 2"))
    python = page.get_by_text(f"Python has {(count + 5) // 8} selected")
    outside = page.get_by_role("button", name="Select the first hundred")
    before = traffic.received
    for _ in range(repeats):
        add("an eighth of the points selected until Python has them", seconds(legend.click, python.wait_for))
        marked = partial(shows, page, "map.selected == 100")
        add("selected outside until they are marked", seconds(outside.click, marked))
    selecting = (traffic.received - before) / (2 * repeats)
    for name in ("height", "cloud") * repeats:
        old = page.get_by_test_id("pointMap").get_attribute("data-colour")
        changed = partial(shows, page, f"map.colour != '{old}'")
        add("another colour until it is drawn", seconds(page.get_by_role("radio", name=name).click, changed))
    plot = page.locator(".lol-map-plot")
    plot.focus()
    for pressed in ("ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown") * repeats:
        stepped = partial(page.wait_for_function, STEPPED, arg=page.get_by_test_id("mapCard").inner_text())
        add("arrow key until the next point is shown", seconds(partial(plot.press, pressed), stepped))
    context.close()
    return {
        "median seconds": {what: round(statistics.median(samples), 3) for what, samples in times.items()},
        "megabytes sent for the first map": round(sent / 1e6, 2),
        "megabytes sent for a selection": round(selecting / 1e6, 3),
        "samples": {what: [round(sample, 3) for sample in samples] for what, samples in times.items()},
    }


def main(
    counts: Annotated[list[int] | None, typer.Argument(help="Numbers of points.")] = None,
    repeats: int = 5,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the report.")] = None,
) -> None:
    report: dict[str, object] = {
        "data": "synthetic points, for which no LoRA was made",
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "load before": round(os.getloadavg()[0], 1),
        "WebGL": "SwiftShader, on the processor",
    }
    with (
        tempfile.TemporaryDirectory() as cache,
        server(Path(cache), script="tests/scatter_app.py") as address,
        chromium() as browser,
    ):
        for count in counts or [1_000, 100_000, 1_000_000]:
            report[f"{count:,} points"] = measure(browser, address, count, repeats)
    report["load after"] = round(os.getloadavg()[0], 1)
    print(json.dumps(report, indent=1))
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
