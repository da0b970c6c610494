"""Files of rows that commands write."""

from pathlib import Path

import numpy as np
import pandas as pd

from energyppl._files import whole_file
from energyppl.data.reading import require_engine
from energyppl.errors import InvalidInput

__all__ = ["check_kind_of_file", "write_frame"]


def write_frame(frame: pd.DataFrame, out: Path, *, decimal: str = ".") -> None:
    """Write rows to a ``.csv``, ``.npy``, ``.npz`` or ``.parquet`` file, whole or not at all.

    Args:
        frame: the rows.
        out: the file.
        decimal: mark of decimals in text; with a comma, columns are separated by semicolons.

    Raises:
        InvalidInput: for another kind of file, or categories for one that holds numbers alone.
    """
    kind = check_kind_of_file(out)
    with whole_file(out) as file:
        if kind == ".csv":
            file.write(frame.to_csv(index=False, decimal=decimal, sep=";" if decimal == "," else ",").encode())
        elif kind == ".parquet":
            frame.to_parquet(file, index=False)
        else:
            try:
                values = frame.to_numpy(np.float64)
            except ValueError:
                raise InvalidInput(f"{out} holds numbers alone, and the table has categories: write a .csv") from None
            if kind == ".npy":
                np.save(file, values, allow_pickle=False)
            else:
                np.savez(file, values=values, columns=np.array(frame.columns, dtype=np.str_))


def check_kind_of_file(out: Path) -> str:
    """Require a file of a kind that rows can be written to, and return it."""
    kind = out.suffix.lower()
    if kind not in (".npy", ".npz", ".csv", ".parquet"):
        raise InvalidInput(f"{out} must end in .npy, .npz, .csv or .parquet; got {out.suffix or 'no ending'!r}")
    if kind == ".parquet":
        require_engine(out, kind)
    return kind
