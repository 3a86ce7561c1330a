"""How the documentation is built; docs/contributing.md has the command."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "haiku_mqa"
author = "The haiku_mqa authors"
copyright = "2026, the haiku_mqa authors"
version = release = metadata.version("haiku-mqa")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "house_autodoc",
    "house_coverage",
    "house_laws",
    "house_names",
]
exclude_patterns = ["_build"]
default_role = "code"
nitpicky = True
# Other projects' names would need their inventories, and so a network.
nitpick_ignore_regex = [
    (r"py:.*", r"(jax|jaxlib|numpy|np|hk|haiku|hypothesis|collections)\b.*"),
    (r"py:.*", r"(os|pathlib|typing|argparse|dataclasses)\b.*"),
    (r"py:.*", r"(optax|chex|tokenizers|gguf|grain|starlette)\b.*"),
    (r"py:.*", r"(Params|ArrayTree)"),  # names of types, not classes
    (r"py:.*", r"optional"),
    (r"py:.*", r"haiku_mqa\.bench\.turns\.[A-Z]"),  # variables of types
]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# Notebooks are stored with their outputs, and executed by tests/test_notebooks.py.
nb_execution_mode = "off"

autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 72
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = f"haiku_mqa {release}"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["house.css"]
html_copy_source = False
html_show_sphinx = False
