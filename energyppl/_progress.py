"""Progress that people can follow: bars on a terminal, lines in a log, a sign of life where nothing is counted."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

__all__ = ["doing", "progress_bar"]

_FIRST, _LONGEST = 2.0, 30.0  # seconds until the first line of a log, and between two lines at most
_GROWTH = 1.5  # from one of these waits to the next
_BEAT = 1.0  # seconds between two signs of life on a terminal


def progress_bar(**options: Any) -> Any:
    """Return tqdm's bar on a terminal or in a notebook, and elsewhere one that prints lines.

    Args:
        options: as tqdm takes them: total, initial, desc, unit, disable, leave.
    """
    if options.get("disable") or sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(**options)
    return _Lines(**options)


class _Lines:
    """A bar for logs: a line after two seconds, then ever more rarely, with the time that is left."""

    def __init__(
        self,
        total: int | None = None,
        initial: int = 0,
        desc: str = "",
        unit: str = "",
        disable: bool = False,
        leave: bool = True,
    ) -> None:
        self.disable, self.total, self.n, self._initial = False, total, initial, initial
        self._what, self._unit, self._note = desc, unit.strip(), ""
        self._began = self._last = time.perf_counter()
        self._wait, self._said = _FIRST, -1  # at which count it last said something

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def set_description(self, desc: str, refresh: bool = True) -> None:
        """Name what is being done."""
        self._what = desc

    def set_postfix_str(self, note: str, refresh: bool = True) -> None:
        """Keep a note for the next line."""
        self._note = note

    def update(self, n: float = 1) -> None:
        """Count steps, and print a line if one is due."""
        self.n += int(n)
        now = time.perf_counter()
        if now - self._last >= self._wait:
            self._last, self._wait = now, min(_LONGEST, self._wait * _GROWTH)
            self._print(now)

    def close(self) -> None:
        """Print where it ended, if anything was printed before."""
        if self._said not in (-1, self.n):
            self._print(time.perf_counter())
        self._said = -1

    def _print(self, now: float) -> None:
        self._said = self.n
        seconds, made = now - self._began, self.n - self._initial
        parts = [f"{self.n} of {self.total}" if self.total else f"{self.n}", f"{seconds:.0f} s"]
        if self.total and made and self.n < self.total:
            parts.append(f"about {seconds / made * (self.total - self.n):.0f} s left")
        text = f"{self._what or self._unit or 'done'}: {', '.join(parts)}"
        print(f"{text}; {self._note}" if self._note else text, file=sys.stderr, flush=True)


@contextmanager
def doing(what: str, *, show: bool = True) -> Iterator[None]:
    """Say what is being done while the block runs, and for how long: each second on a terminal, more rarely in a log.

    Args:
        what: in words.
        show: whether to say anything.
    """
    if not show:
        yield
        return
    terminal, began, done = sys.stderr.isatty(), time.perf_counter(), threading.Event()

    def beat() -> None:
        wait = _BEAT if terminal else _FIRST
        while not done.wait(wait):
            seconds = time.perf_counter() - began
            if terminal:
                print(f"\r{what}: {seconds:.0f} s ", end="", file=sys.stderr, flush=True)
            else:
                print(f"{what}: {seconds:.0f} s", file=sys.stderr, flush=True)
                wait = min(_LONGEST, wait * _GROWTH)

    print(f"{what} …", end="" if terminal else "\n", file=sys.stderr, flush=True)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if terminal:
            print(f"\r{' ' * (len(what) + 12)}\r", end="", file=sys.stderr, flush=True)
