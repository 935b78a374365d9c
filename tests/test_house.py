"""The package as a house: what importing it costs, which names it offers, what its modules may do to one another."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import simjax

PACKAGE = Path(simjax.__file__).parent
HEAVY = {"flax", "jax", "jaxlib", "matplotlib", "numpy", "optax", "rich", "safetensors", "scipy", "sklearn", "typer"}
SUBMODULES = ("datasets", "equilibrium", "nn", "plotting", "rescaling", "robustness", "states")
FUNCTIONS = [name for name in simjax.__all__ if isinstance(getattr(simjax, name), types.FunctionType)]


def in_a_process_of_its_own(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


# ---- names -------------------------------------------------------------------------------------------------


def test_importing_simjax_imports_nothing_heavy() -> None:
    loaded = in_a_process_of_its_own("import sys, simjax; print(*{name.partition('.')[0] for name in sys.modules})")
    assert HEAVY & set(loaded.split()) == set()


def test_every_public_name_is_there() -> None:
    assert len(simjax.__all__) == len(set(simjax.__all__)) == 36
    for name in simjax.__all__:
        assert getattr(simjax, name) is not None
    assert set(simjax.__all__) | set(SUBMODULES) <= set(dir(simjax))
    with pytest.raises(AttributeError, match="module 'simjax' has no attribute 'solve_row'"):
        _ = simjax.solve_row


@pytest.mark.parametrize("name", SUBMODULES)
def test_submodules_need_no_import_of_their_own(name: str) -> None:
    program = f"import simjax; print(simjax.{name}.__name__)"
    assert in_a_process_of_its_own(program) == f"simjax.{name}"


def test_type_checkers_read_the_names_that_are_imported() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If)).body
    imports = {node.module: {name.name for name in node.names} for node in guarded if isinstance(node, ast.ImportFrom)}
    assert imports.pop("simjax") == set(simjax._SUBMODULES) == set(SUBMODULES)
    assert imports == {module: set(names) for module, names in simjax._NAMES.items()}
    assert sorted(simjax._MODULE_OF) == sorted(simjax.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_module_has_the_name_of_a_public_function(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"simjax.{name}")
