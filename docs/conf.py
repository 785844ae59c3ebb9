"""Sphinx settings of the docs site. `build.py` calls Sphinx with the folder of staged pages as its source."""

import os

project = "r3_repro"
author = "The r3_repro authors"
copyright = "the r3_repro authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.mathjax"]

nb_execution_mode = "off"  # pages are executed before they are staged
nb_render_markdown_format = "gfm"
nb_code_prompt_show = "imports"
nb_code_prompt_hide = "imports"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# "1" when build.py found MathJax in npm and put it among the static files; else its public address.
mathjax_path = "mathjax/tex-chtml.js" if os.environ.get("R3_MATHJAX") == "1" else (
    "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-chtml.js"
)  # fmt: skip

html_theme = "furo"
html_title = "r3_repro"
html_static_path = [os.path.join(os.path.dirname(__file__), "static")]
html_css_files = ["r3.css"]
html_show_sourcelink = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "native"
