"""Whole runs are judged by their shapes and words, so annealing searches little in all of them."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _short(short_searches: None) -> None:
    """See ``tests/conftest.py``."""
