"""What the commands have to say, as JSON values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simjax.rows.status import Status

if TYPE_CHECKING:
    from simjax.implicit.model import ImplicitModel
    from simjax.rows.solution import Solution
    from simjax.rows.verify import Verification
    from simjax.sim.path import Path as FitPath
    from simjax.sim.result import FitResult
    from simjax.states.kinds import AnyStates


def fit_report(result: FitResult, baseline: ImplicitModel | None, output: Path) -> dict[str, Any]:
    """Of a fit to states of this baseline, if it is known, whose model was saved as `output`."""
    model = result.model
    return {
        "model": str(output),
        **_rows_report(result),
        "nonzeros": model.nonzeros,
        "sparsity": None if baseline is None else model.sparsity(baseline.nonzeros),
        "well_posedness": model.well_posedness,
        "seconds": round(result.seconds, 3) if result.solutions else None,  # of a merged fit they were elsewhere
        "settings": result.settings,
    }


def shard_report(solution: Solution, shard: str, checkpoint: str) -> dict[str, Any]:
    """Of a shard whose rows are in the folder `checkpoint`."""
    rows = _rows_report(solution)
    return {
        "checkpoint": checkpoint,
        "shard": shard,
        "first_row": solution.first,
        **rows,
        "seconds": round(solution.seconds, 3),
    }


def _rows_report(result: FitResult | Solution) -> dict[str, Any]:
    certificate = result.certificate
    statuses, counts = np.unique(result.status, return_counts=True)
    return {
        "rows": int(result.status.size),
        "status": dict(zip(statuses.tolist(), counts.tolist(), strict=True)),
        "certified": result.converged,
        "worst_relative_gap": json_number(certificate.relative_gap.max()),
        "worst_infeasibility": json_number(certificate.infeasibility.max()),
    }


def path_report(path: FitPath, states: AnyStates) -> dict[str, Any]:
    """Of a path, a dictionary per model; the sparsity is None where the network's own weights are not known."""
    baseline = states.baseline
    models = [
        {
            "model": f"model-{number:03d}.safetensors",
            "alpha": value,
            "nonzeros": fit.model.nonzeros,
            "sparsity": None if baseline is None else fit.model.sparsity(baseline.nonzeros),
            "misfit": float(misfit),
            "worst_relative_gap": json_number(fit.certificate.relative_gap.max()),
            "rows_certified": int(np.count_nonzero(fit.status == Status.SOLVED)),
            "well_posedness": fit.model.well_posedness,
        }
        for number, (value, fit, misfit) in enumerate(zip(path.values.tolist(), path.fits, path.misfit, strict=True))
    ]
    settings = {name: value for name, value in path.fits[0].settings.items() if name not in ("alpha", "mu")}
    return {
        "rows": int(path.fits[0].status.size),
        "certified": path.converged,
        "seconds": round(path.seconds, 3),
        "models": models,
        "settings": settings,
    }


def model_report(model: ImplicitModel) -> dict[str, Any]:
    """Of a model: sizes, nonzeros of each block, well-posedness, and what its file remembers."""
    dense = model.to_dense()
    return {
        "n": model.n,
        "p": model.p,
        "q": model.q,
        "activation": model.activation,
        "storage": model.storage,
        "nonzeros": model.nonzeros,
        "blocks": {
            name: {"shape": list(M.shape), "nonzeros": int(np.count_nonzero(M))}
            for name, M in ((name, getattr(dense, name)) for name in ("A", "B", "C", "D", "b", "c"))
            if M is not None
        },
        "well_posedness": model.well_posedness,
        "perron_eigenvalue": model.perron_eigenvalue,
        "metadata": model.metadata,
    }


def verification_report(found: Verification) -> dict[str, Any]:
    """Of a verification, a dictionary per row."""
    names = ("objective", "oracle_objective", "difference", "relative_gap", "oracle_gap")
    rows = [
        {
            "row": int(number),
            **{name: json_number(getattr(found, name)[k]) for name in names},
            "agrees": bool(found.agrees[k]),
        }
        for k, number in enumerate(found.rows)
    ]
    return {"oracle": found.oracle, "ok": found.ok, "rows": rows}


def json_number(value: Any) -> float | None:
    """A float that JSON can hold: None in place of NaN and infinities."""
    return float(value) if np.isfinite(value) else None


def json_text(report: Mapping[str, Any]) -> str:
    """The report as standard JSON, in ASCII: null in place of NaN and infinities, which a file may bring along."""
    return json.dumps(_finite(report), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
