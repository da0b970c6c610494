"""Every benchmark runs to its end at a tiny size: its figures mean nothing there."""

import importlib
import os
import re
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import energyppl as ep

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
    "images": "{images} --seconds 0.01 --samples 40 --classifier-steps 5 --moves 20 --chains 4 --completed 1 "
    "--weights {folder}/weights.ebm",
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
    "processes": "--steps 2 --batch 64 --chains 16 --draws 10 --particles 64",
    "recovery": "--steps 2 --points 100 eight-gaussians",
    "robustness": "{table} rows --seeds 1 --updates 1",
    "samplers": "--targets banana --chains 4 --draws 20 --warmup 20",
    "sbi": "two_moons --simulations 200 --observations 1 --steps 2 --draws 30 --tried 2000",
    "silent_misses": "'two Gaussians 20 apart, 2-D' --repeats 1",
    "systems": "{images} {images} recovery contrastive --seconds 0.01 --steps 20 --classifier-steps 5 --samples 20 "
    "--chains 4",
    "table_systems": "{table} rows --seconds 0.01",
    "tables": "{table} --steps 2",
    "temperature": "--scale 0.07",
    "verdicts": "--only 'three rows' 'twelve rows' dates 'a constant' --seconds 0.01 --whole",
    "waiting": "--rows 200 --samples 5 --steps 2 --repeats 1 --chains 4 --samplers ours-chees --draws 20 --warmup 20",
}

# Constants of a benchmark that it takes no option for, made smaller likewise: name -> what becomes of the value.
FEWER: dict[str, dict[str, Callable[[Any], Any]]] = {
    "conditional": {
        "PEERS": lambda peers: {name: builds[:1] for name, builds in peers.items()},
        "DECAYS": lambda decays: decays[:1],
        "GRID": lambda nodes: 500,
    },
    "density": {"POINTS": lambda points: 192},
    "generation": {"gap": lambda gap: partial(gap, points=192)},
    "joint": {"training_within": lambda within: partial(within, skip=1, over=2, least=5)},
    "likelihood": {"WIDTHS": lambda widths: widths[:1]},
    "masses": {"NODES": lambda nodes: 200},
    "recovery": {"KERNELS": lambda kernels: {name: (kernel, few[:1]) for name, (kernel, few) in kernels.items()}},
    "robustness": {"POINTS": lambda points: 192},
    "sbi": {
        "WIDTHS": lambda widths: widths[:1],
        "DECAYS": lambda decays: decays[:1],
        "WARMUP": lambda moves: 20,
        "ITERATIONS": lambda most: 20,
    },
}

HEAVY = {
    "cooperative",
    "cost",
    "images",
    "processes",
    "systems",
    "table_systems",
    "waiting",
}  # half a minute and more, whatever their options
CASES = [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in SMALL]


def test_every_benchmark_is_listed() -> None:
    listed = re.findall(r'^    "(\w+)",$', (FOLDER / "__main__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(SMALL) == WITH_MAIN == set(listed)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random images, digits and rows, in the form that the benchmarks read, and their folder."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("files")
    images = rng.integers(0, 256, (1400, 28, 28), dtype=np.uint8)
    labels = np.arange(1400) % 10
    np.savez(folder / "images.npz", x_train=images, y_train=labels, x_test=images[:1300], y_test=labels[:1300])
    np.savez(folder / "digits.npz", x=rng.integers(0, 17, (1500, 8, 8)), y=np.arange(1500) % 10)
    np.savez(folder / "table.npz", rows=rng.normal(size=(300, 2)))
    return {"folder": folder} | {name: folder / f"{name}.npz" for name in ("images", "digits", "table")}


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Give the process back its thread and its cores, of which a benchmark may leave it one."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    yield
    torch.set_num_threads(1)
    if cores is not None:
        os.sched_setaffinity(0, cores)


@pytest.mark.filterwarnings("ignore")  # chains this short earn every one
@pytest.mark.usefixtures("_one_thread", "short_searches")
@pytest.mark.parametrize("name", CASES)
def test_benchmark_runs(
    name: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [part.format(**files) for part in shlex.split(SMALL[name])]
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")
    for constant, smaller in FEWER.get(name, {}).items():
        monkeypatch.setattr(benchmark, constant, smaller(getattr(benchmark, constant)))
    if name not in HEAVY:
        monkeypatch.setattr(ep, "MLPEnergy", partial(ep.MLPEnergy, hidden=16))
    benchmark.main(arguments)
    assert re.search(r"\d", capsys.readouterr().out), "no figure was printed"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_one_thread")
def test_image_rates_run(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ebm", reason="the peer is installed by hand: pip install --no-deps ebmkit")
    importlib.import_module("tests.benchmarks.images").main(["--rate", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5  # ebmkit, and two kernels of ours in two arithmetics
    assert lines[0].startswith("ebmkit: ")
    assert all(float(rate) > 0.0 for line in lines for rate in re.findall(r": (\d+) moves of a chain a second", line))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.slow
def test_images_without_labels(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    small = "--seconds 0.01 --samples 40 --classifier-steps 5 --moves 20 --chains 4 --completed 1 --unlabelled"
    importlib.import_module("tests.benchmarks.images").main([str(files["images"]), *small.split()])
    table = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert table[-2:] == ["| training images", "| no class"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.slow
def test_systems_begin_at_weights(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "weights.ebm"
    net = ep.models.UNetEnergy((1, 28, 28), width=4, classes=10)
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(4, log_snr_max=5.0, log_snr_min=-6.0))
    ebm.standardize(torch.rand(50, 1, 28, 28), isotropic=True)
    ep.save(ebm, weights)
    names = ["as it is", "joint", "level 0"]
    small = shlex.split("--seconds 0.01 --steps 20 --classifier-steps 5 --samples 40 --chains 4")
    files_and_weights = [*[str(files["images"])] * 2, "--warm", str(weights), *small]
    main = importlib.import_module("tests.benchmarks.systems").main
    main([*files_and_weights[:2], *names, *files_and_weights[2:]])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == ["system", "---", *names]
    main([*files_and_weights, "--ablation"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 3 * 4  # ways to begin chains, numbers of moves
