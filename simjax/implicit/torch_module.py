"""`ImplicitModel.to_torch`: the model as a PyTorch module, with derivatives by the implicit function theorem.

x = φ(Ax + Bu + b) is found without a record of the passes. One pass more attaches it to the graph, and the gradient g
with respect to x that arrives there is replaced by the solution of

    v = g + (DA)ᵀ v,     D = diag φ′(Ax + Bu + b)

by the same averaged iteration. Both converge for μ∞(A) < 1.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, Implicit Deep Learning (2021); the hook is that of Bai, Kolter, Koltun,
Deep Equilibrium Models (2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simjax._extras import needs
from simjax._warnings import warn
from simjax.implicit.activations import LEAKY_SLOPE
from simjax.implicit.report import EquilibriumWarning

with needs("torch", "torch", "ImplicitModel.to_torch"):
    import torch

if TYPE_CHECKING:
    from simjax.implicit.model import ImplicitModel

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": torch.relu,
    "leaky_relu": lambda z: torch.nn.functional.leaky_relu(z, LEAKY_SLOPE),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda z: z,
}


class TorchImplicit(torch.nn.Module):
    """x = φ(Ax + Bu + b), ŷ = Cx + Du + c, for u (…, p), ŷ (…, q); A, B, C, D, b and c are parameters.

    Args:
      model: whose weights are copied.
      dtype: of the parameters; None means PyTorch's default.
      max_iters: most passes through A, of states and of gradients.

    Warns:
        EquilibriumWarning: some samples did not converge.
    """

    def __init__(self, model: ImplicitModel, dtype: torch.dtype | None, max_iters: int) -> None:
        super().__init__()
        dense, dtype = model.to_dense(), torch.get_default_dtype() if dtype is None else dtype
        for name in ("A", "B", "C", "D", "b", "c"):
            value = getattr(dense, name)
            copied = None if value is None else torch.nn.Parameter(torch.tensor(np.asarray(value), dtype=dtype))
            self.register_parameter(name, copied)
        self.activation = model.activation
        self.max_iters = max_iters

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        drive = torch.nn.functional.linear(u, self.B, self.b)
        with torch.no_grad():
            x = self._fixed_point(lambda x: self._image(x, drive), torch.zeros_like(drive))
        if torch.is_grad_enabled():
            at = x.detach().requires_grad_()
            image = self._image(at, drive.detach())
            x = self._image(x, drive)
            if x.requires_grad:
                x.register_hook(lambda gradient: self._adjoint(image, at, gradient))
        return torch.nn.functional.linear(x, self.C) + torch.nn.functional.linear(u, self.D, self.c)

    def extra_repr(self) -> str:
        return f"n={self.A.shape[0]}, p={self.B.shape[1]}, q={self.C.shape[0]}, activation={self.activation!r}"

    def _image(self, x: torch.Tensor, drive: torch.Tensor) -> torch.Tensor:
        return _ACTIVATIONS[self.activation](torch.nn.functional.linear(x, self.A) + drive)

    def _adjoint(self, image: torch.Tensor, at: torch.Tensor, gradient: torch.Tensor | None) -> torch.Tensor | None:
        """v = g + (DA)ᵀ v; without a record of how it was found, so that there is no derivative of it."""
        if gradient is None:  # nothing depends on x
            return None
        if torch.is_grad_enabled():
            raise NotImplementedError("a model of to_torch has first derivatives only: create_graph must be False.")

        def pulled(v: torch.Tensor) -> torch.Tensor:
            (back,) = torch.autograd.grad(image, at, v, retain_graph=True)
            return gradient + back

        return self._fixed_point(pulled, gradient)

    def _fixed_point(self, step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Averaged iteration from x until the last step of every sample is within the rounding of its precision."""
        lowest = min(0.0, float(self.A.detach().diagonal().min()))
        share = 1.0 / (1.0 - lowest)
        tolerance = share * 16.0 * torch.finfo(x.dtype).eps
        change = size = torch.zeros(())
        for _ in range(self.max_iters):
            following = (1.0 - share) * x + share * step(x)
            change = (following - x).abs().amax(dim=-1)
            size = following.abs().amax(dim=-1).clamp(min=1.0)
            x = following
            if bool((change <= tolerance * size).all()):
                return x
        count = int((~(change <= tolerance * size)).sum())
        warn(
            f"{count} of {change.numel()} samples did not reach an equilibrium in {self.max_iters} passes; with "
            f"‖A‖∞ ≥ 1 there may be none.",
            EquilibriumWarning,
        )
        return x
