"""Examples in docstrings are run and print what they say."""

import doctest
import importlib
import math
from pathlib import Path

import pyro
import pytest
import torch

import energyppl as ep

ROOT = Path(ep.__file__).parent
MODULES = sorted(
    ".".join(["energyppl", *path.relative_to(ROOT).with_suffix("").parts])
    for folder in (ROOT, *(path for path in ROOT.iterdir() if path.is_dir()), *ROOT.glob("*/*/"))
    for path in folder.glob("*.py")
    if ">>> " in path.read_text(encoding="utf-8") and path.name != "__init__.py"
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    results = doctest.testmod(
        importlib.import_module(name), extraglobs={"ep": ep, "torch": torch, "math": math, "pyro": pyro}
    )
    assert results.attempted > 0
    assert results.failed == 0
