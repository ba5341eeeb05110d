"""How far a long task is: a bar on a terminal, and elsewhere, as in a job's log, a line a minute."""

import sys
import time

from tqdm import tqdm

from vqvae2 import distributed

__all__ = ["Minutes", "Progress", "in_words"]

_EVERY = 60.0  # seconds


class Minutes:
    """Tells when a minute has passed since it was last asked with that answer.

    Example:
        >>> Minutes().passed()
        False
    """

    def __init__(self) -> None:
        self._due = time.monotonic() + _EVERY

    def passed(self) -> bool:
        """Tell whether the next line is due."""
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + _EVERY
        return True


class Progress:
    """Progress of a task, for a ``with`` block; called with the number of units done since.

    Args:
        total: units of the whole task.
        doing: what is done, such as "reading images".
        unit: of what there are so many, such as "images".
        everywhere: show it in this process, whichever it is; else in the main one alone.
    """

    def __init__(self, total: int, doing: str, unit: str, everywhere: bool = False) -> None:
        self.total, self.doing, self.unit, self.done = total, doing, unit, 0
        shown = everywhere or distributed.is_main()
        self._bar = tqdm(
            total=total,
            desc=doing,
            unit=f" {unit}",
            unit_scale=total > 1_000_000,
            delay=2,
            leave=False,
            disable=None if shown else True,
        )
        self._lines = Minutes() if shown and not sys.stderr.isatty() else None
        self._begun = time.monotonic()

    def __call__(self, units: int = 1) -> None:
        """Count units that are done."""
        self.done += units
        self._bar.update(units)
        if self._lines is not None and self._lines.passed():
            rate = self.done / (time.monotonic() - self._begun)
            left = in_words((self.total - self.done) / rate) if rate else "unknown time"
            print(
                f"{self.doing}: {self.done:,} of {self.total:,} {self.unit}, {rate:,.1f} a second, {left} left",
                file=sys.stderr,  # stdout is the main process's
                flush=True,
            )

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_words(seconds: float) -> str:
    """Write a time roughly.

    Example:
        >>> in_words(42), in_words(150), in_words(7260)
        ('42 s', '2 min', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
