"""Docstring examples run as they stand, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil
import re
import sys
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


def documented() -> dict[str, object]:
    """The classes and functions of the reference, which has every public name, by the name that is written there."""
    sys.path.insert(0, str(ROOT / "tutorials" / "site"))
    try:
        entries = importlib.import_module("reference").find_entries()
    finally:
        sys.path.pop(0)
    found = {name: value for page in entries.values() for name, value in page}
    return {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isroutine(value)}


def without_example() -> set[str]:
    found = documented()
    assert len(found) > 300
    return {name for name, value in found.items() if ">>>" not in (value.__doc__ or "")}


def test_every_public_name_has_an_example() -> None:
    assert without_example() == set(), "add an example to its docstring"


def test_no_property_is_taken_for_one_with_a_type() -> None:
    """Napoleon takes what stands before a colon in a property's first line for the name of its type."""
    members = {f"{name}.{key}": m for name, v in documented().items() for key, m in getattr(v, "__dict__", {}).items()}
    texts = {name: m.__doc__ or "" for name, m in members.items() if isinstance(m, property)}
    assert len(texts) > 50
    assert [name for name, text in texts.items() if ": " in re.sub(r"`[^`]*`", "", text.partition("\n")[0])] == []


@pytest.mark.parametrize("value", [ep.HMC, ep.fit])
def test_a_name_without_an_example_is_found(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value, "__doc__", "Say what it does.")
    assert {name.rpartition(".")[2] for name in without_example()} == {value.__name__}  # type: ignore[attr-defined]


def test_an_example_that_is_wrong_fails() -> None:
    wrong = doctest.DocTestParser().get_doctest(
        ">>> torch.zeros(2).shape\ntorch.Size([3])\n", dict(NAMES), "x", None, 0
    )
    with pytest.raises(AssertionError, match=re.escape("torch.Size([2])")):
        test_example_runs(wrong)
