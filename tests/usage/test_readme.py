"""The README's and the other pages' examples run as they stand, but for their sizes, and their links lead somewhere."""

import importlib
import re
from pathlib import Path

import pytest

import energyppl as ep
from energyppl.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tutorials/README.md", "tests/benchmarks/README.md")]
SMALLER = {
    "sample((20_000,))": "sample((2_000,))",
    "ep.fit(ebm, data)": "ep.fit(ebm, data, options=ep.TrainingOptions(steps=30), progress=False)",
    "ebm.sample((1_000,))": "ebm.sample((50,), steps=5)",
    "ep.tables.fit(frame, steps=200)": "ep.tables.fit(frame, steps=5, progress=False)",
    "expand(256, 2)": "expand(32, 2)",
    "chains=256, draws=200": "chains=32, draws=20, progress=False",
}


@pytest.mark.filterwarnings("ignore::energyppl.errors.ChainWarning")  # twenty draws are few
def test_the_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a table is written
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    for full, small in SMALLER.items():
        assert full in code, full
        code = code.replace(full, small)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["x"].shape == (50, 2)  # type: ignore[attr-defined]
    assert names["log_p"].shape == (50,)  # type: ignore[attr-defined]
    assert isinstance(names["chains"], ep.Chains)


def test_the_first_block_has_eight_lines() -> None:
    block = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Files must be there; of addresses elsewhere only the form can be checked without a network."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./~-]*)?", target), target
        else:
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_it_has_no_placeholders() -> None:
    assert not re.findall(r"\b[A-Z]+_[A-Z]+\b", README)


@pytest.mark.parametrize("command", ["make demo", "make test", "make docs", "energyppl fit", "energyppl show"])
def test_the_commands_are_named(command: str) -> None:
    assert command in README


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^energyppl (\w+)", README, re.MULTILINE))))
def test_the_commands_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize("command", re.findall(r"`python -m tests\.benchmarks ([^`]+)`", README))
def test_the_benchmark_of_each_figure_takes_what_is_asked(command: str) -> None:
    name, *words = command.split()
    documented = importlib.import_module(f"tests.benchmarks.{name}").__doc__ or ""
    assert all(word in documented for word in words if word.startswith("--"))


def test_every_target_of_make_is_there() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for page in PAGES for name in re.findall(r"`make (\w+)", page.read_text(encoding="utf-8"))}
    assert named <= set(targets)


def test_the_citation_names_the_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == ep.__version__  # type: ignore[index]
