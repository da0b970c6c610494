"""Warnings point at the user's own line, however deep in the library they arise."""

import runpy
import warnings
from pathlib import Path

import pytest

SCRIPT = """
import torch
import energyppl as ep


class Bell(torch.nn.Module):
    event_shape = (3,)

    def forward(self, x, level):
        return 0.5 * (x * x).sum(-1)


ebm, schedule = ep.EBM(Bell()), ep.NoiseSchedule.cosine(levels=2)
wrong = lambda n: 20.0 + torch.randn(n, 3)  # no draws of it
bar = ep.normalizing.BAR(64, temperatures=16)
bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (3,))
data = torch.randn(200, 3)
data[0, 0] = 1e9
"""
LINES = {
    "log Z of a model": "ebm.log_normalizer(samples=wrong(200), method=bar)",
    "log Z of a model, by a function": "ebm.log_normalizer(samples=wrong, method=bar)",
    "log Z of a potential": "ep.log_normalizer(bell, samples=wrong(200), method=bar)",
    "scaling": "ebm.standardize(data)",
    "scaling without gradients": "torch.no_grad()(ebm.standardize)(data)",
    "chains": "ep.sample_chains(ep.MALA(1e-6), bell, chains=4, draws=60, warmup=0, progress=False)",
    "joint samples": "ep.JointEBM(Bell(), schedule).sample(10, visits=3, max_sweeps=2)",
}


@pytest.mark.parametrize("name", LINES)
def test_a_warning_names_the_users_line(name: str, tmp_path: Path) -> None:
    script = tmp_path / "user.py"
    script.write_text(f"{SCRIPT}{LINES[name]}\n", encoding="utf-8")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runpy.run_path(str(script))
    assert caught
    for warning in caught:
        assert (warning.filename, warning.lineno) == (str(script), SCRIPT.count("\n") + 1), warning.message
