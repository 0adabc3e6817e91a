"""What holds for all notebooks, whoever writes the next one: they run, in the order in which they stand."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import plotly.io as pio
import pytest
import torch

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# what reads them takes seconds to import, and is not imported above; a reader's indexes and packed zoos are kept
pytestmark = [pytest.mark.xdist_group("notebooks"), pytest.mark.one_cache]
ALLOWED = {"lol_core", "torch", "numpy", "pandas", "plotly", "sklearn", "scipy", "PIL", "ipywidgets"}


def test_scripts_and_notebooks_are_paired() -> None:
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in sorted(FOLDER.glob("*.py"))]
    assert [int(path.name[:2]) for path in NOTEBOOKS] == list(range(1, len(NOTEBOOKS) + 1))


@contextmanager
def kept_dtype() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)


def words(outputs: list[dict[str, Any]]) -> set[str]:
    """What a cell prints and its tables say, without numbers, which no two machines round alike."""
    texts = ["".join(output.get("text") or output.get("data", {}).get("text/html", "")) for output in outputs]
    shown = re.sub(r"<style.*?</style>|<[^>]+>", " ", "\n".join(texts), flags=re.DOTALL)
    return set(re.findall(r"[^\W\d_]{3,}", shown))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shell of IPython in this process, which has long imported what a kernel of its own would import anew; what
    each cell shows is made in every form that a page of Jupyter could ask for, and still says what was committed.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    assert shell.display_formatter is not None
    shell.display_formatter.active_types = shell.display_formatter.format_types
    with patch.dict(os.environ), kept_dtype():
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                with redirect_stdout(io.StringIO()) as said:
                    ended = shell.run_cell("".join(cell["source"]))
                    ended.raise_error()
                    shown, _ = shell.display_formatter.format(ended.result)
                missing = words(cell["outputs"]) - words([{"text": said.getvalue()}, {"data": shown}])
                assert not missing, f"{path.name} no longer shows what was committed: `make notebooks`"


@pytest.mark.parametrize("rank", [1, 3])
def test_what_holds_in_notebook_5_holds_at_the_ranks_that_it_asks_to_try(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)
    cells = json.loads(NOTEBOOKS[4].read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    asked = code.replace("n, m, r = 3, 2, 2", f"n, m, r = 3, 2, {rank}")
    assert asked != code
    with kept_dtype():
        exec(asked, {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script_with_light_outputs(path: Path) -> None:
    import jupytext
    import nbformat

    notebook, script = nbformat.read(path, 4), jupytext.read(path.with_suffix(".py"))
    for ours, theirs in zip(notebook.cells, script.cells, strict=True):
        assert (ours.cell_type, ours.source) == (
            theirs.cell_type,
            theirs.source,
        ), f"{path.name} is not what its script says: `make notebooks`"
    assert path.stat().st_size < 1_000_000, "outputs are committed light"
    nbformat.validate(notebook)
    executed = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in executed), "committed with its outputs"
    assert any("image/png" in output.get("data", {}) for cell in executed for output in cell.outputs), (
        "a picture for pages that do not run Python"
    )
    assert not any(output.output_type == "error" for cell in executed for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_the_library_alone_and_ends_in_assertions(path: Path) -> None:
    import jupytext

    cells = jupytext.read(path.with_suffix(".py")).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    imported = set()
    for node in ast.walk(ast.parse("\n".join(cell.source for cell in code))):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported <= ALLOWED | set(sys.stdlib_module_names), (
        f"{path.name} imports {imported - ALLOWED - set(sys.stdlib_module_names)}"
    )
    answers = [cell for cell in code if "hide-cell" in cell.metadata.get("tags", [])]
    lesson = [cell for cell in code if cell not in answers]
    assert "assert" in lesson[-1].source, "the lesson ends in an assertion"
    assert 2 <= len(answers) <= 3 and all(cell.metadata["jupyter"]["source_hidden"] for cell in answers), (
        "exercises with hidden answers"
    )
    assert all("assert" in cell.source for cell in answers)
    questions = [
        cell.source for cell in cells if cell.cell_type == "markdown" and re.search(r"^\d\. ", cell.source, re.M)
    ]
    assert len(questions) >= len(answers)
