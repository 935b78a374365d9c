"""Workers for `executor=` of `fit`, `path` and `solve_rows`: see docs/scale.md."""

from __future__ import annotations

from simjax.rows.pool import Pool, SharingExecutor

__all__ = ["Pool", "SharingExecutor"]
