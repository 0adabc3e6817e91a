"""The documents as a site: `make docs`."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
shutil.rmtree(HERE / "notebooks", ignore_errors=True)  # Sphinx reads below its folder only
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns("*.py", ".*"))

project = "LoL Explorer"
author = "The LoL Explorer authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "results/*/*.md"]
html_theme = "furo"
html_title = project
html_show_copyright = False
toc_object_entries = False  # the API's hundreds of names would stand in the navigation of every page, at twice the time
nb_execution_mode = "off"  # they are run by the tests, and kept with what they show
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_use_type_comments = False  # each signature would be parsed once more for them, and there are none
autodoc_default_options = {"exclude-members": "kendalltau, mannwhitneyu"}  # SciPy's, whose signatures cannot be shown
suppress_warnings = ["mystnb.unknown_mime_type"]  # widgets, which need Python


def to_the_copies(app: object, document: str, source: list[str]) -> None:
    source[0] = source[0].replace("../notebooks/", "notebooks/")


def setup(app: object) -> None:
    app.connect("source-read", to_the_copies)
