"""Packages that only parts of simjax need: where one is missing, the error says how to get it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str, package: str, who: str) -> Iterator[None]:
    """Around imports of an optional package.

    Args:
      extra: of simjax, as in pyproject.toml, that brings the package.
      package: as it is called on PyPI.
      who: needs it, e.g. "simjax.plotting".

    Raises:
      ModuleNotFoundError: an import inside found nothing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{who} needs {package}: pip install 'simjax[{extra}]'"
        raise ModuleNotFoundError(message, name=error.name, path=error.path) from error
