"""Contract tests look at shapes and words: annealing searches little here, and finds much in tests/statistics."""

from collections.abc import Iterator

import pytest

from energyppl.inference.normalizing import forward, levels


@pytest.fixture(scope="module", autouse=True)
def _short_searches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "_STARTS", 16)
        patch.setattr(forward, "_SEARCHES", 2)
        patch.setattr(forward, "_MORE", 1)
        patch.setattr(levels, "_RELAXED", 20)
        yield
