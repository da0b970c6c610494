"""The start of a process: what is imported before it is needed, and that the face shows everything all the same."""

import ast
import pydoc
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import energyppl as ep
from energyppl.cli.parser import TOYS
from tests.support.versions import OLD_TORCH

FACE = Path(ep.__file__)
HEAVY = {"torch", "torch._dynamo", "pyro", "numpy", "scipy", "sympy", "matplotlib", "arviz", "pandas"}
OF_TORCH = {"sympy"} if OLD_TORCH else set()  # which torch 2.4 imports by itself


def imported(program: str) -> set[str]:
    """Run a program in a process of its own, and return which heavy modules it has imported at its end."""
    ending = "import sys; print('\\n' + ' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", f"{program}\n{ending}"], capture_output=True, text=True, check=True)
    return {*result.stdout.splitlines()[-1].split()} & HEAVY


def test_a_module_that_is_imported_is_seen() -> None:
    assert imported("import sympy, numpy") == {"sympy", "numpy"}
    assert all(find_spec(name) for name in HEAVY), "a name that no module has is never seen"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["fit", "--help"], 0),
        ([], 2),
        (["nonsense"], 2),
        (["fit", "table.csv"], 2),
        (["sample", "run", "--out", "x.npy", "-n", "many"], 2),
        (["sample", "run", "--out", "x.npy", "--seed", "-1"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_help_and_wrong_commands_import_no_torch(arguments: list[str], status: int) -> None:
    program = f"""
from energyppl.cli.main import main
try:
    status = main({arguments})
except SystemExit as stop:
    status = stop.code
assert status == {status}, status"""
    assert imported(program) == set()


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported("import energyppl") == set()


def test_models_chains_and_training_import_neither_scipy_nor_pictures() -> None:
    """All names of the face but those of pictures and tables, which are nothing without matplotlib and pandas."""
    left = {"plots", "data", "tables"}
    program = f"import energyppl as ep; [getattr(ep, name) for name in ep.__all__ if name not in {left}]"
    assert imported(program) - OF_TORCH == {"torch", "pyro", "numpy"}


def test_training_sampling_and_saving_import_no_compiler(tmp_path: Path) -> None:
    """Torch's compiler takes two seconds, and torch imports it for odd things: ``make_fx``, an optimizer, a mode."""
    program = f"""
import energyppl as ep, torch
ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=8), ep.NoiseSchedule.cosine(levels=2))
ep.fit(ebm, torch.randn(100, 2), held_out=torch.randn(50, 2), steps=3, progress=False)
x = ebm.sample((10,))
ebm.log_prob(x)
ep.save(ebm, {str(tmp_path / "model")!r})
ep.sample_chains(ep.ChEES(), ebm.marginal(), chains=4, draws=4, warmup=4, progress=False)"""
    assert imported(program) - OF_TORCH == {"torch", "pyro", "numpy"}


def test_type_checkers_and_users_find_the_same_names() -> None:
    tree = ast.parse(FACE.read_text(encoding="utf-8"))
    guard = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    nodes = [node for node in guard.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in nodes for alias in node.names}
    modules = {name: f"{seen[name]}.{name}" for name in ep._SUB_PACKAGES if name in seen}
    assert modules | ep._HOMES == {**seen, **modules}
    assert {*seen, "__version__"} == set(ep.__all__)


def test_every_name_is_found_and_listed() -> None:
    assert all(getattr(ep, name) is not None for name in ep.__all__)
    assert {*ep.__all__, "autodiff", "models", "inference"} <= set(dir(ep))
    assert {name: getattr(ep, name).__name__ for name in ep._SUB_PACKAGES} == ep._SUB_PACKAGES


def test_a_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'energyppl' has no attribute 'RecoverEBM'"):
        ep.RecoverEBM  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'RecoverEBM'"):
        from energyppl import RecoverEBM  # noqa: F401
    with pytest.raises(AttributeError, match=r"no attribute 'ConditionalEBM'; there is energyppl\.models\.Conditional"):
        ep.ConditionalEBM  # noqa: B018


def test_help_shows_the_names() -> None:
    text = pydoc.render_doc(ep, renderer=pydoc.plaintext)
    assert all(f"class {name}(" in text for name in ("RecoveryEBM", "NoiseSchedule", "ChEES"))


def test_the_parser_names_every_toy() -> None:
    assert tuple(ep.toys.TWO_DIMENSIONAL) == TOYS
