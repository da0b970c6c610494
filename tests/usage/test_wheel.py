"""The wheel: what it holds, and that it imports from where it is installed."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where Python lacks tomllib

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
FOLDERS, PACKAGES = SETTINGS["package-dir"], SETTINGS["packages"]  # tests/contract/test_layout.py holds both


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that neither an old ``build/`` gets in nor a new one stays behind."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--no-index")
    result = run(sys.executable, "-m", "pip", "wheel", *options, "-w", out, copy, cwd=copy)
    assert result.returncode == 0, result.stderr
    return next(out.glob("*.whl"))


def folder_of(package: str) -> Path:
    """Find where a package lies on disk: the longest prefix that has a folder of its own, and the rest below it."""
    owner = max((name for name in FOLDERS if f"{package}.".startswith(f"{name}.")), key=len)
    return ROOT / FOLDERS[owner] / package.removeprefix(owner).strip(".").replace(".", "/")


def test_wheel_holds_only_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    code = {name for name in names if ".dist-info/" not in name}
    expected = {"energyppl/py.typed"}
    for package in PACKAGES:
        expected |= {f"{package.replace('.', '/')}/{path.name}" for path in folder_of(package).glob("*.py")}
    assert code == expected
    assert len(code) > 200


def test_installed_wheel_imports_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    options = ("--no-deps", "--no-index", "--quiet")
    result = run(sys.executable, "-m", "pip", "install", *options, "--target", site, wheel, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    program = f"import importlib as i; print(*[i.import_module(name).__file__ for name in {PACKAGES}])"
    result = run(sys.executable, "-W", "ignore", "-c", program, cwd=tmp_path, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(site / name.replace(".", "/") / "__init__.py") for name in PACKAGES]
