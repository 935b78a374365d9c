"""Samples out of memory: batches streamed into statistics that state the same rows with at most d + 1 samples.

A row problem sees its m samples only through inner products of the columns of Φ and those of Φ with its own target, and
these are kept by a QR factorisation of Φ, which is updated batch by batch and applied to T:

    Qᵀ [Φ T] = [R₁₁ R₁₂]        λ‖t − Φw‖² = λ‖R₁₂ e − R₁₁ w‖² + λ‖R₂₂ e‖²        for every w, with t = T e
               [ 0  R₂₂]

So R₁₁ (d samples) and one more sample, of zeros in the design and of ‖R₂₂ e‖ in the targets, are the same problem; of
R₂₂, which grows with the samples, only the squared norms of its columns are kept, a sum without cancellation.
Source: Demmel, Grigori, Hoemmen, Langou, Communication-optimal parallel and sequential QR and LU factorizations
(2012), §4.1, sequential TSQR.

Why not ΦᵀΦ and ΦᵀT, which cost a quarter: states come from a network that explains them itself, Z = AX + BU, so that
‖t − Φw‖² is small against ‖t‖² for all weights that matter, and the smaller the more samples there are. The form
wᵀΦᵀΦw − 2wᵀΦᵀt + ‖t‖² errs by about ε(‖t‖ + Σ|w_j|‖φ_j‖)² and loses such a number to cancellation; the triangular
factor errs by about ε(‖t‖ + Σ|w_j|‖φ_j‖) in ‖t − Φw‖ itself, no more than evaluating it sample by sample does
(ε = 2e-16). So nothing has to be refused: no ill-conditioned data, no exact matching, and not m < d.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse
from scipy.linalg import lapack

from simjax._checks import matrix, positive_integer
from simjax._typing import ArrayLike, MatrixLike
from simjax.rows.centring import checked_sample_weight
from simjax.rows.sparse_design import sparse_design

_BLOCK = 4096  # samples that are reduced at once
_PANEL = 64  # columns of a panel of LAPACK's blocked factorisation

# Columns of a design that depend on others do so to the rounding of all reductions; what is below this, against columns
# of norm one, is taken for that rounding. Left in, it would count as a sample of its own.
_RANK_TOL = 1e-13


class SufficientStatistics:
    """All that a row problem needs of its samples: R₁₁, R₁₂ and ‖R₂₂ e‖², accumulated in float64.

    Takes d(d + R) numbers, whatever the number of samples. `solve_rows(*statistics.compressed(), …)` solves the rows.

    Args:
      width: d, the columns of the design.
      rows: R, the columns of the targets, one per row; 0 where only the design is of interest.

    Raises:
      TypeError, ValueError: for numbers that are not integers, a width below 1 or rows below 0.

    Examples:
      >>> import numpy as np, simjax
      >>> statistics = simjax.SufficientStatistics(width=2, rows=1)
      >>> for design in (np.eye(2), 2.0 * np.eye(2)):
      ...     statistics.update(design, design @ [[3.0], [1.0]])
      >>> simjax.solve_rows(*statistics.compressed(), penalty=simjax.NoPenalty()).weights.round(6)
      array([[3., 1.]])
    """

    def __init__(self, width: int, rows: int) -> None:
        self.width = positive_integer("width", width)
        self.rows = 0 if isinstance(rows, int) and rows == 0 else positive_integer("rows", rows)
        self._m, self._total = 0, 0.0
        self._triangle = np.zeros((self.width, self.width), order="F")
        self._rotated = np.zeros((self.width, self.rows), order="F")
        self._unexplained = np.zeros(self.rows)

    @property
    def m(self) -> int:
        """Number of samples so far."""
        return self._m

    @property
    def total_weight(self) -> float:
        """Sum of the weights of the samples so far; their number if none were given."""
        return self._total

    def __repr__(self) -> str:
        return f"SufficientStatistics(width={self.width}, rows={self.rows}, m={self.m})"

    def update(
        self, design: MatrixLike, targets: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> None:
        """Take in one batch of k samples; a batch that is refused leaves the statistics as they were.

        Args:
          design: (k, d), real numbers of any type, converted to float64 here; sparse matrices in blocks of samples.
          targets: (k, R); None where there are no rows.
          sample_weight: v ≥ 0, (k,): the squared error of a sample counts v times; None means once.

        Raises:
          TypeError, ValueError: arrays that are not real, finite, two-dimensional and of these shapes; weights that are
            negative or all zero.
        """
        sparse = sparse_design("design", design, np.inf) if scipy.sparse.issparse(design) else None
        design = matrix("design", design) if sparse is None else sparse
        targets = np.zeros((design.shape[0], 0)) if targets is None else matrix("targets", targets)
        if design.shape[1] != self.width:
            raise ValueError(f"design must have width = {self.width} columns, got shape {design.shape}.")
        if targets.shape != (design.shape[0], self.rows):
            raise ValueError(f"targets must be ({design.shape[0]}, {self.rows}), got shape {targets.shape}.")
        weight = checked_sample_weight(sample_weight, design.shape[0])
        for start in range(0, design.shape[0], _BLOCK):
            part = slice(start, start + _BLOCK)
            block = np.array(design[part] if sparse is None else sparse[part].toarray(), order="F")
            block_targets = np.array(targets[part], order="F")
            if weight is not None:
                root = np.sqrt(weight[part, None])
                block *= root
                block_targets *= root
            # QR of the triangle on top of the block, which makes use of the zeros below the diagonal.
            panel = min(_PANEL, self.width)
            self._triangle, vectors, factors, _ = lapack.dtpqrt(
                0, panel, self._triangle, block, overwrite_a=True, overwrite_b=True
            )
            if self.rows:
                self._rotated, rest, _ = lapack.dtpmqrt(
                    0, vectors, factors, self._rotated, block_targets, trans="T", overwrite_a=True, overwrite_b=True
                )
                self._unexplained += np.einsum("ij,ij->j", rest, rest)
        self._m += design.shape[0]
        self._total += float(design.shape[0] if weight is None else weight.sum())

    def scaled(self, design_scale: ArrayLike, target_scale: ArrayLike) -> SufficientStatistics:
        """The statistics of the samples with their columns multiplied by `design_scale` (d,), `target_scale` (R,)."""
        scaled = SufficientStatistics(self.width, self.rows)
        scaled._m, scaled._total = self._m, self._total
        scaled._triangle = np.asfortranarray(self._triangle * np.asarray(design_scale))
        scaled._rotated = np.asfortranarray(self._rotated * np.asarray(target_scale))
        scaled._unexplained = self._unexplained * np.square(target_scale)
        return scaled

    def without_last(self) -> tuple[SufficientStatistics, np.ndarray]:
        """The statistics with the best multiple of the last column of the design taken out of all others.

        So a free intercept is had of a column of ones: the multiples are the means then.

        Returns:
          those of d − 1 columns, and the multiples (d − 1 + R,). Columns that are multiples of the last one to 1e-13 of
          their norm are zero.

        Raises:
          ValueError: if d is 1, or the last column is zero.
        """
        last = self.width - 1
        if last == 0:
            raise ValueError("there must be a column before the last one, got width = 1.")
        basis, triangle = np.linalg.qr(self._triangle[:, [last, *range(last)]])
        if triangle[0, 0] == 0.0:
            raise ValueError("the last column must not be zero.")
        rotated = basis.T @ self._rotated
        rest = SufficientStatistics(last, self.rows)
        rest._m, rest._total = self._m, self._total
        constant = _multiples(triangle[0, 1:], np.sum(triangle[1:, 1:] ** 2, axis=0))
        rest._triangle = np.asfortranarray(np.where(constant, 0.0, triangle[1:, 1:]))
        constant = _multiples(rotated[0], np.sum(rotated[1:] ** 2, axis=0) + self._unexplained)
        rest._rotated = np.asfortranarray(np.where(constant, 0.0, rotated[1:]))
        rest._unexplained = np.where(constant, 0.0, self._unexplained)
        return rest, np.concatenate([triangle[0, 1:], rotated[0]]) / triangle[0, 0]

    def compressed(self, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """At most d + 1 samples (Φ′, T′) with ‖t′ − Φ′w‖ = ‖t − Φw‖ for all weights w and every row.

        The last sample is zero in Φ′; in T′ it carries the part of each target that no weights explain. Before it come
        r samples, r the rank of the design: columns that depend on others to 1e-13 of their norm do so exactly in Φ′,
        which changes ‖t − Φw‖ by at most about 1e-13 Σ|w_j|‖φ_j‖.

        Args:
          width: keep the first `width` columns of the design only; None keeps all.

        Returns:
          Φ′ (r + 1, width) and T′ (r + 1, R), r ≤ min(m, width).

        Raises:
          TypeError, ValueError: if no sample has come yet, or width is not in 1 … d.
        """
        if self.m == 0:
            raise ValueError("there is nothing to compress: update(design, targets) has not been called.")
        width = self.width if width is None else positive_integer("width", width)
        if width > self.width:
            raise ValueError(f"width must be at most {self.width}, the columns of the design, got {width}.")
        top, targets = self._triangle[:width, :width], self._rotated
        norms = np.linalg.norm(top, axis=0)
        norms = np.where(norms > 0.0, norms, 1.0)
        basis, triangle, order = scipy.linalg.qr(top / norms, pivoting=True)
        diagonal = np.abs(np.diag(triangle))
        rank = min(int(np.count_nonzero(diagonal > _RANK_TOL * diagonal.max())), self.m)
        design = np.zeros((rank + 1, width))
        design[:rank, order] = triangle[:rank] * norms[order]
        rotated = basis.T @ targets[:width]
        missed = np.linalg.norm(np.concatenate([rotated[rank:], targets[width:]]), axis=0)
        unexplained = np.hypot(missed, np.sqrt(self._unexplained))
        return design, np.concatenate([rotated[:rank], unexplained[None]])


def _multiples(taken: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Columns of which only rounding is left: `taken` is what was taken out of them, `left` the square of the rest."""
    return left <= _RANK_TOL**2 * (left + taken**2)
