"""The layout: what lies where, what may import what, and what reaches the wheel."""

import ast
import functools
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where Python lacks tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]  # import name -> folder
LINKED = {name: folder for name, folder in FOLDERS.items() if name != "energyppl"}
LINKS = {ROOT / name.replace(".", "/") for name in LINKED}
SUB_PACKAGES = sorted(path.parent for folder in FOLDERS.values() for path in (ROOT / folder).glob("*/__init__.py"))
SUB_PACKAGES = [folder for folder in SUB_PACKAGES if folder not in LINKS]
SOURCES = sorted(
    path for folder in (*[ROOT / f for f in FOLDERS.values()], *SUB_PACKAGES) for path in folder.glob("*.py")
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TOP_LEVEL = {
    *("pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"),
    *(".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "CITATION.cff"),
    *("energyppl", "models", "inference", "tests", "tutorials"),
}


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def git_files() -> list[str]:
    listing = run("git", "ls-files", cwd=ROOT)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return listing.stdout.splitlines()


def import_name(path: Path) -> str:
    """The dotted name of a folder of source."""
    parts = path.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "energyppl" else ("energyppl", *parts))


def test_packages_are_the_folders_on_disk() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == {*FOLDERS, *map(import_name, SUB_PACKAGES)}
    with_init = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert with_init == set(FOLDERS.values())


def test_sub_packages_hold_no_folders() -> None:
    inside = {path for folder in SUB_PACKAGES for path in folder.iterdir() if path.is_dir()}
    assert {path for path in inside if path.name != "__pycache__"} == set()


@pytest.mark.parametrize("name", LINKED)
def test_folder_is_linked_into_the_package(name: str) -> None:
    link = ROOT / name.replace(".", "/")
    assert link.is_symlink()
    assert os.readlink(link) == f"../{LINKED[name]}"


@pytest.mark.parametrize("name", LINKED)
def test_folder_refuses_its_bare_name(name: str) -> None:
    result = run(sys.executable, "-c", f"import {LINKED[name]}", cwd=ROOT)
    assert result.returncode == 1
    assert re.search(rf"^ImportError: .*{re.escape(name)}", result.stderr, re.MULTILINE)


def test_top_level_holds_only_what_belongs_there() -> None:
    assert {name.split("/")[0] for name in git_files()} <= TOP_LEVEL


def test_files_are_short() -> None:
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in (*SOURCES, *TESTS)}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def imports_of(path: Path) -> list[str]:
    """Every module that a file imports, and every name that it imports from one."""
    nodes = [node for node in ast.walk(tree_of(path)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [alias.name for node in nodes for alias in node.names]
    return names + [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]


def test_test_files_import_no_other() -> None:
    """What tests share lies in ``tests/support/`` (or in the benchmark that they check)."""
    found = [(name_of(path), name) for path in TESTS for name in imports_of(path)]
    wrong = ("tests.contract", "tests.statistics", "tests.usage")
    assert [pair for pair in found if pair[1].split(".")[-1].startswith("test_") or pair[1].startswith(wrong)] == []


def face_imports(path: Path) -> list[str]:
    """Names that a file imports from ``energyppl`` itself, which are no modules."""
    imported = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names if alias.name == "energyppl"]
        elif isinstance(node, ast.ImportFrom) and node.module == "energyppl":
            modules = {path.stem for path in (ROOT / "energyppl").iterdir()}
            imported += [alias.name for alias in node.names if alias.name not in modules]
    return imported


def test_source_files_do_not_import_the_face() -> None:
    """``from energyppl import toys`` names a module and is fine; ``from energyppl import fit`` invites a circle."""
    inside = [path for path in SOURCES if path.parent.name != "cli"]  # a command is written as a script is
    inside.remove(ROOT / "energyppl" / "__init__.py")
    assert {name_of(path): face_imports(path) for path in inside if face_imports(path)} == {}


NOUNS = {"A", "An", "The", "What", "Where", "Whether", "How", "Which"}


def not_imperative(tree: ast.AST) -> list[str]:
    """List public functions whose docstring begins with no verb; a property's is a noun phrase."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and (text := ast.get_docstring(node)):
            is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not is_property and text.split()[0] in NOUNS:
                found.append(f"{node.name}: {text.splitlines()[0]}")
    return found


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    found = {name_of(path): not_imperative(tree_of(path)) for path in SOURCES}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_docstring_that_begins_with_a_noun_is_found() -> None:
    wrong = 'def f():\n    """The energy of x."""\n@property\ndef g():\n    """The g."""\n'
    assert not_imperative(ast.parse(wrong)) == ["f: The energy of x."]


def test_every_import_is_declared() -> None:
    nodes = [node for path in SOURCES for node in ast.walk(tree_of(path))]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    foreign = {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"energyppl"}
    declared = {re.match(r"[\w-]+", line)[0] for line in PROJECT["project"]["dependencies"]}
    files = [file for name in declared for file in distribution(name).files or []]
    assert foreign - {file.parts[0].removesuffix(".py") for file in files} == set()


def test_version_is_declared_once() -> None:
    import energyppl

    assert energyppl.__version__ == PROJECT["project"]["version"]
