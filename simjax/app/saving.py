"""What commands do with a fit: save its model, and say what it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from simjax.app import display, reports
from simjax.app.arguments import place_of

if TYPE_CHECKING:
    from simjax.implicit.model import ImplicitModel
    from simjax.sim.result import FitResult


def save_fit(
    result: FitResult,
    baseline: ImplicitModel | None,
    output: Path,
    saved: list[Path],
    source: str,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Save the model and print the report of a fit to what `source` holds; `saved` gets the place of the model."""
    place = place_of(output, result.converged)
    result.model.save(place, overwrite=force)
    saved.append(place)
    report = reports.fit_report(result, baseline, place)
    if as_json:
        display.print_json(report)
    else:
        display.print_fit(f"Implicit model of {source}", report)
