"""The site: `python -m sphinx -W --keep-going -b html docs build/site`. How it is made is in docs/architecture.md."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import fem_hjb  # noqa: E402

project = "fem_hjb"
author = "The fem_hjb developers"
project_copyright = author
version = release = fem_hjb.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    *("pages", "pictures", "command", "docstrings", "mathml", "flowchart"),  # ours, in _ext
]
exclude_patterns = ["_ext", "_static", "images"]
smartquotes = False  # primes are derivatives and transposes here
html_theme = "furo"
html_title = "fem_hjb"
pygments_dark_style = "github-dark"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline", "attrs_block"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run the notebooks; pages show the outputs that are stored in them
nb_merge_streams = True

autodoc_mock_imports = ["torch", "jax"]  # no part of the extra
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # `docstrings` writes signatures as the source has them
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
add_module_names = False
nitpicky = True  # names in docstrings lead somewhere
nitpick_ignore_regex = [("py:class", ".*")]  # types of NumPy and of ours in signatures need not
