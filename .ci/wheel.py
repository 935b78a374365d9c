"""wheel.py WHEEL: tries an installed wheel that came without extras; run outside the source tree."""

import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import simjax
from simjax import datasets


def certified_solve() -> None:
    """Rows, then a whole fit that is saved and read back."""
    rng = np.random.default_rng(0)
    design, targets = rng.normal(size=(60, 20)), rng.normal(size=(60, 5))
    solution = simjax.solve_rows(design, targets, loss_weight=0.5, penalty=simjax.L1(4.0))
    assert solution.converged, solution.summary()
    assert solution.certificate.relative_gap.max() <= 1e-6

    weights = [rng.normal(size=shape) for shape in ((3, 6), (2, 3))]
    states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(40, 6)))
    result = simjax.fit(states, "l1", alpha=0.05)
    assert result.converged, result.summary()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        result.model.save(file)
        assert np.array_equal(simjax.ImplicitModel.load(file).A, result.model.A)


def missing_extras() -> None:
    """Each extra of a user's is asked for, and its error names it."""

    def oracle() -> None:
        simjax.solve_rows(np.eye(3), np.ones((3, 1)), loss_weight=0.5, penalty=simjax.L1(0.1), solver="clarabel")

    def command() -> None:
        done = subprocess.run([Path(sys.executable).with_name("simjax"), "--version"], capture_output=True, text=True)
        assert done.returncode == 2, done
        raise ModuleNotFoundError(done.stderr)

    asked = {
        "cli": ("typer", command),
        "plot": ("matplotlib", lambda: simjax.plotting.plot_path),
        "datasets": ("sklearn", lambda: datasets.load("digits")),
        "sklearn": ("sklearn", lambda: simjax.sklearn),
        "oracles": ("clarabel", oracle),
        "torch": ("torch", simjax.ImplicitModel([[0.0]], [[1.0]], [[1.0]], [[0.0]]).to_torch),
    }
    offered = set(importlib.metadata.metadata("simjax").get_all("Provides-Extra"))
    assert set(asked) == offered - {"all", "test", "lint", "docs", "package", "ray"}, offered
    for extra, (package, ask) in asked.items():
        assert importlib.util.find_spec(package) is None, f"{package} is here: this is no install without extras"
        try:
            ask()
        except Exception as error:  # whatever it is, it has to say what to install
            assert f"pip install 'simjax[{extra}]'" in str(error), f"{extra}: {error!r}"
        else:
            raise AssertionError(f"{extra} is missing, and nothing says so")


if __name__ == "__main__":
    assert Path(simjax.__file__).is_relative_to(sys.prefix), simjax.__file__
    version = importlib.metadata.version("simjax")
    assert version == simjax.__version__ == sys.argv[1].split("-")[1]
    certified_solve()
    missing_extras()
    about = f"Python {sys.version.split()[0]}, JAX {importlib.metadata.version('jax')}"
    print(f"simjax {version} works without extras on {about}")
