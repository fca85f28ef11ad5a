"""How the documentation is built: ``make docs``. Nothing is fetched."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import generate

generate.generate()

project = "reluctant"
author = "the authors of reluctant"
html_title = "reluctant"
html_theme = "furo"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
exclude_patterns = ["_build", "measured-costs.md", "protocols.md"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {"engines": generate.engines_table()}

autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True}
add_module_names = False
python_use_unqualified_type_names = True


def keep_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Let a docstring say |x| for an absolute value, which reStructuredText would take for a substitution."""
    for i, line in enumerate(lines):
        parts = re.split("(``.*?``)", line)
        lines[i] = "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", keep_bars)
