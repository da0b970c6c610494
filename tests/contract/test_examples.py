"""The examples in docstrings of the language and the toys run, and give what they say."""

import doctest
import math
from types import ModuleType

import pytest
import torch

import energyppl as ep
from energyppl import distributions, schedule
from energyppl.potentials import algebra, constrained
from energyppl.toys import base, curves, mixtures, shapes, smooth

MODULES = (algebra, constrained, distributions, schedule, base, curves, mixtures, shapes, smooth)
NAMES = {"ep": ep, "torch": torch, "math": math}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_run(module: ModuleType) -> None:
    found = [test for test in doctest.DocTestFinder().find(module, globs=dict(NAMES)) if test.examples]
    assert found
    runner = doctest.DocTestRunner()
    for test in found:
        report: list[str] = []
        runner.run(test, out=report.append)
        assert not runner.failures, "".join(report)
