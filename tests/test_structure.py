"""What must hold of the code itself."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import ROOT

SOURCES = sorted((ROOT / "lol_core").rglob("*.py"))


def test_importing_the_library_does_nothing_and_needs_no_streamlit() -> None:
    code = (
        "import sys, torch; before = torch.get_num_threads(); import lol_core, lol_core.learning.fit,"
        " lol_core.cli.commands; assert 'streamlit' not in sys.modules; assert torch.get_num_threads() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_there_is_no_junk_drawer_and_no_pickle() -> None:
    assert not list(ROOT.glob("lol_core/**/util*.py")) and not list(ROOT.glob("ui/util*.py"))
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"pickle\.loads?\(|allow_pickle=True|torch\.save\(", source), path
        for call in re.findall(r"torch\.load\([^)]*\)", source):
            assert "weights_only=True" in call, path


def test_every_requirement_is_pinned_once() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", line) for line in lines)
    names = [line.split("==")[0].lower() for line in lines]
    assert len(set(names)) == len(names) and "torch==2.13.0" in lines and "torchvision" not in names
    assert {"streamlit", "plotly", "pandas", "safetensors", "diffusers", "umap-learn", "scikit-learn"} <= set(names)


def test_the_readme_gives_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in ("make app", "make test", "pip install -r requirements.txt", "streamlit run app.py"):
        assert command in readme


def test_pages_leave_to_one_place_what_opens_and_what_is_shown() -> None:
    for path in [ROOT / "app.py", *(ROOT / "pages").glob("*.py"), *(ROOT / "ui").glob("*.py")]:
        source, allowed = path.read_text(), {"access.py": 5, "state.py": 1}.get(path.name, 0)
        assert len(re.findall(r"\b(?:open_source|cache_folder|Zoo\.open)\(", source)) == allowed, path
        assert not re.search(r"\.(?:error|warning|caption)\((?:f\".*\{error\}|str\(error|str\(problem)", source), path
