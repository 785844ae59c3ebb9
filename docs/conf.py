"""Sphinx settings of the docs site: `make docs` builds it from the notebooks in nbs/ with the outputs that they hold."""

import os
import sys
from pathlib import Path

from r3_repro import __version__ as release
from r3_repro.runs.layout import provenance

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

made = provenance()
commit = f"commit {made['git_commit'][:10]}" if made["git_commit"] else "commit unknown"
html_context = {"built_from": f"{release}, {commit}{', changed' if made['git_dirty'] else ''}"}

project = "r3_repro"
author = "The r3_repro authors"
copyright = "the r3_repro authors, Apache-2.0"
extensions = ["myst_nb", "sphinx_copybutton", "r3_site"]

nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # links in Markdown outputs are resolved as those of the text
nb_code_prompt_show = nb_code_prompt_hide = "imports"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_heading_slug_func = "r3_site.anchor"

html_theme = "furo"
html_title = "r3_repro"
html_static_path = [str(HERE / "static")]
html_css_files = ["r3.css"]
templates_path = [str(HERE / "templates")]
html_sidebars = {"**": [f"sidebar/{x}.html" for x in ("scroll-start", "brand", "version", "search", "navigation", "scroll-end")]}
html_show_sourcelink = html_copy_source = False
copybutton_selector = ":not(.output) > div.highlight pre"  # code and commands, not what they print
if repository := os.environ.get("GITHUB_REPOSITORY"):  # where the workflow builds the site: a link to edit each notebook
    home = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
    html_theme_options = {"source_edit_link": f"{home}/edit/main/nbs/{{filename}}"}
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"
html_math_renderer = "mathml"
