"""A run that the commands have made."""

from pathlib import Path

import numpy as np

from energyppl.cli.main import main

__all__ = []


def fit_wide(folder: Path) -> Path:
    """Fit three columns, which no grid reaches: ``table.csv`` and ``run`` in the folder, which is returned."""
    rows = np.random.default_rng(2).normal(size=(200, 3)) * [1.0, 100.0, 0.01]
    np.savetxt(folder / "table.csv", rows, delimiter=",", header="a,b,c", comments="")
    arguments = ["fit", folder / "table.csv", "--out", folder / "run", "--steps", 20, "--levels", 3]
    assert main([str(a) for a in arguments]) == 0
    return folder
