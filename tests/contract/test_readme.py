"""The README's examples run as they stand, but for their sizes."""

import re
from pathlib import Path

import pytest

import energyppl as ep

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
SMALLER = {
    "sample((20_000,))": "sample((2_000,))",
    "ep.fit(ebm, data)": "ep.fit(ebm, data, options=ep.TrainingOptions(steps=30), progress=False)",
    "ebm.sample((1_000,))": "ebm.sample((50,), steps=5)",
    "ebm.sample((1_100,))": "ebm.sample((1_100,), steps=5)",
}


def test_the_python_blocks_run() -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    for full, small in SMALLER.items():
        assert full in code, full
        code = code.replace(full, small)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["x"].shape == (50, 2)  # type: ignore[attr-defined]
    assert isinstance(names["log_z"], ep.LogNormalizer)


def test_it_has_no_placeholders() -> None:
    assert not re.findall(r"\b[A-Z]+_[A-Z]+\b", README)


@pytest.mark.parametrize(
    "command", ["make demo", "make test", "python -m tests.benchmarks", "energyppl fit", "energyppl show"]
)
def test_the_commands_are_named(command: str) -> None:
    assert command in README
