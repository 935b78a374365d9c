"""Without the optional packages simjax works, and says what to install where one is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import simjax
from simjax._extras import needs

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""
OPTIONAL = ("clarabel", "matplotlib", "mosek", "ray", "sklearn", "typer")  # Flax brings rich along


def without(hidden: tuple[str, ...], program: str) -> subprocess.CompletedProcess[str]:
    """The program, run where these packages cannot be imported."""
    code = BLOCKER.format(hidden=hidden) + program
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )


def test_the_core_needs_none_of_them() -> None:
    program = """
import numpy as np, simjax, simjax.nn, simjax.equilibrium, simjax.rescaling, simjax.robustness, simjax.datasets
assert all(getattr(simjax, name) for name in simjax.__all__)
print(simjax.ImplicitModel(np.zeros((1, 1)), [[1.0]], [[2.0]], [[0.0]]).nonzeros)
"""
    done = without(OPTIONAL, program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n"


@pytest.mark.parametrize(
    ("hidden", "program", "message"),
    [
        ("matplotlib", "import simjax.plotting", "simjax.plotting needs matplotlib: pip install 'simjax[plot]'"),
        ("matplotlib", "import simjax; simjax.plotting", "needs matplotlib: pip install 'simjax[plot]'"),
        ("sklearn", "import simjax.sklearn", "simjax.sklearn needs scikit-learn: pip install 'simjax[sklearn]'"),
        (
            "sklearn",
            "from simjax import datasets; datasets.load('digits')",
            "simjax.datasets.load_digits needs scikit-learn: pip install 'simjax[datasets]'",
        ),
        (
            "sklearn",
            "from simjax import datasets; datasets.load_newsgroups(['quotes'])",
            "needs scikit-learn: pip install 'simjax[datasets]'",
        ),
        (
            "torch",
            "import simjax; simjax.ImplicitModel([[0.0]], [[1.0]], [[1.0]], [[0.0]]).to_torch()",
            "ImplicitModel.to_torch needs torch: pip install 'simjax[torch]'",
        ),
        ("ray", "import simjax; simjax.cluster.ray()", "simjax.cluster.ray needs ray: pip install 'simjax[ray]'"),
        ("typer", "import simjax.app.cli", "the command simjax needs typer: pip install 'simjax[cli]'"),
        ("rich", "import simjax.app.cli", "the command simjax needs rich: pip install 'simjax[cli]'"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(hidden: str, program: str, message: str) -> None:
    done = without((hidden,), program)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: ")
    assert done.stderr.splitlines()[-1].endswith(message)


@pytest.mark.parametrize("hidden", ["typer", "rich"])
def test_the_command_says_it_in_one_line(hidden: str) -> None:
    done = without((hidden,), "import simjax.app; sys.exit(simjax.app.main())")
    expected = f"Error: the command simjax needs {hidden}: pip install 'simjax[cli]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_commands_without_pictures_need_no_matplotlib(tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    simjax.ImplicitModel(np.zeros((1, 1)), [[1.0]], [[1.0]], [[0.0]]).save(model)
    shown = without(
        ("matplotlib", "sklearn"), f"import simjax.app; sys.argv[1:] = ['show', {str(model)!r}]; simjax.app.main()"
    )
    assert shown.returncode == 0, shown.stderr
    demo = without(
        ("matplotlib",),
        f"import simjax.app; sys.argv[1:] = ['demo', '-o', {str(tmp_path / 'demo')!r}]; simjax.app.main()",
    )
    assert demo.returncode == 2
    assert demo.stderr == "Error: simjax.plotting needs matplotlib: pip install 'simjax[plot]'\n"
    assert not (tmp_path / "demo").exists()


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="mine"), needs("plot", "matplotlib", "this test"):
        raise ValueError("mine")
