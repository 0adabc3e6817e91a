"""`make notebooks`: run the scripts of `notebooks/` as notebooks and keep what they show, each Plotly figure also as a
picture, for pages that only show; sliders and progress bars, which need a kernel, are left out.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import jupytext
import plotly.graph_objects as go
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
PLOTLY, PICTURE, WIDGET = "application/vnd.plotly.v1+json", "image/png", "application/vnd.jupyter.widget-view+json"
HEADER = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "jupytext": {"formats": "ipynb,py:percent"},
}


def write(script: Path) -> None:
    notebook = jupytext.read(script)
    notebook.metadata = {**HEADER, "language_info": {"name": "python"}}
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"  # the same each time, so that a difference is a change
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        cell["outputs"] = (
            [
                output
                for output in cell.get("outputs", [])
                if output.get("name") != "stderr" and WIDGET not in output.get("data", {})
            ]
            if cell.cell_type == "code"
            else []
        )
        if cell.cell_type != "code":
            del cell["outputs"]
            continue
        for output in cell.outputs:
            if shown := output.get("data", {}).get(PLOTLY):
                figure = go.Figure(shown["data"], shown["layout"])
                output.data = {
                    PLOTLY: shown,
                    PICTURE: (
                        base64.b64encode(figure.to_image("png", width=760, height=figure.layout.height or 420)).decode()
                    ),
                }
    notebook.metadata.pop("widgets", None)
    jupytext.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    for path in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.py")):
        print(path.name, flush=True)
        write(path)
