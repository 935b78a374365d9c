"""Who is told how a demo goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simjax.rows.progress import Progress


class Observer:
    """Is told how the demo goes; this one does nothing."""

    def stage(self, title: str) -> None:
        """A new stage begins."""

    def epoch(self, epoch: int, epochs: int, loss: float, accuracy: float) -> None:
        """An epoch of the baseline's training is over."""

    def rows(self, progress: Progress) -> None:
        """A solve has come so far."""

    def written(self, file: Path) -> None:
        """A file is there."""
