"""The notebooks: their two forms are equal, their outputs clean, and each runs from a fresh kernel."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.py"))

jupytext = pytest.importorskip("jupytext", reason='needs pip install -e ".[notebooks]"')
nbformat = pytest.importorskip("nbformat", reason='needs pip install -e ".[notebooks]"')
pytest.importorskip("nbclient", reason='needs pip install -e ".[notebooks]"')


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """notebooks/build.py."""
    spec = importlib.util.spec_from_file_location("build_notebooks", ROOT / "notebooks" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored(name: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def sources(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_four() -> None:
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_are_equal_and_the_outputs_are_clean(name: str, build: ModuleType) -> None:
    notebook = stored(name)
    assert sources(notebook) == sources(build.read(name)), f"write it anew: python notebooks/build.py {name}"
    assert build.faults(notebook) == []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "not run from top to bottom"
    assert any("assert" in cell.source for cell in code)
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 700_000


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for kind, source in sources(stored(name)):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", source if kind == "markdown" else ""):
            assert (ROOT / "notebooks" / target).exists(), target


def test_a_warning_a_path_and_a_time_are_faults(build: ModuleType) -> None:
    def cell(**output: Any) -> Any:
        return nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output(**output)])]
        )

    assert build.faults(cell(output_type="stream", name="stdout", text="MSE 0.25 ± 0.01 in runs/maml")) == []
    assert build.faults(cell(output_type="stream", name="stderr", text="UserWarning: no"))
    assert build.faults(cell(output_type="stream", name="stdout", text="written to /tmp/abc"))
    assert build.faults(cell(output_type="stream", name="stdout", text="12:30:01 training"))
    assert build.faults(cell(output_type="display_data", data={"application/vnd.jupyter.widget-view+json": {}}))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_a_fresh_kernel(name: str, build: ModuleType) -> None:
    """Every claim of a notebook is an assertion in a cell, so running it checks them."""
    assert build.faults(build.executed(name)) == []
