"""The floors of the house: nothing imports upward, nothing goes in circles, no heavy framework, nothing too long."""

import ast
import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
PACKAGE = REPOSITORY / "motus_jax"
LONGEST_FILE, LONGEST_FUNCTION = 500, 80
FORBIDDEN = {"torch", "tensorflow", "lerobot", "transformers", "diffusers"}
TOP = 4
FLOORS = {
    **dict.fromkeys(("errors", "cli", "compiler", "modes", "flow_matching", "flow_picture"), 0),
    "models": 1,
    **dict.fromkeys(("weights", "data", "sampling"), 2),
    **dict.fromkeys(("training", "robots", "evaluation"), 3),
    **dict.fromkeys(("train", "sample", "evaluate", "convert", "compile", "serve", "view"), TOP),
}
"""Floor of every module and folder directly in the package. A module with a `main` is a command: it stands on top."""

SOURCES = {
    path: ast.parse(path.read_text())
    for folder in ("motus_jax", "motus_jax_client", "experiments", "examples", "tests", "benchmarks")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
}


def name_of(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): tree for path, tree in SOURCES.items() if path.is_relative_to(PACKAGE)}


def imported(tree):
    """Full names of everything that a module imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree):
    """Modules of the package that a module imports."""
    for name in imported(tree):
        module = name if name in MODULES else name.rpartition(".")[0]
        if module in MODULES and module != "motus_jax":
            yield module


def floor(module):
    is_command = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in MODULES[module].body)
    return TOP if is_command else FLOORS[module.split(".")[1]]


def test_every_part_has_a_floor():
    assert {module.split(".")[1] for module in MODULES if module != "motus_jax"} == set(FLOORS)


def test_nothing_imports_upward():
    upward = [
        f"{module} imports {other}"
        for module, tree in MODULES.items()
        if module != "motus_jax"
        for other in own_imports(tree)
        if floor(other) > floor(module)
    ]
    assert not upward


def test_no_circles():
    below = {module: set(own_imports(tree)) - {module} for module, tree in MODULES.items()}
    while free := {module for module, others in below.items() if not others}:
        below = {module: others - free for module, others in below.items() if module not in free}
    assert not below, "these modules import each other, or something that does"


def test_no_other_framework():
    found = {
        f"{module} imports {name}"
        for module, tree in MODULES.items()
        for name in imported(tree)
        if name.split(".")[0] in FORBIDDEN
    }
    assert not found


@pytest.mark.parametrize("folder", ["motus_jax", "motus_jax_client", "experiments", "examples", "tests", "benchmarks"])
def test_files_and_functions_are_short(folder):
    found = []
    for path, tree in SOURCES.items():
        if path.relative_to(REPOSITORY).parts[0] != folder:
            continue
        length = len(path.read_text().splitlines())
        found += [f"{path}: {length} lines"] * (length > LONGEST_FILE)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                found += [f"{path}:{node.lineno} {node.name}: {length} lines"] * (length > LONGEST_FUNCTION)
    assert not found, f"at most {LONGEST_FILE} lines a file and {LONGEST_FUNCTION} a function"
