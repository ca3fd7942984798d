"""The house rules: who may import whom, what is packaged, what the text never names."""

import ast
import graphlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Package -> the project's packages it may import beside itself.
MAY_IMPORT = {
    "cnn_arch": set(),
    "input_pipeline": set(),
    "experiments": {"cnn_arch", "input_pipeline"},
    "launch": {"experiments", "cnn_arch", "input_pipeline"},
}
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every absolute import below `tree`, those inside functions too: (dotted name, line)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def at_import_time(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        statement = waiting.pop()
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        waiting += [n for n in ast.iter_child_nodes(statement) if isinstance(n, ast.stmt)]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_imports_go_one_way_only():
    wrong = []
    for path in MODULES:
        package = path.relative_to(ROOT).parts[0]
        allowed = {package} | MAY_IMPORT[package]
        for name, line in imported(parsed(path)):
            top = name.split(".")[0]
            if (top in MAY_IMPORT and top not in allowed) or top == "tests":
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def name_of(path: Path) -> str:
    """`launch.verbs.train`; of a package, its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count too; those for type checkers alone do not."""
    names = {name_of(path) for path in MODULES}
    graph = {}
    for path in MODULES:
        tree = parsed(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = [ast.Pass()]
        modules = {name if name in names else name.rpartition(".")[0] for name, _ in imported(tree)}
        graph[name_of(path)] = (modules & names) - {name_of(path)}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_variables_are_named_after_what_they_hold():
    """Fields of classes may have such names: some are keys of files."""
    empty = {"found", "told", "seen", "asked", "given", "kept", "known", "wanted", "there", "here"}
    empty |= {"one", "each", "what"}
    wrong = []
    for path in MODULES:
        tree = parsed(path)
        fields = {
            id(statement.target)
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for statement in node.body
            if isinstance(statement, ast.AnnAssign)
        }
        for node in ast.walk(tree):
            stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            name = (
                node.id if stored else getattr(node, "arg", "") if isinstance(node, ast.arg) else ""
            )
            if name in empty and id(node) not in fields:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not wrong, "\n".join(wrong)


def test_tensorflow_is_imported_by_input_pipeline_and_as_a_peer_only():
    # clu.metric_writers and clu.periodic_actions import TensorFlow themselves.
    heavy = re.compile(
        r"(tensorflow|tensorflow_datasets|clu\.metric_writers|clu\.periodic_actions)\b"
    )
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in MODULES
        if path.relative_to(ROOT).parts[0] != "input_pipeline"
        and path.relative_to(ROOT).parts[:2] != ("launch", "bench")
        for name, line in imported(parsed(path))
        if heavy.match(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_tensorflow_is_never_imported_before_it_is_needed():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in MODULES
        for statement in at_import_time(parsed(path))
        for name, line in imported(statement)
        if re.match(r"(tensorflow|tensorflow_datasets)\b", name)
    ]
    assert not wrong, "\n".join(wrong)


def test_everything_imports_without_tensorflow(fresh_python):
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in MODULES
        if path.name not in ("__init__.py", "__main__.py") and "studies" not in path.parts
    ]
    code = (
        "import importlib, sys\n"
        "sys.modules['tensorflow'] = None\n"  # importing it raises ImportError
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    process = fresh_python("-c", code)
    assert process.returncode == 0, process.stderr


def errors_for_users() -> list[type]:
    import cnn_arch
    import input_pipeline
    from cnn_arch.errors import WeightsError
    from experiments.config import ConfigError
    from experiments.runs.checkpoints import CheckpointError
    from experiments.runs.runs import RunError
    from experiments.testing.predictions import PredictionsError
    from experiments.tracking import TrackingError
    from launch.api import ApiError
    from launch.executors.backend import BackendError
    from launch.executors.cluster import ClusterError
    from launch.executors.squeue import SlurmError

    return [
        cnn_arch.ArchitectureError,
        WeightsError,
        input_pipeline.DataError,
        CheckpointError,
        ConfigError,
        PredictionsError,
        RunError,
        ApiError,
        TrackingError,
        BackendError,
        ClusterError,
        SlurmError,
    ]


def test_errors_meant_for_users_say_so():
    """The command line shows them as one message and exit status 2, others as a traceback."""
    for error in errors_for_users():
        assert issubclass(error, ValueError), error
        assert getattr(error, "user_error", False) is True, f"{error} lacks user_error = True"


def test_wheel_holds_the_packages_and_their_data_and_no_tests(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {name.split("/")[0] for name in names}
    (metadata,) = [name for name in folders if name.endswith(".dist-info")]
    assert folders - {metadata} == set(MAY_IMPORT)
    for path in MODULES:
        assert path.relative_to(ROOT).as_posix() in names
    for path in (ROOT / "experiments" / "papers").glob("*.csv"):
        assert path.relative_to(ROOT).as_posix() in names
    assert f"{metadata}/licenses/LICENSE" in names
    assert not [name for name in names if name.startswith("tests/") or "test_" in name]


FORBIDDEN = {
    "a folder of one machine": r"/(?:root|home|work|Users|opt)/\w",
    "an address of one network": r"\b(?:10|192\.168|172\.16)(?:\.\d{1,3}){2,3}\b(?!\.\d)",
    "a package index": r"(?:index-url|find-links)[ =]|\bpypi\.\w+\b",
    "an issue by number": r"\b[Ii]ssue #?\d",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_text_names_nothing_of_one_workplace(what):
    pattern = re.compile(FORBIDDEN[what])
    top = [ROOT / name for name in ("Makefile", "pyproject.toml", ".ci/run", "mkdocs.yml")]
    top += [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "CITATION.cff"]
    files = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(f for f in top if f.exists())]
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not wrong, "\n".join(wrong)
