"""Every tutorial on disk runs as a script, as it stands but for its sizes."""

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
    "10_tables.py": ["--steps", "20"],
}
SMALLER: dict[str, dict[str, str]] = {  # sizes that a tutorial takes no option for
    "03_inside_pyro.py": {"warmup=200": "warmup=60", "warmup=300": "warmup=60"},
    "04_log_normalizers.py": {"held_out[:500]": "held_out[:40]"},
    "05_cooperative.py": {"sample((4000,)": "sample((400,)"},
    "07_joint_ebm_long_runs.py": {"plain.sample((2000,))": "plain.sample((200,))"},
}


def test_every_tutorial_is_listed() -> None:
    assert {path.name for path in TUTORIALS.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_tutorial_runs(name: str, tmp_path: Path) -> None:
    text = (TUTORIALS / name).read_text(encoding="utf-8")
    for full, small in SMALLER.get(name, {}).items():
        assert full in text, full
        text = text.replace(full, small)
    (tmp_path / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(tmp_path / name), str(tmp_path), *RUNS[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(tmp_path.glob("*.png"))) >= 5


def test_the_pictures_that_the_tutorials_show_exist() -> None:
    text = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\((images/[^)]+)\)", text)
    assert shown
    assert all((TUTORIALS / image).is_file() for image in shown)
