"""The documentation site, built by `make docs`."""

import os
import sys
import tempfile
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from pygments.lexers.special import TextLexer

import fedjax_het

sys.path.insert(0, str(Path(__file__).parent))
import reference

project = "fedjax_het"
author = "the authors of fedjax_het"
release = version = fedjax_het.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["requirements.txt"]
nitpicky = True
nitpick_ignore_regex = [
    # No inventory of another project is read, so that the site is built without a network.
    ("py:.*", r"(collections|flax|jax|numpy|optax|os|pathlib)\..*"),
    ("py:class", "ClientApp|ServerApp"),
    ("py:exc", "AuditError"),
    # Types in signatures that users get, and never name.
    ("py:class", r"fedjax_het\..*"),
]

myst_heading_anchors = 4  # as on GitHub, where the same pages are read

nb_execution_mode = "force"  # a figure is never older than the library
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # a busy machine remarks that compiling is slow

autosummary_generate = False
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_attr_annotations = False
napoleon_numpy_docstring = False
napoleon_use_param = False  # an entry may describe several arguments
napoleon_custom_sections = [("Attributes", "params_style")]
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

html_math_renderer = "mathml"
html_show_copyright = False
html_theme = "furo"
html_title = f"fedjax_het {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_exclude = ".linenos, .gp"

# Kernels show a matplotlib figure that ends a cell, and leave nothing in a user's directory.
_ipython = Path(tempfile.mkdtemp(prefix="fedjax-het-docs-"))
(_ipython / "profile_default").mkdir()
(_ipython / "profile_default" / "ipython_kernel_config.py").write_text(
    "c.InteractiveShellApp.matplotlib = 'inline'\n"
    "c.InlineBackend.figure_formats = {'svg'}\n"
    "c.HistoryManager.enabled = False\n"
)
os.environ["IPYTHONDIR"] = str(_ipython)


def _formula(display):
    def visit(translator, node):
        translator.body.append(convert(node.astext(), display=display))
        raise SkipNode

    return visit, None


def setup(app):
    """Writes the pages of the reference before the pages are read."""
    app.add_lexer("csv", TextLexer)
    # Formulas of docstrings, in the form that browsers know: no script from elsewhere.
    app.add_html_math_renderer("mathml", _formula("inline"), _formula("block"))
    app.connect("builder-inited", lambda app: reference.write(Path(app.srcdir) / "api"))
    app.connect("autodoc-skip-member", reference.skip)
    app.connect("autodoc-before-process-signature", reference.short_types)
    app.connect("autodoc-process-signature", reference.short_defaults)
    app.connect("autodoc-process-docstring", reference.escape, priority=400)  # before napoleon
