"""The examples of docs/add-*.md still fit the code that they change."""

import re
import subprocess
from pathlib import Path

import pytest

from experiments.runs.state import STATES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("add-*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_diffs_of_examples_apply(page):
    diffs = re.findall(r"^```diff\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert diffs or page.stem == "add-cluster"
    for diff in diffs:
        # Line numbers may be others: what counts are the lines around a change.
        process = subprocess.run(
            ["git", "apply", "--check"],
            cwd=ROOT,
            input=diff,
            capture_output=True,
            text=True,
        )
        message = (
            f"the code that the example changes is another; make its diff anew\n{process.stderr}"
        )
        assert process.returncode == 0, f"docs/{page.name}: {message}"


def test_every_page_is_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert all(f"{path.name}\n" in site for path in (ROOT / "docs").glob("*.md"))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(name):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text("utf-8"))
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_states_of_a_run_are_those_that_the_page_explains():
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.partition("## How a run stands")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z ]+)` \|", table, re.MULTILINE)) == set(STATES)
