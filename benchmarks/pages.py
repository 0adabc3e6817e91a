"""`python -m benchmarks.pages`: how fast the app is with many thousand LoRAs, or with as many modules as Stable
Diffusion's have, in Debian's Chromium.

The collection is synthetic, of small modules: nothing in it was fine-tuned. Times are from a click or keystroke until
the page has been drawn and its script has ended; each is the median of several, and they hold for the machine they were
measured on, which the report names.
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
from itertools import islice
from pathlib import Path
from shutil import copy, rmtree
from typing import Annotated

import numpy as np
import pandas as pd
import psutil
import typer
from playwright.sync_api import Browser, Page, expect

from lol_core.collections.zoo import Zoo
from lol_core.learning.config import TrainingConfig
from lol_core.learning.plan import plan
from lol_core.learning.training import train
from tests.browser import chromium, server, settled
from tests.builders import write_zoo

PAGES = ("Home", "Zoo", "LoRA", "Map", "Train", "Predictions", "Invariance", "Images", "Edit", "Experiments")
SEEN = 1000
"""LoRAs from which a first index takes so long that its progress can be watched."""
PATIENCE = 1_200_000
"""Milliseconds that a first index, the weights or a map are waited for."""
KNOWN = 200
"""LoRAs that a model is trained on, to be asked about all of them."""
EMPTY = "import streamlit as st\nst.title('{name}')\n"
CHANGED = """before => [...document.querySelectorAll('[data-testid=stMetric]')].some(
    metric => metric.innerText.includes('κ(R)') && !metric.innerText.includes(before))"""
"""Whether the metric κ(R) shows another value, asked at every frame."""
DRAWN = """name => [...document.querySelectorAll('h1')].some(heading => heading.innerText.trim() === name)
    && document.querySelector('[data-testid=stApp][data-test-script-state=notRunning]')
    && !document.querySelector('[data-testid=stSkeleton]')"""
"""Whether the page of a name is drawn and its script has run, asked at every frame: Playwright's own waiting looks
again after .1, .25, .5 and 1 s.
"""
LISTED = "text => document.body.innerText.includes(text)"
"""Whether the page says so, asked at every frame."""


def write_many(folder: Path, count: int, modules: int) -> None:
    """LoRAs of so many modules, 8 × 6 and of rank 2, with labels, as PEFT writes them, made without PyTorch: all have
    one header and one configuration. labels: size, the log of what the factors are multiplied by, and its kind.
    """
    draw = np.random.default_rng(0)
    [template] = write_zoo(
        folder / "template", 1, [(f"layer.{i}.attention.self.key", 8, 6, 2) for i in range(modules)]
    )["name"]
    place = folder / "template" / template
    content, config = (place / "adapter_model.safetensors").read_bytes(), (place / "adapter_config.json").read_bytes()
    rmtree(folder / "template")
    head = 8 + int.from_bytes(content[:8], "little")
    sizes = draw.uniform(-1, 1, count)
    for i, size in enumerate(sizes):
        place = folder / f"lora{i:03d}"
        place.mkdir()
        factors = np.exp(size) * draw.standard_normal((len(content) - head) // 4, np.float32)
        (place / "adapter_model.safetensors").write_bytes(content[:head] + factors.astype("<f4").tobytes())
        (place / "adapter_config.json").write_bytes(config)
    names = [f"lora{i:03d}" for i in range(count)]
    labels = {"name": names, "size": sizes, "kind": np.where(sizes > 0, "big", "small")}
    pd.DataFrame(labels).to_csv(folder / "labels.csv", index=False)


def seconds(act: Callable[[], object], done: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    done()
    return time.perf_counter() - started


def switch(page: Page, name: str) -> float:
    title = "LoL Explorer" if name == "Home" else name
    link = page.get_by_test_id("stSidebar").get_by_role("link", name=name, exact=True)
    return seconds(link.click, partial(page.wait_for_function, DRAWN, arg=title, polling="raf", timeout=120_000))


def write_model(folder: Path, work: Path) -> Path:
    """Of the labels of some of these LoRAs. Returns its checkpoint."""
    few = work / "few"
    few.mkdir()
    for place in islice((each for each in folder.iterdir() if each.is_dir()), KNOWN):
        (few / place.name).symlink_to(place)
    copy(folder / "labels.csv", few)
    zoo, config = Zoo.open(few), TrainingConfig(model="svd", epochs=3)
    train(zoo, plan(zoo, ["size"], config), config, work / "model")
    return work / "model"


def measure(folder: Path, cache: Path, count: int, repeats: int, *, model: Path) -> dict[str, object]:
    measured: dict[str, object] = {
        "LoRAs": count,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
    }
    with server(cache) as address, chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        settled(page)
        started = time.perf_counter()
        page.goto(f"{address}/Zoo?collection={folder}")
        if count >= SEEN:
            expect(page.get_by_text(re.compile("Reading headers"))).to_be_visible(timeout=120_000)
            measured["first index: progress is shown after"] = time.perf_counter() - started
            field = page.get_by_role("textbox", name="Labels file")
            measured["first index: a field of the page takes a click after"] = seconds(
                field.click, lambda: expect(field).to_be_focused()
            )
        expect(page.get_by_text(f"{count:,} LoRAs open")).to_be_visible(timeout=PATIENCE)
        measured["first index: done after"] = time.perf_counter() - started
        reading = page.get_by_text(re.compile("Reading weights"))
        if count >= SEEN:
            expect(reading.first).to_be_visible(timeout=60_000)
        expect(reading).to_have_count(0, timeout=PATIENCE)
        measured["weights read after"] = time.perf_counter() - started
        settled(page)
        started = time.perf_counter()
        page.get_by_test_id("stSidebar").get_by_role("link", name="Map", exact=True).click()
        drawn = page.get_by_test_id(re.compile("stPlotlyChart|pointMap"))  # by WebGL where there are many
        expect(drawn.first).to_be_visible(timeout=PATIENCE)
        measured["first map drawn after"] = time.perf_counter() - started
        settled(page)
        times: dict[str, list[float]] = {name: [] for name in PAGES}
        for round in range(repeats + 1):
            for name in PAGES:
                took = switch(page, name)
                if round:  # the first visit of each page is not warm
                    times[name].append(took)
        medians = {name: statistics.median(values) for name, values in times.items()}
        measured["warm page switch, median"] = medians
        switch(page, "Zoo")
        search = page.get_by_placeholder(re.compile("trigger word"))
        keys = []
        for text in ["lora1", "lora12", "lora123"] * repeats:
            expected = sum(text in f"lora{i:03d}" for i in range(count))
            caption = f"{expected:,} of {count:,} LoRAs"
            listed = partial(page.wait_for_function, LISTED, arg=caption, polling="raf", timeout=60_000)
            keys.append(seconds(partial(search.fill, text), listed))
        measured["filter keystroke to redraw, median"] = statistics.median(keys)
        page.wait_for_timeout(1000)  # a keystroke that is sent after a link was followed leaves the page empty
        switch(page, "Home")
        page.get_by_text("Open a trained model").click()
        field = page.get_by_role("textbox", name=re.compile("checkpoint folder"))
        field.fill(str(model))
        field.press("Enter")
        expect(page.get_by_text(re.compile("It can be chosen on the pages"))).to_be_visible(timeout=60_000)
        settled(page)
        answered = page.get_by_text("Every LoRA", exact=True)
        started = time.perf_counter()
        page.get_by_test_id("stSidebar").get_by_role("link", name="Predictions", exact=True).click()
        expect(answered).to_be_visible(timeout=PATIENCE)
        measured["a model's first predictions after"] = time.perf_counter() - started
        settled(page)
        returns = []
        for _ in range(repeats):
            switch(page, "Zoo")
            returns.append(switch(page, "Predictions"))
            expect(answered).to_be_visible(timeout=60_000)
        medians["Predictions with a model"] = statistics.median(returns)
        page.goto(f"{address}/Invariance")
        settled(page)
        metric = page.get_by_test_id("stMetric").filter(has_text="κ(R)").get_by_test_id("stMetricValue")
        slider = page.get_by_role("slider").first
        turns = []
        for key in ["ArrowRight", "ArrowLeft"] * 4 * repeats:
            before = metric.inner_text().strip()
            turns.append(
                seconds(partial(slider.press, key), partial(page.wait_for_function, CHANGED, arg=before, polling="raf"))
            )
            settled(page)
        measured["slider of R to the new numbers, sample zoo"] = {
            "median": statistics.median(turns),
            "9 of 10 within": sorted(turns)[int(0.9 * len(turns))],
        }
        measured["most memory of the app (GB)"] = most_memory() / 1e9
        measured["switch between empty pages of Streamlit, median"] = empty_switch(browser, cache, repeats)
    return measured


def most_memory() -> int:
    """Bytes: the most that the app's server has held in memory so far, as Linux counts it."""
    servers = [of for of in psutil.Process().children() if "streamlit" in of.cmdline()]
    text = "".join(Path(f"/proc/{of.pid}/status").read_text() for of in servers)
    return sum(1024 * int(kilobytes) for kilobytes in re.findall(r"VmHWM:\s*(\d+) kB", text))


def empty_switch(browser: Browser, cache: Path, repeats: int) -> float:
    """Of an app of two pages with nothing but a title: what no page of Streamlit does without."""
    with tempfile.TemporaryDirectory() as place:
        app = Path(place)
        (app / "pages").mkdir()
        (app / "First.py").write_text(EMPTY.format(name="First"))
        (app / "pages" / "Second.py").write_text(EMPTY.format(name="Second"))
        with server(cache, script="First.py", folder=app) as address:
            page = browser.new_page()
            page.goto(address)
            settled(page)
            return statistics.median([switch(page, name) for name in ("Second", "First") * (repeats + 1)][2:])


def main(
    count: int = 10_000,
    *,
    repeats: int = 5,
    modules: Annotated[int, typer.Option(help="Of each LoRA, 8 × 6 and of rank 2.")] = 3,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the report.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="A folder for the synthetic collection, made if it is not there and kept.")
    ] = None,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = keep or Path(place) / "synthetic"
        if not folder.is_dir():
            write_many(folder, count, modules)
        model = write_model(folder, Path(place))
        report = {"modules": modules} | measure(folder, Path(place) / "cache", count, repeats, model=model)
    print(json.dumps(report, indent=1))
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
