"""Progress bars, on the terminal of the errors: none where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

import click


class Rows(Protocol):
    """What the manager's functions for rows report; see ``RowsProgress``."""

    @property
    def table(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def total(self) -> int | None: ...


class Bars:
    """One bar after the other, each for what it is labelled with.

    :param quiet: show none.
    """

    def __init__(self, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._bar = ExitStack()
        self._label: str | None = None
        self._advance: Callable[[int], None]
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def rows(self, progress: Rows) -> None:
        """Show how far a table is: the ``progress`` of the manager's functions."""
        self.show(progress.table, progress.rows, progress.total)

    def show(self, label: str, position: int, length: int | None) -> None:
        """Show how far something is.

        :param length: where it ends, ``None`` where nobody knows.
        """
        if not self._shown:
            return
        if label != self._label:
            self._bar.close()
            bar = click.progressbar(
                (_ for _ in range(0)),  # without a length, unlike range(0)
                length=length,
                label=label,
                show_pos=True,
                file=sys.stderr,
            )
            self._advance = self._bar.enter_context(bar).update
            self._label, self._position = label, 0
        self._advance(position - self._position)
        self._position = position
