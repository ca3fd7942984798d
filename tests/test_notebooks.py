"""The notebooks of examples/: kept without outputs, and executed whole (`make test-notebooks`)."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.ipynb"))
SECONDS = 600  # of one cell, where it hangs
LINES = 40  # that a cell may show


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    document = json.loads(path.read_text("utf-8"))
    for cell in document["cells"]:
        assert not cell["metadata"]
        assert not cell.get("outputs"), f"clear the outputs: {cell['source']}"
        assert cell.get("execution_count") is None
    assert set(document["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.notebooks
@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_show_little(path, tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.delenv("MPLBACKEND")  # a kernel takes its own
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises where a cell does
    for cell in notebook.cells:
        shown = "".join(output.get("text", "") for output in cell.get("outputs", ()))
        assert "\x1b" not in shown
        assert len(shown.splitlines()) < LINES
        assert len(cell.get("outputs", ())) < LINES
    assert any((tmp_path / "runs").iterdir())
    if "sweep" in path.stem:
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        text = "".join(output["text"] for output in outputs if output.output_type == "stream")
        assert "[4/4] " in text  # the progress is seen
        assert any("image/png" in output.get("data", {}) for output in outputs)
