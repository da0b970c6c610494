"""Every benchmark runs to its end at a tiny size: its figures mean nothing there."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
WITH_MAIN = {path.stem for path in FOLDER.glob("*.py") if "\ndef main(arguments" in path.read_text(encoding="utf-8")}

# Files that a benchmark reads are named in braces.
SMALL = {
    "conditional": "{table} rows --steps 2 --splits 1 --rows 200 --seeds 1 --contexts 3",
    "cooperative": "--seconds 0.01 eight-gaussians",
    "cost": "--repeats 2",
    "coverage": "'banana, 2-D' --repeats 1 --particles 32",
    "density": "--steps 2 eight-gaussians",
    "generation": "--steps 2 --size 20 eight-gaussians",
    "guided": "{digits} --steps 2 --count 10",
    "images": "{images} --seconds 0.01 --samples 40 --classifier-steps 5 --moves 20 --chains 4 --completed 1",
    "imputation": "{table} rows --steps 2 --draws 3 --rows 40",
    "joint": "persistent --seconds 0.01 --steps 50 --chains 8 --samples 50 --repeats 0 --widths 0.15",
    "larger_than_memory": "--gigabytes 0.0005 --columns 2 --steps 2",
    "latent": "{digits} --seeds 1 --steps 2 --chain-steps 2 --rows 12 --samples 20",
    "learned": "--steps 2 --particles 32 eight-gaussians",
    "likelihood": "{table} rows --steps 2 --splits 2",
    "log_z": "'banana, 2-D' --budget 2000 --repeats 1",
    "truth": "mixture bananas ring --dimensions 5 --rows 200 --steps 2 --particles 32 --samples 20",
    "masses": "--by both --steps 2 --size 2000 --samples 20 --shares .1 --distances 3",
    "microcanonical": "'banana, 2-D' --warmup 30 --draws 20",
    "processes": "--steps 2 --batch 64 --chains 16 --draws 10 --particles 32",
    "recovery": "--steps 2 --points 100 eight-gaussians",
    "robustness": "--seeds 1 --updates 1",
    "samplers": "--targets banana --chains 4 --draws 20 --warmup 20",
    "sbi": "two_moons --simulations 200 --observations 1 --steps 2 --draws 30 --tried 2000",
    "silent_misses": "'two Gaussians 20 apart, 2-D' --repeats 1",
    "systems": "{images} {images} contrastive --seconds 0.01 --steps 20 --classifier-steps 5",
    "tables": "{table} --steps 2",
    "temperature": "--scale 0.07",
    "waiting": "--rows 200 --samples 5 --steps 2 --repeats 1 --chains 4 --samplers ours-chees --draws 20 --warmup 20",
}

HEAVY = {
    "cooperative",
    "cost",
    "images",
    "processes",
    "systems",
    "waiting",
}  # half a minute and more, whatever their options
CASES = [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in SMALL]


def test_every_benchmark_is_listed() -> None:
    listed = re.findall(r'^    "(\w+)",$', (FOLDER / "__main__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(SMALL) == WITH_MAIN == set(listed)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random images, digits and rows, in the form that the benchmarks read."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("files")
    images = rng.integers(0, 256, (1400, 28, 28), dtype=np.uint8)
    labels = np.arange(1400) % 10
    np.savez(folder / "images.npz", x_train=images, y_train=labels, x_test=images[:1300], y_test=labels[:1300])
    np.savez(folder / "digits.npz", x=rng.integers(0, 17, (1500, 8, 8)), y=np.arange(1500) % 10)
    np.savez(folder / "table.npz", rows=rng.normal(size=(300, 2)))
    return {name: folder / f"{name}.npz" for name in ("images", "digits", "table")}


@pytest.fixture
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.filterwarnings("ignore")  # chains this short earn every one
@pytest.mark.usefixtures("_one_thread", "short_searches")
@pytest.mark.parametrize("name", CASES)
def test_benchmark_runs(name: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [part.format(**files) for part in shlex.split(SMALL[name])]
    importlib.import_module(f"tests.benchmarks.{name}").main(arguments)
    assert re.search(r"\d", capsys.readouterr().out), "no figure was printed"
