"""Each notebook runs from top to bottom. They take long: other tests leave them out, and `.ci/run` names this file."""

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

SCRIPTS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))
LIMIT = 120  # seconds for a cell


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_top_to_bottom(script: Path, tmp_path: Path) -> None:
    notebook = jupytext.read(script)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=LIMIT, kernel_name="python3", resources=resources).execute()
    errors = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert errors == []
