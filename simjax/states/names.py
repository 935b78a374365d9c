"""What inputs, states and outputs are called, where they came as frames."""

from __future__ import annotations

import dataclasses
from typing import Any

from simjax._frames import check_same_index, column_names


@dataclasses.dataclass(frozen=True)
class Names:
    """Names of columns; None where they have none.

    Attributes:
      inputs: (p,).
      states: (n,), last hidden layer first.
      outputs: (q,).

    Examples:
      >>> import pandas as pd, simjax
      >>> u = pd.DataFrame({"age": [1.0, 2.0, 3.0]})
      >>> z = pd.DataFrame({"risk": [1.0, -2.0, 3.0]})
      >>> simjax.States(u, z, z.clip(lower=0.0), z).names
      Names(inputs=('age',), states=('risk',), outputs=('risk',))
    """

    inputs: tuple[str, ...] | None = None
    states: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None

    @classmethod
    def read(cls, inputs: Any, preactivations: Any, activations: Any, outputs: Any) -> Names | None:
        """Those of frames; None where there are no frames.

        Raises:
          ValueError: two frames have indices that differ.
        """
        layers = {
            f"{name}[{k}]": layer
            for name, value in (("preactivations", preactivations), ("activations", activations))
            for k, layer in enumerate(value if isinstance(value, list | tuple) else [])
        }
        check_same_index(
            inputs=inputs, preactivations=preactivations, activations=activations, outputs=outputs, **layers
        )
        names = cls(column_names(inputs), _of_layers(activations) or _of_layers(preactivations), column_names(outputs))
        return None if names == cls() else names

    @classmethod
    def of_json(cls, about: Any) -> Names | None:
        """The opposite of `as_json`."""
        if about is None:
            return None
        return cls(*(None if about[part] is None else tuple(about[part]) for part in ("inputs", "states", "outputs")))

    def as_json(self) -> dict[str, list[str] | None]:
        """As files hold them."""
        return {part: None if names is None else list(names) for part, names in vars(self).items()}

    def check(self, p: int, n: int, q: int) -> None:
        """Raise a ValueError unless there is a name for each of p inputs, n states and q outputs, or none for any."""
        for part, size in (("inputs", p), ("states", n), ("outputs", q)):
            names = getattr(self, part)
            if names is not None and len(names) != size:
                raise ValueError(f"names.{part} must be {size} names, got {len(names)}.")


def _of_layers(value: Any) -> tuple[str, ...] | None:
    """The names of stacked states: of one frame, or of a list with a frame for each layer, first hidden layer first."""
    if not isinstance(value, list | tuple):
        return column_names(value)
    names: tuple[str, ...] = ()
    for layer in reversed(value):
        own = column_names(layer)
        if own is None:
            return None
        names += own
    return names
