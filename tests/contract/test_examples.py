"""Examples in docstrings are run and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import energyppl

ROOT = Path(energyppl.__file__).parent
MODULES = sorted(
    ".".join(["energyppl", *path.relative_to(ROOT).with_suffix("").parts])
    for folder in (ROOT, *(path for path in ROOT.iterdir() if path.is_dir()), *ROOT.glob("*/*/"))
    for path in folder.glob("*.py")
    if ">>> " in path.read_text(encoding="utf-8") and path.name != "__init__.py"
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
