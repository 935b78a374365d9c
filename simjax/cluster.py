"""Workers for `executor=` of `fit`, `path` and `solve_rows`: see docs/scale.md."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from simjax._checks import nonnegative_scalar, positive_integer
from simjax._extras import needs
from simjax.rows.pool import Pool, SharingExecutor

__all__ = ["Pool", "RayExecutor", "ray"]


def ray(address: str | None = None, *, num_cpus: int = 1, num_gpus: float = 0.0, retries: int = 3) -> Pool:
    """Workers of a Ray cluster, as the SIM paper uses them (Appendix B), for `executor=`.

    The design lies in the object store, once on each node; blocks of rows are tasks, which Ray gives to its nodes and
    does again where a worker or a node dies. Where this process is in a cluster already (`ray.init`), that one is used
    and stays; otherwise Ray is begun when the first rows are solved, and ended with the call, or with the
    `with simjax.cluster.ray() as pool:` around several.

    Args:
      address: of a cluster, "auto" for the one that this machine belongs to, or what `ray.init` takes besides; None
        starts a cluster on this machine.
      num_cpus: threads of a block, and what Ray counts it as.
      num_gpus: of a block, in whole or shares of one, for engine="jax".
      retries: how often Ray does a block again whose worker or node died.

    Raises:
      ModuleNotFoundError: without the extra `ray`.
      TypeError, ValueError: naming the argument, what was got and what was expected.

    Examples:
      >>> import simjax
      >>> pool = simjax.cluster.ray(num_cpus=2)  # Ray begins with the first rows: solve_rows(…, executor=pool)
    """
    _package()
    if address is not None and not isinstance(address, str):
        raise TypeError(f"address must be a string or None, got {type(address).__name__}.")
    threads, share = positive_integer("num_cpus", num_cpus), nonnegative_scalar("num_gpus", num_gpus)
    make = functools.partial(RayExecutor, address, threads, share, positive_integer("retries", retries))
    return Pool(make, threads=threads)


class RayExecutor(SharingExecutor):
    """`concurrent.futures.Executor` over Ray's tasks; the arguments are those of `ray`.

    Examples:
      >>> from simjax.cluster import Pool, RayExecutor
      >>> pool = Pool(lambda: RayExecutor("auto", num_cpus=1, num_gpus=0.0, retries=3))  # what `ray` does
    """

    def __init__(self, address: str | None, num_cpus: int, num_gpus: float, retries: int) -> None:
        self._ray = _package()
        self._own = not self._ray.is_initialized()
        if self._own:
            # Ray's logging is the user's to set up; what workers print stays in their files.
            self._ray.init(address=address, log_to_driver=False, configure_logging=False)
        elif address not in (None, "auto", here := self._ray.get_runtime_context().gcs_address):
            raise ValueError(f"address must be that of the cluster this process is in, {here!r}, got {address!r}.")
        self._task = self._ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=retries)(_called)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return _Answer(self._ray, self._task.remote(function, *args, **kwargs))

    def share(self, array: Any) -> Any:
        """The design in the object store; a node that needs it fetches it once."""
        return self._ray.put(array)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._own and self._ray.is_initialized():
            self._ray.shutdown()


class _Answer(Future):
    """The future of a task. Errors of the function are as it raised them, with Ray's account of them as their cause."""

    def __init__(self, ray: types.ModuleType, reference: Any) -> None:
        super().__init__()
        self._ray, self._reference = ray, reference
        self.set_running_or_notify_cancel()
        reference.future().add_done_callback(self._settle)

    def cancel(self) -> bool:
        """Ask Ray not to begin it; whether it was begun, its end tells."""
        self._ray.cancel(self._reference)
        return False

    def _settle(self, inner: Future[Any]) -> None:
        error = inner.exception()
        if error is None:
            self.set_result(inner.result())
            return
        if isinstance(error, self._ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
            error.cause.__cause__ = error
            error = error.cause
        self.set_exception(error)


def _called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _package() -> types.ModuleType:
    with needs("ray", "ray", "simjax.cluster.ray"):
        import ray
    return ray
