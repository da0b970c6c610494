"""Sphinx configuration; ``build.py`` copies it to ``build/site/source`` and runs Sphinx there."""

import os
import sys
import warnings
from pathlib import Path

from docutils import nodes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "tutorials" / "site"))
os.environ["MPLBACKEND"] = "Agg"
os.environ["TQDM_DISABLE"] = "1"  # bars that move have no place on a page
warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0 whenever it is imported

import autodoc_hooks  # noqa: E402
from percent import notebook  # noqa: E402

import energyppl  # noqa: E402

project = "energyppl"
author = "The energyppl authors"
copyright = author
release = version = energyppl.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
root_doc = "index"
exclude_patterns = ["gallery/*.py", "gallery/*.ipynb", "gallery/*.zip", "sg_execution_times.rst"]
default_role = "literal"
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!energyppl\.).*"),  # torch's and Pyro's own pages are not looked up
    (r"py:.*", r".*\._\w+"),  # private
    (r"py:mod", r".*"),  # a namespace's page has no target of its own
    (r"py:.*", r".*\.(Groups|recipe\.Network)"),  # an alias of a mapping, and a type variable's bound
]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"  # a class's name before each of its members breaks the lines at the side
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"energyppl {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False

sphinx_gallery_conf = {
    "examples_dirs": str(HERE.parent / "scripts"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"/\d\d_" if os.environ.get("ENERGYPPL_SITE_RUN") else r"(?!)",
    "plot_gallery": bool(os.environ.get("ENERGYPPL_SITE_RUN")),
    "image_scrapers": ("gallery_hooks.new_pictures",),
    "reset_modules": ("gallery_hooks.clean_start",),
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "capture_repr": ("_repr_html_", "__repr__"),
    "thumbnail_size": (400, 280),
}


def offer_the_sources(app):
    """Offer the tutorials themselves for download, and notebooks made of them, in place of what the gallery reads."""
    for path in sorted((ROOT / "tutorials").glob("[0-9]*.py")):
        text = path.read_text(encoding="utf-8")
        (HERE / "gallery" / path.name).write_text(text, encoding="utf-8")
        (HERE / "gallery" / path.with_suffix(".ipynb").name).write_text(notebook(text), encoding="utf-8")


def resolve_alias(app, env, node, contnode):
    """Find the page of an object by whatever name it is called: a namespace's, the top level's, its own module's."""
    documented = autodoc_hooks.documented_name(node.get("reftarget", ""), node.get("py:module"))
    found = env.domaindata["py"]["objects"].get(documented)
    if found is None:
        return None
    uri = app.builder.get_relative_uri(node.get("refdoc", env.docname), found.docname)
    reference = nodes.reference("", "", internal=True, refuri=f"{uri}#{found.node_id}")
    reference += contnode
    return reference


def setup(app):
    app.connect("builder-inited", offer_the_sources, priority=900)
    app.connect("missing-reference", resolve_alias)
    app.connect("autodoc-process-docstring", autodoc_hooks.fields_from_comments, priority=100)
    app.connect("autodoc-process-signature", autodoc_hooks.name_factories)
    app.connect("autodoc-skip-member", autodoc_hooks.skip_member)
