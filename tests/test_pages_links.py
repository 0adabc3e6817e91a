"""Deep links, and what stands in a URL."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from lol_core.collections.zoo import Zoo
from lol_core.experiments import OF_PAPER
from lol_core.experiments.result import Holds, Result
from tests.builders import MODULES, random_lora, write_peft, write_zoo
from tests.conftest import ROOT
from tests.test_pages import PAGES, opened, settled, text_of
from tests.waiting import PATIENCE
from ui.results import kept_results


def test_links_from_before_keys_had_a_place_still_set_their_widgets(tmp_path: Path) -> None:
    write_zoo(tmp_path, 12)
    write_peft(tmp_path / "odd", random_lora([(name, n, m, 1) for name, n, m, _ in MODULES]))
    test = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE).switch_page(PAGES["Zoo"])
    for name, value in (("collection", str(tmp_path)), ("q", "lora01"), ("rank", "2")):
        test.query_params[name] = value
    test.run()
    assert test.text_input(key="zoo.q").value == "lora01" and "2 of 13 LoRAs" in text_of(test)
    assert test.multiselect(key="zoo.rank").value == [2]
    assert "q" not in test.query_params and not test.exception


def test_a_deep_link_to_a_lora(synthetic_folder: Path) -> None:
    test = opened("LoRA", synthetic_folder, lora="lora007/adapter_model.safetensors")
    assert test.selectbox(key="lora.lora").value == "lora007/adapter_model.safetensors" and not test.exception
    layers = next(frame.value for frame in test.dataframe if "effective rank" in frame.value.columns)
    assert len(layers) == 3 and (layers["effective rank"] <= 2).all()


def test_a_link_to_a_lora_that_is_not_here_says_so(synthetic_folder: Path) -> None:
    test = opened("LoRA", synthetic_folder, lora="<b>gone</b>" + 5000 * "x")
    (said,) = (toast.value for toast in test.toast)
    assert said.startswith("The link asks for the LoRA ") and "gone" in said and len(said) < 200 and not test.exception
    assert test.selectbox(key="lora.lora").value and "lora.lora" not in test.query_params
    assert not opened("LoRA", synthetic_folder, lora="lora007/adapter_model.safetensors").toast


@pytest.mark.parametrize("link", [{}, {"lora.lora": "lora002/adapter_model.safetensors"}])
def test_a_chosen_lora_stays_while_other_pages_are_looked_at(link: dict[str, str], synthetic_folder: Path) -> None:
    test = opened("LoRA", synthetic_folder)
    test.selectbox(key="lora.lora").set_value("lora002/adapter_model.safetensors").run()
    test.switch_page(PAGES["Zoo"])
    del test.query_params["lora.lora"]  # the sidebar's links carry nothing of a page
    test.run().switch_page(PAGES["LoRA"])
    test.query_params.update(link)
    test.run()
    assert test.selectbox(key="lora.lora").value == "lora002/adapter_model.safetensors" and not test.toast
    assert "lora002/adapter_model.safetensors" in test.query_params["lora.lora"]


@pytest.mark.parametrize(
    ("page", "link"),
    [
        ("Predictions", {"model": "gone"}),
        ("Edit", {"model": "gone"}),
        ("Map", {"space": "Latent of gone"}),
        ("Images", {"rank_by": "gone"}),
        ("Train", {"targets": "gone", "models": "gone"}),
        ("Zoo", {"by": "gone"}),
        ("LoRA", {"coloured_by": "gone"}),
        ("Edit", {"wish": "gone", "method": "gone"}),
    ],
)
def test_what_a_link_asks_for_and_is_not_here_is_told_once(page: str, link: dict[str, str]) -> None:
    test = opened(page, None, **link)
    said = [toast.value for toast in test.toast]
    assert len(said) == len(link) and not test.exception
    assert all(word.startswith("The link asks for the ") and "gone" in word for word in said)
    assert not test.run().toast


def test_links_carry_ids_and_not_names(tmp_path: Path) -> None:
    write_zoo(tmp_path, 3)
    write_peft(tmp_path / "lora001.bin", random_lora(MODULES, 9))
    (tmp_path / "lora001.bin" / "adapter_model.safetensors").rename(tmp_path / "lora001.safetensors")
    shutil.rmtree(tmp_path / "lora001.bin")
    (tmp_path / "labels.csv").unlink()
    names = Zoo.open(tmp_path).names
    assert "lora001" not in names.values(), "two files share it, and one was there before the other"
    test = opened("LoRA", tmp_path, lora="lora001/adapter_model.safetensors", beside="lora001.safetensors")
    assert test.selectbox(key="lora.lora").value == "lora001/adapter_model.safetensors"
    assert test.selectbox(key="lora.beside").value == "lora001.safetensors" and not test.exception
    test.selectbox(key="lora.lora").set_value("lora002/adapter_model.safetensors").run()
    assert test.query_params["lora.lora"] in (
        "lora002/adapter_model.safetensors",
        ["lora002/adapter_model.safetensors"],
    )
    test.selectbox(key="lora.lora").set_value(test.selectbox(key="lora.lora").options[0]).run()
    assert "lora.lora" not in test.query_params and not test.exception
    named = opened("LoRA", tmp_path, lora="lora002").selectbox(key="lora.lora").value
    assert named == "lora002/adapter_model.safetensors", "a name typed by hand"


@pytest.mark.parametrize("link", ["Figure 5", "figure5", "figure 5"])
def test_an_experiment_is_linked_as_it_is_called_on_the_page_or_on_the_command_line(link: str) -> None:
    test = opened("Experiments", None, experiment=link)
    assert test.selectbox(key="experiments.experiment").value == "figure5" and not test.warning


def test_a_link_to_no_experiment_says_so() -> None:
    assert "no experiment called Table 9" in opened("Experiments", None, experiment="Table 9").warning[0].value


def test_findings_of_the_paper_stand_apart_from_questions_of_our_own_and_below_what_they_are_read_from() -> None:
    test = opened("Experiments", None, experiment="Figure 4")
    headings = [element.value for element in test.markdown if "badge[" in element.value]
    assert [heading.split("**")[1] for heading in headings] == ["The paper's findings", "Not asked in the paper"]
    told = [e.type for e in test.main if e.type == "plotly_chart" or "badge[" in str(getattr(e, "value", ""))]
    assert told == ["plotly_chart", "markdown", "markdown"]
    of_paper = Result.read(ROOT / "docs" / "results" / "figure4").findings[:-1]
    assert all(finding.in_paper for finding in of_paper)
    unclear = sum(finding.holds is Holds.NOT_CLEAR for finding in of_paper)
    assert (
        "1 holds" in headings[1]
        and f"{unclear} are not clear" in headings[0]
        and text_of(test).count("Not asked in the paper") == 1
    )


def test_a_deep_link_to_an_experiment_shows_its_verdicts_and_runs_it_small() -> None:
    test = opened("Experiments", None, experiment="Figure 5")
    assert not test.exception and "Figure 5: time over the GPT-3 family" in text_of(test) and "holds" in text_of(test)
    shown = Result.read(ROOT / "docs" / "results" / "figure5")
    searched = replace(shown, settings={"budget": {"search": {"settings": 24}}})
    assert test.code[0].value == shown.command and searched.command == f"{shown.command} --halving"
    findings = [
        finding
        for name in OF_PAPER
        for finding in Result.read(ROOT / "docs" / "results" / name).findings
        if finding.in_paper
    ]
    counts = test.dataframe[0].value
    assert int(counts.sum().sum()) == len(findings) and "TuckerNet" not in " ".join(counts.index)
    test.button(key="experiments.run_small").click().run()
    settled(test)
    job = test.session_state["session"].experiment
    assert not test.exception and job is not None and job.error is None and "small run" in job.result.title
    other = opened("Experiments", None, experiment="Figure 4")
    assert "Figure 4: models of rank 4" in text_of(other) and "Figure 5: time over" not in text_of(other)


def test_a_kept_result_is_read_once_until_it_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.results.RESULTS", tmp_path)
    assert kept_results(["table1"]) == {}
    shutil.copytree(ROOT / "docs" / "results" / "table1", tmp_path / "table1")
    first = kept_results(["table1"])["table1"]
    assert kept_results(["table1"])["table1"] is first
    settings = tmp_path / "table1" / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"title": "Another"}))
    assert kept_results(["table1"])["table1"].title == "Another"
