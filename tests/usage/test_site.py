"""The documentation site: its examples run, its tutorials convert, its reference has every public name."""

import ast
import doctest
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyro
import pytest
import torch

import energyppl as ep

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "tutorials" / "site"
PAGES = sorted(SITE.glob("*.rst"))
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def site() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(SITE))
    try:
        yield {name: importlib.import_module(name) for name in ("percent", "reference")}
    finally:
        sys.path.remove(str(SITE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path) -> None:
    names = {"ep": ep, "torch": torch, "pyro": pyro}
    examples = doctest.DocTestParser().get_doctest(page.read_text(encoding="utf-8"), names, page.name, str(page), 0)
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=OPTIONS).run(examples, out=report.append)
    assert not failed, "".join(report)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_names_what_there_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = {path.stem for path in PAGES} | {"gallery/index", "reference/index"}
    known |= {f"gallery/{path.stem}" for path in TUTORIALS}
    linked = re.findall(r":doc:`(?:[^`<]*<)?/?([\w/]+)>?`", text)
    assert [name for name in linked if name not in known and not name.startswith("reference/")] == []
    for shown in re.findall(r"image:: /(images/\S+)", text):
        assert (ROOT / "tutorials" / shown).is_file()


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_becomes_what_the_gallery_reads(site: dict[str, ModuleType], path: Path) -> None:
    """The same code in the same order, and its text as comments."""
    text = path.read_text(encoding="utf-8")
    script = site["percent"].gallery_script(text, {}, None)
    body = ast.parse(script).body[1:]  # without the docstring
    assert ast.dump(ast.Module(body, [])) == ast.dump(ast.Module(ast.parse(text).body, []))
    cells = site["percent"].read_cells(text)
    assert "".join(cell.text for cell in cells if cell.kind == "code").count("\n") > 20


def test_markdown_becomes_rst(site: dict[str, ModuleType]) -> None:
    convert = site["percent"].to_rst
    assert convert("# A `b`") == "A ``b``\n======="
    assert convert("See [the *page*](https://x.org), `a_`s, x_t, |y| and z_.") == (
        "See `the *page* <https://x.org>`__, ``a_``\\ s, x_t, \\|y\\| and z\\_."
    )
    assert convert("```sh\nls\n```\nend") == ".. code-block:: sh\n\n   ls\n\nend"


def test_every_public_name_is_in_the_reference_once(site: dict[str, ModuleType]) -> None:
    entries = site["reference"].find_entries()
    values = [id(value) for page in entries.values() for _, value in page]
    assert len(values) == len(set(values))
    names = {
        id(getattr(module, name))
        for module in [ep, *(getattr(ep, name) for name in ep.__all__ if isinstance(getattr(ep, name), ModuleType))]
        for name in site["reference"].public_names(module)
    }
    assert names <= set(values)
