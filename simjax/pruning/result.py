"""`PrunedLayer`: a sparse layer and what is proved about its rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from simjax._values import Value, html_facts
from simjax.rows.certificate import Certificate
from simjax.rows.solution import INDENT, Solution, certified_rows
from simjax.rows.status import Status


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PrunedLayer(Value):
    """A sparse layer y = Wx + b and what is proved about it.

    What is certified is the refit, a convex problem: no weights on this `support` do better on these inputs, to within
    the gap of each row. Nothing is claimed of the support itself, which comes from a problem that is not convex, except
    with methods "l1" and "perspective", where it is that of `penalised`, certified as well.

    Attributes:
      weight: W, (out, in), float64, zero outside the support.
      bias: b, (out,), the best for these weights; None for a layer without one.
      support: boolean (out, in), the weights that may be nonzero.
      relative_error: ‖T − XWᵀ − 1bᵀ‖² / ‖T − 1b₀ᵀ‖², with T what the layer was to give, in general T = XW₀ᵀ + 1b₀ᵀ;
        0 where there was nothing to give.
      row_errors: the same of each row, (out,).
      size: ‖T − 1b₀ᵀ‖², against which the error is relative.
      method: what found the support.
      pattern: "unstructured", "rows" or n:m.
      unseen: inputs that were zero in all samples, with a bias those that were constant: their weights are zero.
      solution: the refit, its certificate and status, a row for each output, posed on the compressed samples.
      seconds: wall time of all of it.
      penalised: the rows with a penalty whose support this is, of methods "l1" and "perspective"; otherwise None.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> inputs, weight = rng.normal(size=(50, 8)), rng.normal(size=(3, 8))
      >>> pruned = simjax.prune_layer(inputs, weight, pattern="2:4")
      >>> pruned.pattern, pruned.weight.shape, bool(np.all(pruned.weight[~pruned.support] == 0))
      ('2:4', (3, 8), True)
    """

    weight: np.ndarray
    bias: np.ndarray | None
    support: np.ndarray
    relative_error: float
    row_errors: np.ndarray
    size: float
    method: str
    pattern: str
    unseen: int
    solution: Solution
    seconds: float
    penalised: Solution | None = None

    @property
    def certificate(self) -> Certificate:
        """What is proved about each row of the refit, (out,), against ‖T − XWᵀ − 1bᵀ‖² on its support."""
        return self.solution.certificate

    @property
    def status(self) -> np.ndarray:
        """(out,), strings; see `Status`."""
        return self.solution.status

    @property
    def converged(self) -> bool:
        """Whether every row is certified to the tolerance: of the refit, and of `penalised` where there is one."""
        return self.solution.converged and (self.penalised is None or self.penalised.converged)

    @property
    def sparsity(self) -> float:
        """The share of weights that are zero."""
        return 1.0 - np.count_nonzero(self.weight) / self.weight.size

    def _told(self) -> str:
        rows, width = self.weight.shape
        certified = certified_rows(self.status, self.solution.tol, self.certificate)
        return f"{rows}×{width}, {self.sparsity:.1%} zeros, relative error {self.relative_error:.3g}, {certified}"

    def _repr_html_(self) -> str:
        return html_facts(self.summary().splitlines(), INDENT)

    def summary(self) -> str:
        """A few lines for a person: how sparse, how near, and how many rows are certified."""
        rows, width = self.weight.shape
        solved = int(np.count_nonzero(self.status == Status.SOLVED))
        lines = [
            f"layer           {rows} outputs of {width} inputs",
            f"zeros           {self.sparsity:.1%}, pattern {self.pattern}, support by {self.method}",
            f"relative error  {self.relative_error:.4g} of the squared outputs",
            f"refit           {solved} of {rows} rows certified at relative gap {self.solution.tol:g} on their support",
            f"worst gap       {self.certificate.relative_gap.max(initial=0.0):.2e} relative",
            f"time            {self.seconds:.2f} s",
        ]
        if self.penalised is not None:
            done = int(np.count_nonzero(self.penalised.status == Status.SOLVED))
            lines.insert(2, f"support         {done} of {rows} penalised rows certified at {self.penalised.tol:g}")
        if self.unseen:
            which = "zero" if self.bias is None else "constant"
            what = f"{self.unseen} of {width}" if self.unseen < width else "all"
            lines.insert(3, f"inputs          {what} are {which} in all samples: any weights serve, these are zero")
        return "\n".join(lines)
