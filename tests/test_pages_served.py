"""The app as it is served to others: what a visitor may open and sees, and what stays with one visitor."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import pytest
import streamlit as st
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from streamlit import config
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from lol_core.cli.app import COLLECTION, ROOTS, SERVED
from lol_core.cli.commands import app
from lol_core.collections.cache import cache_folder
from lol_core.collections.opening import open_source
from lol_core.collections.served import Roots
from lol_core.core.progress import Reporter
from lol_core.errors import ZooError
from tests.builders import MODULES, random_lora, write_peft, write_zoo
from tests.conftest import ROOT, SAMPLE_ZOO
from tests.hub import Hub, hub
from tests.test_pages import PAGES, opened, settled, text_of
from tests.test_pages_sources import button
from tests.waiting import PATIENCE, until
from ui import access as policy
from ui import visitors
from ui.access import Limits, Served, access
from ui.jobs import Job, sentence
from ui.plain import plain
from ui.turns import Turns

__all__ = ["hub"]

DETAILS = "client.showErrorDetails"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The app for others with the folder `class`, of which its parent holds more than is named."""
    folder = tmp_path.resolve() / "class"
    write_zoo(folder, 12)
    write_zoo(folder.parent / "mine", 3)
    (folder / "gone.safetensors").symlink_to(folder.parent / "mine" / "lora000" / "adapter_model.safetensors")
    monkeypatch.setenv(ROOTS, f"class={folder}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE)
    details, factory, show = st.get_option(DETAILS), logging.getLogRecordFactory(), warnings.showwarning
    others = {name: st.get_option(name) for name in ("logger.enableRich", "server.maxUploadSize")}
    policy._served.cache_clear()
    yield folder
    policy._served.cache_clear()
    st.set_option(DETAILS, details)
    for name, value in others.items():
        config.set_option(name, value)
    logging.setLogRecordFactory(factory)
    logging.captureWarnings(False)
    warnings.showwarning = show


def everything(test: AppTest) -> str:
    """All that a page has sent, each element as it goes to the browser, and the URL."""

    def below(node: Any) -> Iterator[Any]:
        for child in getattr(node, "children", {}).values():
            yield child
            yield from below(child)

    elements = list(below(test._tree))
    tables = [element.value.to_csv() for element in test.dataframe]
    return "\n".join([*(str(getattr(element, "proto", "")) for element in elements), *tables, str(test.query_params)])


def names_no_place(test: AppTest, folder: Path) -> bool:
    """Whether neither the folder of a test nor one of the program, the cache or the system stands on a page."""
    places = (folder.parent, ROOT, cache_folder(), Path(sys.prefix), Path.home() / "x", Path("/etc"))
    text = everything(test).replace("/etc/", "" if "collection" in test.query_params else "/etc/")
    return not any(str(place) in text for place in places)


def test_every_page_works_and_shows_no_path(served: Path) -> None:
    test = opened("Home", None)
    assert "zoo://class" in text_of(test) and "class" in [button.label for button in test.button]
    for page, path in PAGES.items():
        test = settled(test.switch_page(path).run() if page != "Home" else test)
        assert not test.exception and not test.error, page
        assert "12 LoRAs open, 1 file refused" in text_of(test)
        assert names_no_place(test, served), page
        if page == "Images":
            assert test.selectbox(key="images.base").options == ["small-diffusion"], "no path, and no hub"
    assert [field.label for field in test.text_input][:2] == ["Collection", "Labels file"]


def test_a_visitor_opens_nothing_that_is_not_named(served: Path) -> None:
    outside = ["/etc", str(served), str(served.parent / "mine"), "class/../mine", f"file://{served}", "~", "s3://b/a"]
    test = opened("Zoo", None)
    for address in outside:
        test.query_params["collection"] = address
        test = settled(test.run())
        (error,) = test.error
        assert "not among what is served here" in error.value and not test.dataframe
        assert "LoRAs open" not in text_of(test) and str(served.parent) not in error.value
    test.query_params["collection"], test.query_params["labels"] = "class", str(served.parent / "mine" / "labels.csv")
    assert "not among what is served here" in settled(test.run()).error[0].value
    test.query_params["labels"] = "class/labels.csv"
    test = settled(test.run())
    assert not test.error and "Labels from class/labels.csv" in text_of(test) and names_no_place(test, served)
    test.query_params["visit"] = "²"
    assert not test.run().exception and "visit" not in test.query_params, "a digit to Python, and no stop"


@pytest.mark.parametrize("link", ["", "README.md", "model.safetensors"])
def test_a_model_that_leads_out_of_its_place_is_not_offered(link: str, tmp_path: Path) -> None:
    place, secret = tmp_path.resolve() / "models", tmp_path.resolve() / "secret"
    for folder in (place / "good", place / "bad", secret):
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text("{}")
    if link:
        (place / "bad" / link).symlink_to(secret / "checkpoint.json")
    else:
        shutil.rmtree(place / "bad")
        (place / "bad").symlink_to(secret)
    models = Served(Roots.named([str(place)]), "", Limits()).models
    assert [path.name for path in models if path.parent == place] == ["good"]


def test_of_the_hub_visitors_see_what_anyone_sees(served: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner in ("open", "mine"):
        hub.add(f"models/{owner}/zoo", served / "lora000", private=owner == "mine")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    assert len(open_source("hf://mine/zoo")) == 1, "the owner's own app"
    here, before = access(), len(hub.asked)
    assert len(here.open("hf://open/zoo", "")) == len(here.open("https://huggingface.co/open/zoo", "")) == 1
    with pytest.raises(ZooError, match="or it is private"):
        here.open("hf://mine/zoo", "")
    assert not any(asked.token for asked in hub.asked[before:])
    for name in ("first", "second"):
        hub.add(f"models/{name}/zoo", served / "lora000")
        source = here.open(f"hf://{name}/zoo", "")
        source.load(source.ids[0])
    kept_of = cache_folder() / "served" / "hub"
    assert {path.name for path in kept_of.glob("models--*")} == {"models--first--zoo", "models--second--zoo"}
    blobs = [path.stat() for path in (kept_of / "models--second--zoo" / "blobs").iterdir()]
    for blob in (kept_of / "models--first--zoo" / "blobs").iterdir():
        os.utime(blob, (0, 0))
    monkeypatch.setenv("LOL_HUB_GB", str(1.5 * sum(blob.st_size for blob in blobs) / 1e9))
    assert len(access().open("hf://first/zoo", "")) == 1, "which is listed anew"
    assert {path.name for path in kept_of.glob("models--*")} == {"models--second--zoo"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert here.open("hf://open/zoo", "").remarks
    with pytest.raises(ZooError, match="HF_HUB_OFFLINE"):
        here.open("hf://mine/zoo", "")


def endless(reporter: Reporter) -> None:
    while True:
        reporter.check("Nothing.")


def test_models_and_selections_stay_with_their_visitor_and_go_with_them(served: Path) -> None:
    first, second = opened("Train", None, targets="size"), opened("Train", None)
    first.number_input(key="train.epochs").set_value(2)
    first = button(first, "Train")
    state = first.session_state["session"]
    until(lambda: not state.training.running, "the end of the training")
    assert [run.error for run in state.training.subject] == [None]
    assert "GL-net → size (seed 0)" in first.run().selectbox[-1].options
    assert "None yet" in text_of(second.run()), "the model of another visitor"
    folders = [test.session_state["session"].folder for test in (first, second)]
    assert [len(list(folder.glob("runs/*/*/checkpoint.json"))) for folder in folders] == [1, 0]
    assert not {"runs", "recent.json", "index"} & {path.name for path in cache_folder().iterdir()}, "the owner's own"
    visitors._VISITORS[state].id, visitors._VISITORS[second.session_state["session"]].id = "first", "second"
    state.validation = Job(endless, None).start()
    state.answers["a model"] = predicting = Job(endless, None, takes_turns=False).start()
    there_still = {"second"}
    for now, there in ((0.0, True), (9.0, True), (11.0, False)):
        visitors.end(there_still.__contains__, now, 10.0)
        assert [folder.exists() for folder in folders] == [there, True] and state.validation.stopping is not there
        assert predicting.stopping is not there
    state.validation.wait(PATIENCE)
    assert not state.validation.running


def test_a_lost_connection_may_come_back(served: Path) -> None:
    state = opened("Home", None).session_state["session"]
    for here, now in ((False, 0.0), (True, 9.0), (False, 18.0), (False, 27.0)):
        visitors.end(lambda id, here=here: here, now, 10.0)  # type: ignore[misc]  # a default binds the value of this round
    assert state.folder.exists()


def test_what_an_idle_visitor_made_is_deleted_after_a_time(served: Path) -> None:
    idle, present = (access().visitor_folder() for _ in range(2))
    assert idle is not None and present is not None
    os.utime(idle, (0, time.time() - 3600 * access().limits.hours - 60))
    (idle.parent / "gone").symlink_to("nowhere")  # as one that another beginning deletes meanwhile
    assert access().visitor_folder() != present
    assert not idle.exists() and present.exists()


def test_long_and_many_jobs_end_with_a_sentence(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOL_JOB_MINUTES", "0.001")
    monkeypatch.setenv("LOL_JOBS", "1")
    job = Job(endless, None).start()
    refused = Job(endless, None).start()
    light = Job(lambda reporter: 3, None, takes_turns=False).start()
    light.wait(PATIENCE)
    assert light.result == 3, "light work does not wait behind trainings"
    assert not refused.running and "as much to do as it takes on" in str(refused.error)
    refused.wait(1)
    job.wait(PATIENCE)
    assert not job.running and "Stopped after 0.001 minutes" in str(job.error)
    monkeypatch.setenv("LOL_JOBS", "2")
    again = Job(lambda reporter: 3, None).start()
    again.wait(PATIENCE)
    assert again.result == 3 and again.error is None


def test_one_with_much_to_do_holds_up_nobody_for_longer_than_a_turn() -> None:
    turns, order = Turns(), list[str]()
    assert turns.take("somebody")

    def work(visitor: str) -> None:
        assert turns.take(visitor)
        order.append(visitor)
        turns.give()

    threads = []
    for visitor in ("a", "a", "a", "b", "c", "b"):
        threads.append(threading.Thread(target=work, args=(visitor,), daemon=True))
        threads[-1].start()
        until(lambda: len(turns.waiting) == len(threads), "its place in the queue")
    assert not turns.take("gone", stopping=lambda: True) and len(turns.waiting) == 6
    turns.give()
    for thread in threads:
        thread.join(PATIENCE)
    assert order == ["a", "b", "c", "a", "b", "a"]


def test_whoever_comes_back_is_not_taken_for_new() -> None:
    turns, order = Turns(), list[str]()

    def work(visitor: str, more: str) -> None:
        assert turns.take(visitor)
        order.append(visitor)
        if more:
            come(more, "")
        turns.give()

    def come(visitor: str, more: str) -> None:
        before = len(turns.waiting)
        threads.append(threading.Thread(target=work, args=(visitor, more), daemon=True))
        threads[-1].start()
        until(lambda: len(turns.waiting) == before + 1, "its place in the queue")

    threads = list[threading.Thread]()
    assert turns.take("somebody")
    for visitor, more in (("b", ""), ("b", ""), ("a", ""), ("c", "a")):  # a again while c has its turn
        come(visitor, more)
    turns.give()
    until(lambda: len(order) == 5, "all turns")
    assert order == ["b", "a", "c", "b", "a"]


def test_one_visitor_cannot_fill_the_queue(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOL_JOBS", "6")
    jobs = [Job(endless, None).start() for _ in range(3)]
    other = Job(endless, None)
    other.visitor = "another"
    try:
        assert [job.running for job in jobs] == [True, True, False] and "for you already" in str(jobs[2].error)
        assert other.start().running
    finally:
        for job in (*jobs, other):
            job.stop()
            job.wait(PATIENCE)


def test_what_went_wrong_is_told_without_the_place_where(
    served: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/Jane Doe")
    try:
        (served / "none").read_bytes()
    except OSError as error:
        shown = sentence(error)
    (record,) = caplog.records
    logged = logging.Formatter().format(record)
    assert "FileNotFoundError" in shown and "FileNotFoundError" in logged
    assert "test_what_went_wrong" in logged, "the traceback"
    for text in (shown, logged):
        assert str(served.parent) not in text and str(ROOT) not in text
    said = sentence(ZooError(f"{served}/a.safetensors and {cache_folder()}/index/b.sqlite of 3/4 at hf://a/b: gone"))
    assert said == "zoo://class/a.safetensors and …/b.sqlite of 3/4 at hf://a/b: gone"
    tops = (Path.home(), Path(sys.prefix), ROOT, Path(tempfile.gettempdir()))
    for place in (*(top / "My Zoo" / "a b" for top in tops), Path("~/secret/zoo/a"), Path("/secret/zoo/a")):
        for text in (f"{place}: gone", f"file://{place}", f"error:{place}", f"at {place}/b.txt"):
            shown = sentence(ZooError(text))
            assert not any(str(top) in shown for top in (*tops, "Doe", "secret")), shown
    logging.getLogger(__name__).warning("%d of %s", "one")
    assert "%d of %s" in caplog.messages
    assert constants.HF_HUB_DISABLE_IMPLICIT_TOKEN, "the token of who runs the server is not the visitors'"
    assert st.get_option(DETAILS) == "none"


def test_files_that_are_too_large_are_not_read(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def page() -> None:
        import streamlit as st

        from ui.dropped import dropped_loras

        st.write(f"{len(dropped_loras())} LoRAs")

    weights = (served / "lora000" / "adapter_model.safetensors").read_bytes()
    monkeypatch.setenv("LOL_UPLOAD_MB", "1")
    for value, megabytes in {"0.3": 1, "inf": 10**6, "nan": 50, "1": 1}.items():
        monkeypatch.setenv("LOL_UPLOAD_MB", value)
        assert Limits.served().upload_mb == megabytes
    assert access().served and st.get_option("server.maxUploadSize") == 1, "which Streamlit holds to while it comes"
    test = AppTest.from_function(page).run()
    test.file_uploader[0].set_value([("a.safetensors", weights, "application/octet-stream")])
    assert "1 LoRAs" in text_of(test.run()) and not test.error
    many = [(f"{i}.safetensors", weights + bytes(2**19), "application/octet-stream") for i in range(3)]
    test.file_uploader[0].set_value(many)
    assert "0 LoRAs" in text_of(test.run()) and "more than 1 MB together" in test.error[0].value


def test_what_is_dropped_together_is_told_apart(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def page() -> None:
        import streamlit as st

        from ui.dropped import dropped_loras

        st.write(f"found {', '.join(f'{name} ({lora.layers[0].scale:g})' for name, lora in dropped_loras().items())}.")

    def dropped(*files: tuple[str, bytes]) -> AppTest:
        test.file_uploader[0].set_value([(name, content, "application/octet-stream") for name, content in files])
        return test.run()

    def zipped(*files: tuple[str, bytes]) -> bytes:
        with zipfile.ZipFile(content := BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.writestr(*file)
        return content.getvalue()

    monkeypatch.setenv("LOL_UPLOAD_MB", "1")
    test = AppTest.from_function(page).run()
    write_peft(served / "four", random_lora(MODULES, dtype=torch.float32), alpha=8)
    write_peft(served / "one", random_lora(MODULES, 1, dtype=torch.float32), alpha=2)
    large = random_lora([("q", 2**10, 2**9, 2**8)])
    zeros = large.layers[0].with_pair(torch.zeros(2**10, 2**8), torch.zeros(2**9, 2**8))
    write_peft(served / "large", replace(large, layers=(zeros,)))
    four, one = (
        [(name, (served / lora / name).read_bytes()) for name in ("adapter_model.safetensors", "adapter_config.json")]
        for lora in ("four", "one")
    )
    alone = dropped(four[0])
    assert plain("adapter_model.safetensors: No alpha in the file") in alone.caption[0].value
    whole = dropped(*four, four[0])
    assert "found adapter_model.safetensors (4)." in text_of(whole) and not whole.caption
    mixed = dropped(*four, *one)
    assert "found ." in text_of(mixed) and "Two files are called adapter_model.safetensors" in mixed.error[0].value
    files = [(f"{lora}/{name}", content) for lora, of in (("four", four), ("one", one)) for name, content in of]
    both = dropped(("both.zip", zipped(*files, ("cut.safetensors", four[0][1][:99]))))
    assert "found both.zip/four (4), both.zip/one (1)." in text_of(both)
    assert "both.zip/cut.safetensors: Not a safetensors file, or cut off" in both.error[0].value
    for name, content, reason in (
        ("damaged.zip", b"PK", "damaged or cut off"),
        ("none.zip", zipped(("readme.txt", b"hello")), "There is no LoRA in none.zip"),
        ("bomb.zip", zipped(*((name, (served / "large" / name).read_bytes()) for name, _ in four)), "more than 1 MB"),
        ("many.zip", zipped(*((f"{i}/{name}", content) for i in range(21) for name, content in four)), "at most 20"),
    ):
        refused = dropped((name, content))
        assert reason in refused.error[0].value and "found ." in text_of(refused) and "/tmp" not in text_of(refused)


@pytest.mark.parametrize(
    ("address", "named", "others"),
    [
        ("127.0.0.1", {}, False),
        ("localhost", {}, False),
        ("::1", {}, False),
        ("127.0.0.1", {SERVED: "1"}, True),
        ("127.0.0.1", {ROOTS: "/data"}, True),
        (None, {}, True),
        ("0.0.0.0", {}, True),
        ("192.168.1.7", {COLLECTION: "/data/mine"}, True),
        ("my.host", {}, True),
        ("unix:///run/app.sock", {}, True),
    ],
)
def test_an_app_is_for_others_by_its_address_or_when_it_is_said(
    address: str | None, named: dict[str, str], others: bool, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ROOTS)
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(policy.st, "get_option", lambda name: address)
    monkeypatch.setattr(policy, "_prepare", lambda served: None)
    assert access().served is others
    if COLLECTION in named:
        assert access().zoos == {"mine": "zoo://mine"} and access().first == "zoo://mine"
    elif others and ROOTS not in named:
        assert list(access().zoos) == ["glosses", "faces", "emojinette"] and access().first == "zoo://glosses"
    if not others:
        assert access().zoos["glosses"] == access().first == str(SAMPLE_ZOO.resolve()), "nothing changes"


def test_the_command_names_what_is_served(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def start(file: str, command: list[str], environment: dict[str, str]) -> NoReturn:
        started.append((command, environment))
        raise SystemExit

    monkeypatch.setattr(os, "execve", start)
    monkeypatch.delenv(ROOTS)
    words = ["app", "--root", f"people={served}", "--root", str(served.parent), "--serve", "--address", "0.0.0.0"]
    CliRunner().invoke(app, words)
    (command, environment) = started[0]
    colon = served.parent / "a:b"
    colon.mkdir()
    refused = CliRunner().invoke(app, ["app", "--root", str(colon)])
    assert refused.exit_code == 2 and "stands between places" in refused.output and len(started) == 1
    assert environment[ROOTS].split(os.pathsep) == [f"people={served}", str(served.parent)] and environment[SERVED]
    assert "'server.address': '0.0.0.0'" in command[-1]
    CliRunner().invoke(app, ["app"])
    assert "'server.address': '127.0.0.1'" in started[1][0][-1] and not {ROOTS, SERVED} & started[1][1].keys()
    missing = CliRunner().invoke(app, ["app", "--root", str(served / "none")])
    assert missing.exit_code == 2 and "nothing to serve" in missing.output and len(started) == 2
