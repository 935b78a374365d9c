"""The package as a house: what importing it costs, which names it offers, what its modules may do to one another."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

import simjax

PACKAGE = Path(simjax.__file__).parent
HEAVY = {"flax", "jax", "jaxlib", "matplotlib", "numpy", "optax", "rich", "safetensors", "scipy", "sklearn", "typer"}
SUBMODULES = (
    "cluster",
    "datasets",
    "equilibrium",
    "functional",
    "nn",
    "plotting",
    "rescaling",
    "robustness",
    "sklearn",
    "states",
)
FUNCTIONS = [name for name in simjax.__all__ if isinstance(getattr(simjax, name), types.FunctionType)]


def in_a_process_of_its_own(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


# ---- names -------------------------------------------------------------------------------------------------


def test_importing_simjax_imports_nothing_heavy() -> None:
    loaded = in_a_process_of_its_own("import sys, simjax; print(*{name.partition('.')[0] for name in sys.modules})")
    assert HEAVY & set(loaded.split()) == set()


def test_every_public_name_is_there() -> None:
    assert len(simjax.__all__) == len(set(simjax.__all__)) == 49
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


# ---- modules -----------------------------------------------------------------------------------------------

MODULES = {
    ".".join(
        (path.parent if path.name == "__init__.py" else path.with_suffix("")).relative_to(PACKAGE.parent).parts
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MOST_LINES = 400


def imports(module: str, path: Path) -> set[str]:
    """The modules of the package that a module imports, also within functions and for type checkers only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are written from the root"
            inner = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in MODULES else str(node.module) for name in inner}
    return found & set(MODULES)


def test_modules_are_short() -> None:
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module for module, count in lines.items() if count > MOST_LINES} == set()


def test_sections_of_docstrings_are_indented_by_two_spaces() -> None:
    section = re.compile(r"^( *)(?:Args|Attributes|Examples|Raises|Returns):\n( *)", re.MULTILINE)
    other = {
        module
        for module, path in MODULES.items()
        for outer, inner in section.findall(path.read_text(encoding="utf-8"))
        if len(inner) - len(outer) != 2
    }
    assert other == set()


def test_no_module_imports_through_a_package_that_holds_it() -> None:
    """That would be a circle by way of its __init__.py, and hides from where the name comes."""
    through = {
        (module, imported)
        for module, path in MODULES.items()
        for imported in imports(module, path)
        if module.startswith(f"{imported}.")
    }
    users = {module for module in MODULES if module.startswith("simjax.app.commands.")} | {"simjax.app.cli"}
    assert {(module, imported) for module, imported in through if module not in users} == set()
    assert {imported for _, imported in through} == {"simjax"}  # by users of the library, like any others


def test_dependencies_and_extras_are_what_is_imported() -> None:
    """Nothing is imported that the project file does not name, and nothing named there is idle."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {_import_name(line) for line in project["dependencies"]}
    extras = {name: {_import_name(line) for line in lines} for name, lines in project["optional-dependencies"].items()}
    named = ("cli", "plot", "datasets", "oracles", "torch", "ray")
    optional = set().union(*(extras[name] for name in named))
    imported = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            imported |= {str(name).partition(".")[0] for name in names}
    outside = imported - set(sys.stdlib_module_names) - {"simjax"}
    assert outside == (required | optional) - {"jaxlib"}  # jaxlib is half of jax


def test_what_the_tests_depend_on_is_imported_by_them() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {_import_name(line) for line in project["optional-dependencies"]["test"]}
    named -= {"simjax", "pytest-xdist", "ipykernel"}  # the last runs the notebooks
    texts = [path.read_text(encoding="utf-8") for path in (PACKAGE.parent / "tests").rglob("*.py")]
    assert {
        name for name in named if not any(re.search(rf"^(import|from) {name}\b", text, re.M) for text in texts)
    } == set()


def _import_name(requirement: str) -> str:
    name = re.match(r"[\w-]+", requirement)
    assert name is not None
    return {"scikit-learn": "sklearn"}.get(name[0], name[0])


@pytest.mark.parametrize("file", [".ci/run", "Makefile"])
def test_tests_that_are_named_exist(file: str) -> None:
    root = PACKAGE.parent
    named = set(re.findall(r"tests/[\w/]+\.py", (root / file).read_text(encoding="utf-8")))
    assert named
    assert {name for name in named if not (root / name).is_file()} == set()
