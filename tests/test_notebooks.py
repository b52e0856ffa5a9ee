"""The notebooks: kept without outputs, naming only what exists, and run from top to bottom at debug size."""

import ast
import importlib.util
import json
import os
import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
IN_ORDER = ("five_modes", "finetune", "data_and_latent_actions")
"""`finetune` goes on from the run of `five_modes`."""


def cells_of(path, kind):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_each_is_run_below():
    assert {path.stem for path in NOTEBOOKS} == set(IN_ORDER)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_without_outputs(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_on_colab_only(path):
    first, *others = cells_of(path, "code")
    assert first == cells_of(NOTEBOOKS[0], "code")[0], "one setup for all"
    (condition,) = [node for node in ast.parse(first).body if isinstance(node, ast.If)]
    assert "google.colab" in ast.unparse(condition.test) and "pip" in ast.unparse(condition)
    assert not any(re.search(r"\b(pip|subprocess)\b", cell) for cell in others)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_names_exists(path):
    text = "\n".join(cells_of(path, "markdown"))
    commands = re.findall(r"python -m ([\w.]+)((?: [a-z_]+)?(?: --[^` ]+)*)", text)
    assert commands
    for module, arguments in commands:
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        sources = [pathlib.Path(spec.origin)]
        if sources[0].name == "__init__.py":  # a package with subcommands
            assert (sources[0].parent / f"{arguments.split()[0]}_command.py").is_file(), arguments
            sources = list(sources[0].parent.glob("*command*.py"))
        defined = "".join(source.read_text() for source in sources)
        for flag in re.findall(r"--(\w+)", arguments):
            assert re.search(rf'"(--)?{flag}"', defined), f"{module} --{flag}"
    for file in re.findall(r"(?:experiments|notebooks|launch|docs)/[\w/]+\.\w+", text):
        assert (REPOSITORY / file).is_file(), file


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.thorough
@pytest.mark.parametrize("name", IN_ORDER)
def test_runs_from_top_to_bottom(name, runs, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("MOTUS_SIZE", "debug")
    monkeypatch.setenv("MOTUS_RUNS", str(runs))
    path = REPOSITORY / "notebooks" / f"{name}.ipynb"
    book = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=where).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    drawing = [cell for cell in cells if re.search(r"^ *show\(", cell.source, re.MULTILINE)]
    assert len(pictures) >= len(drawing) > 3
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert os.listdir(runs), "it writes where it is told"
