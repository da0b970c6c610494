"""Every tutorial on disk runs as a script and as a notebook, as it stands but for its sizes."""

import base64
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"
NAMES = sorted(path.name for path in TUTORIALS.glob("*.py"))
IN_SECONDS = {"01_two_dimensions.py"}  # run as a notebook with the other tests; the slow ones are all
FEW = {"STEPS": 10, "DRAWS": 20, "CHAINS": 50, "LONG": 100}  # in place of the constants of a first cell
ANYWHERE = (  # likewise: rows of training data, and the width of networks
    (r"\b[125]0_000\b", "2_000"),
    (r"\b5_000\b", "500"),
    (r"\bhidden=\d+", "hidden=16"),
    (r"(MLPEnergy\((?:event_shape=)?(?:\(2,\)|[12]|train\.shape\[1:\]))(?!, hidden)", r"\1, hidden=16"),
)
SHORT = "schedule=ep.levels.TemperatureSchedule(hot=5, cooling=5, quench=5)"
SMALLER: dict[str, dict[str, str]] = {  # sizes that a tutorial takes no option for
    "01_two_dimensions.py": {"generate((2_000,), steps=40)": "generate((400,), steps=5)"},
    "02_chains_and_arviz.py": {
        "warmup=300": "warmup=30",
        "warmup=200": "warmup=30",
        "size), 300, mass": "size), 60, mass",
    },
    "03_inside_pyro.py": {"warmup=200": "warmup=30", "warmup=300": "warmup=30"},
    "04_log_normalizers.py": {
        "(4, 16, 64, 256)": "(4, 16)",
        "tolerance=0.01": "tolerance=0.1",
        "BAR(2048)": "BAR(64)",
        "modes.sample((2048,))": "modes.sample((512,))",
        "zeros(20)": "zeros(5)",
        "full((20,)": "full((5,)",
        "ones(20)": "ones(5)",
        "[:500]": "[:20]",
    },
    "05_cooperative.py": {"sample((4000,)": "sample((400,)", "expand(4000, 2)": "expand(400, 2)"},
    "06_guidance_composition_inpainting.py": {
        "start, 200)": "start, 20)",
        "tuned.state.x, 300)": "tuned.state.x, 20)",
        "sample((10,), steps=20, denoise=True)": "sample((10,), steps=5, denoise=True)",
        "sample((10,), denoise=True)": "sample((10,), steps=5, denoise=True)",
    },
    "07_joint_ebm_long_runs.py": {
        "joint.sample((2000,)": "joint.sample((200,)",
        "plain.sample((2000,))": "plain.sample((200,))",
        "kept=100, chains=100": "kept=100, chains=20",
    },
    "08_score_matching.py": {
        "multi.sample((1000,))": f"multi.sample((1000,), {SHORT})",
        "digits.sample((60,))": f"digits.sample((60,), {SHORT})",
        "digits.inpaint(wholes[:, None].expand(-1, 9, *size), seen)": (
            f"digits.inpaint(wholes[:, None].expand(-1, 9, *size), seen, {SHORT})"
        ),
        "hot=500": "hot=5",
    },
    "09_out_of_distribution.py": {"repeats=200": "repeats=40"},
    "10_tables.py": {
        "ebm.log_normalizer()": "ebm.log_normalizer(method=ep.normalizing.BAR(64))",
        "(1, 2, 3, 5, 8)": "(1, 2)",
        "ebm.sample((1000,))": "ebm.sample((400,), steps=5)",
        "cosine(60": "cosine(10",
        "finer.sample((1000,), steps=20)": "finer.sample((400,), steps=5)",
    },
    "11_images.py": {
        "levels=30": "levels=8",
        "stages = [0, 8, 14, 18, 22, 26, 30]": "stages = [0, 8]",
        "level {30 - stage}": "level {8 - stage}",
        "levels = [5, 10, 15, 20]": "levels = [1, 4]",
        "level=14": "level=3",
        "steps=1000, kept=20, chains=20": "steps=20, kept=20, chains=4",
        "sample((200,), denoise=True)": "sample((40,), denoise=True)",
        "torch.arange(200)": "torch.arange(40)",
    },
    "12_conditional.py": {"torch.rand(1500)": "torch.rand(200)", "[:1500]": "[:200]", "BAR(128)": "BAR(32)"},
    "13_latent_prior.py": {
        "BAR(256)": "BAR(32)",
        "(test[:100],)": "(test[:10],)",
        "particles=32": "particles=8, temperatures=4",
        "chains=32, draws=200, warmup=300": "chains=32, draws=20, warmup=30",
        "draws=25, thin=10, warmup=200": "draws=5, warmup=50",
        "draws=50, warmup=200": "draws=10, warmup=30",
        "warmup=200 if": "warmup=20 if",
        "replicates=200": "replicates=10",
        "max_thin=20": "max_thin=2",
        "(40,), steps=300": "(40,), steps=10",
    },
    "14_simulation_based_inference.py": {
        "chains=200": "chains=40",
        "chains=100": "chains=20",
        "warmup=100": "warmup=10",
        "HMC(steps=5)": "HMC(steps=1)",
        "cosine(16,": "cosine(4,",
        "sample((3,))": "sample((1,))",
        "expand(3, 2)": "expand(2, 2)",
    },
}


def smaller(name: str) -> str:
    """Give a tutorial the sizes above."""
    text = (TUTORIALS / name).read_text(encoding="utf-8")
    for constant, few in FEW.items():
        text = re.sub(rf"^{constant} = [\d_]+", f"{constant} = {few}", text, flags=re.MULTILINE)
    for pattern, small in ANYWHERE:
        text = re.sub(pattern, small, text)
    for full, small in SMALLER.get(name, {}).items():
        assert full in text, full
        text = text.replace(full, small)
    return text


@pytest.mark.parametrize("name", NAMES)
def test_tutorial_has_sizes_in_its_first_cell_and_needs_no_file(name: str) -> None:
    text = (TUTORIALS / name).read_text(encoding="utf-8")
    assert text.startswith("# %% [markdown]\n# # ")
    assert re.search(r"^STEPS = [\d_]+", text, re.MULTILINE)
    assert not re.search(r"__file__|argparse|sys\.argv|save_figure", text)


@pytest.mark.usefixtures("short_searches")
@pytest.mark.parametrize("name", NAMES)
def test_tutorial_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, whose imports are made; what ArviZ says when it is imported, in one of its own."""
    monkeypatch.setenv("ENERGYPPL_PICTURES", str(tmp_path))
    path = tmp_path / name
    path.write_text(smaller(name), encoding="utf-8")
    if "import arviz" in path.read_text(encoding="utf-8"):
        command = [sys.executable, "-W", "error", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if name == "10_tables.py":  # whose model was trained for a few steps; after all of them nothing is said
                warnings.filterwarnings("ignore", "log Z: forward runs find", UserWarning)
            runpy.run_path(str(path), run_name="__main__")
    assert len(list(tmp_path.glob("*.png"))) >= 5


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in IN_SECONDS else pytest.mark.slow) for n in NAMES])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages among themselves
def test_tutorial_runs_as_a_notebook(name: str, tmp_path: Path) -> None:
    """Every figure is shown beneath its cell, and no file is written."""
    percent = runpy.run_path(str(TUTORIALS / "site" / "percent.py"))
    notebook = nbformat.reads(percent["notebook"](smaller(name)), as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 5
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert list(tmp_path.rglob("*.png")) == []


def test_the_pictures_that_the_tutorials_show_exist() -> None:
    text = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\((images/[^)]+)\)", text)
    assert shown
    assert all((TUTORIALS / image).is_file() for image in shown)
