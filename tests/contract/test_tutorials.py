"""Every tutorial on disk runs as a script, at a small size."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"
RUNS = {
    "01_two_dimensions.py": ["--steps", "40"],
    "02_chains_and_arviz.py": ["--steps", "20", "--draws", "30"],
    "03_inside_pyro.py": ["--steps", "20", "--draws", "20", "--chains", "50"],
    "04_log_normalizers.py": ["--steps", "30"],
    "05_cooperative.py": ["--steps", "30"],
    "06_guidance_composition_inpainting.py": ["--steps", "20"],
    "07_joint_ebm_long_runs.py": ["--steps", "30", "--long", "100"],
    "09_out_of_distribution.py": ["--steps", "10"],
    "08_score_matching.py": ["--steps", "30"],
}


def test_every_tutorial_is_listed() -> None:
    assert {path.name for path in TUTORIALS.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_tutorial_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(TUTORIALS / name), str(tmp_path), *RUNS[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(tmp_path.glob("*.png"))) >= 5


def test_the_pictures_that_the_tutorials_show_exist() -> None:
    text = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\((images/[^)]+)\)", text)
    assert shown
    assert all((TUTORIALS / image).is_file() for image in shown)
