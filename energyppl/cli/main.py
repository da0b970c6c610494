"""The command line's entrance: arguments in, an exit status out.  Torch is imported once the arguments are in order."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from energyppl._files import sentence_of
from energyppl.cli.parser import make_parser
from energyppl.errors import EnergyPPLError, InvalidInput

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for an error that a user can mend, 130 for Ctrl-C."""
    options = make_parser().parse_args(arguments)
    try:
        _check_seed(options.seed)  # all commands have one
        from energyppl._progress import doing

        slow = "torch" not in sys.modules  # which takes two seconds
        with doing("starting", show=slow and not getattr(options, "quiet", False)):
            _use_one_thread()
            from energyppl.autodiff.devices import check_device
            from energyppl.cli import commands

        check_device(getattr(options, "device", None) or "cpu")  # before anything is written
        with _warnings_in_one_line():
            getattr(commands, options.command)(options)
    except (EnergyPPLError, OSError) as error:
        said = sentence_of(error) if isinstance(error, OSError) else str(error)
        print(f"energyppl: {' '.join(said.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nenergyppl: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings as the commands print errors, without the place in the source."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"energyppl: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _use_one_thread() -> None:
    """Set torch to one thread unless the user has chosen otherwise.

    A second thread gains a fifth on an idle machine, and on a busy one its waiting costs twenty times as much.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _check_seed(seed: int | None) -> None:
    if seed is not None and not 0 <= seed < 2**32:
        raise InvalidInput(f"seed must be a whole number from 0 to 4294967295; got {seed}")
