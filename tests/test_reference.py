"""docs/keys.md and docs/verbs.md say what the program says."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent / "reference.py"
_spec = importlib.util.spec_from_file_location("reference", FILE)
reference = importlib.util.module_from_spec(_spec)
sys.modules["reference"] = reference
_spec.loader.exec_module(reference)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse's help differs by Python")
def test_generated_pages_are_those_that_are_kept(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for path, text in reference.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"run python {FILE}"
