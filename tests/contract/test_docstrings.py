"""Docstring examples run as they stand, and what the README and the tutorials use has one."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pyro
import pytest
import torch

import energyppl as ep

ROOT = Path(__file__).resolve().parents[2]
MODULES = [m.name for m in pkgutil.walk_packages(ep.__path__, "energyppl.") if m.name != "energyppl.__main__"]
NAMES = {"ep": ep, "torch": torch, "pyro": pyro}  # an example imports whatever else it uses
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(name) for name in ("energyppl", *MODULES)]
    found = [test for module in modules for test in finder.find(module, globs=NAMES)]
    return sorted((test for test in found if test.examples), key=lambda test: test.name)


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=[test.name for test in EXAMPLES])
def test_example_runs(example: doctest.DocTest) -> None:
    """Its seed comes from its name, as every test's does; ``...`` stands for what may vary."""
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=report.append)
    assert not failed, "".join(report)


def used() -> dict[str, object]:
    """The classes and functions that a reader meets first, by the name that is written there."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("tutorials/*.py"))]
    found = {}
    for name in re.findall(r"\bep\.((?:[a-z_]+\.)?[A-Za-z]\w*)", "\n".join(texts)):
        value: object = ep
        for part in name.split("."):
            value = getattr(value, part)
        if inspect.isclass(value) or inspect.isfunction(value):
            found[name] = value
    return found


def test_what_is_used_has_an_example() -> None:
    without = {name for name, value in used().items() if ">>>" not in (inspect.getdoc(value) or "")}
    assert without == set(), "add an example to its docstring"


def test_an_example_that_is_wrong_fails() -> None:
    wrong = doctest.DocTestParser().get_doctest(
        ">>> torch.zeros(2).shape\ntorch.Size([3])\n", dict(NAMES), "x", None, 0
    )
    with pytest.raises(AssertionError, match=re.escape("torch.Size([2])")):
        test_example_runs(wrong)
