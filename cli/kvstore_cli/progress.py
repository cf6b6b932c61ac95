"""How far a long transfer is: a bar and a rate on a terminal, nothing in a pipe."""

from __future__ import annotations

import sys
from time import perf_counter
from types import TracebackType
from typing import Any, Self


class Progress:
    """Counts keys and bytes; shows them on standard error when a person watches."""

    def __init__(self, what: str, *, bytes_total: int | None = None, quiet: bool = False) -> None:
        self.keys = 0
        self._what = what
        self._total = bytes_total
        self._began = perf_counter()
        self._bar: Any = None
        self._task: Any = None
        self._shown = 0.0
        self._on = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Self:
        """Start the clock and the bar."""
        self._began = perf_counter()
        if self._on:
            from rich import progress  # costs more than a small import
            from rich.console import Console

            columns = [
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn() if self._total else progress.SpinnerColumn(),
                progress.TextColumn("{task.fields[keys]:,} keys  {task.fields[rate]:,.0f}/s"),
                progress.TimeRemainingColumn() if self._total else progress.TimeElapsedColumn(),
            ]
            self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=self._total, keys=0, rate=0.0)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return perf_counter() - self._began

    @property
    def rate(self) -> float:
        """Keys a second."""
        return self.keys / max(self.seconds, 1e-6)

    def moved(self, *, keys: int = 0, position: int | None = None) -> None:
        """Note keys done, and how far in the file that is."""
        self.keys += keys
        if self._bar is None or perf_counter() - self._shown < 0.1:
            return
        self._shown = perf_counter()
        self._bar.update(self._task, completed=position or 0, keys=self.keys, rate=self.rate)

    def summary(self) -> dict[str, Any]:
        """What came of it."""
        return {"keys": self.keys, "seconds": round(self.seconds, 3), "per_second": round(self.rate)}

    def sentence(self, done: str) -> str:
        """`imported 100,000 keys in 4.2 s (23,810/s)`."""
        return f"{done} {self.keys:,} keys in {self.seconds:.1f} s ({self.rate:,.0f}/s)"
