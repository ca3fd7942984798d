"""Networks of a user: 'my_nets:vgg14' is variant vgg14 of a family that the module my_nets offers.

The module is a file `my_nets.py` (or a package) beside the study's file or on PYTHONPATH. It offers
what a module here does, a tuple FAMILIES, with one family that has the module's name:
`FAMILIES = (Family(name=__name__, ...),)`.

A module is imported, so it runs. A run's folder may come from others: it never says where modules
are looked for, and neither does the folder in which a command is typed.
"""

import ast
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from cnn_arch.errors import ArchitectureError
from cnn_arch.family import Family


@dataclass(frozen=True)
class UserModule:
    """The family that a module offers under its own name.

    origin: `source`, a digest of the module's files and of those of its folder that they import,
        and the `folder`, which `import` looks in.
    """

    family: Family
    origin: dict[str, str]
    files: dict[Path, bytes]  # of which `source` is the digest, by their place in `folder`


_imported_modules: dict[str, UserModule] = {}
_looked_in: list[str] = []


def look_in(folder: str | Path) -> None:
    """Modules are looked for in this folder too, after all others."""
    folder = str(Path(folder).absolute())
    _looked_in.append(folder)
    if folder not in sys.path:
        sys.path.append(folder)


def _is_a_users(name: str) -> bool:
    """Whether `import` finds a module, and finds it where those of a user are looked for. No other
    is imported, nor one of a folder that is no package."""
    project = str(Path(__file__).resolve().parents[1])
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [*(folder for folder in folders if folder and folder != project), *_looked_in]
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), path)
        if spec is None or spec.origin is None:
            return False
        if count == 1:
            first = importlib.util.find_spec(parts[0])
            if first is None or first.origin != spec.origin:
                return False
        path = list(spec.submodule_search_locations or ())
    return True


def can_be(name: str) -> bool:
    """Whether this can be a module's name."""
    return all(part.isidentifier() for part in name.split("."))


def find(name: str) -> UserModule | None:
    """What the module `name` offers; None without such a module.

    Raises ArchitectureError where the module can't be imported, or offers no such family.
    """
    if name not in _imported_modules:
        importlib.invalidate_caches()
        if not _is_a_users(name):
            return None
        spec, families = _imported(name)
        if spec is None or spec.origin is None:
            return None
        if not spec.origin.endswith(".py"):
            raise ArchitectureError(f"module {name} ({spec.origin}) is no Python source.")
        offered = families if isinstance(families, tuple | list) else ()
        own = [family for family in offered if isinstance(family, Family) and family.name == name]
        if len(own) != 1:
            raise ArchitectureError(
                f"module {name} ({spec.origin}) offers no family of networks; expected FAMILIES = "
                "(Family(name=__name__, ...),), of cnn_arch.Family."
            )
        parts = name.split(".")
        deep = len(parts) - (spec.submodule_search_locations is None)
        folder = Path(spec.origin).parents[deep]
        contents = _closure(Path(spec.origin), name, folder)
        origin = {"source": _digest(contents), "folder": str(folder)}
        _imported_modules[name] = UserModule(own[0], origin, contents)
    return _imported_modules[name]


def files(name: str) -> dict[Path, bytes]:
    """The files that the module `name` and those of its folder that it imports are, by their place
    in that folder. Raises ArchitectureError as `find`, and where there is no such module."""
    module = find(name)
    if module is None:
        raise ArchitectureError(f"There is no module {name}.")
    return dict(module.files)


def _imported(name: str) -> tuple[ModuleSpec | None, object]:
    """Where a module lies, and the families that it offers. Raises ArchitectureError."""
    where = f"module {name}"
    spec = None
    # No compiled copy: it would count as new where a file is edited within a second.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.has_location:
            return None, ()
        where += f" ({spec.origin})"
        return spec, getattr(importlib.import_module(name), "FAMILIES", ())
    except (Exception, SystemExit) as error:
        package = name.partition(".")[0]
        if spec is None and isinstance(error, ModuleNotFoundError) and error.name == package:
            return None, ()
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if spec and frame.filename == spec.origin]
        line = f", line {lines[-1]}" if lines else ""
        said = " ".join(str(error).split())
        raise ArchitectureError(
            f"{where} can't be imported: {type(error).__name__}: {said}{line}."
        ) from error
    finally:
        sys.dont_write_bytecode = before


def _closure(file: Path, name: str, folder: Path) -> dict[Path, bytes]:
    """The file of a module, those of its packages, and the files of the folder that they import,
    and so on, by their place in it."""
    parts = name.split(".")
    packages = [folder.joinpath(*parts[:count]) for count in range(1, len(parts))]
    waiting = [file, *(package / "__init__.py" for package in packages)]
    contents: dict[Path, bytes] = {}
    while waiting:
        path = waiting.pop()
        if path not in contents and path.is_file():
            contents[path] = path.read_bytes()
            waiting += _imports(ast.parse(contents[path]), path, folder)
    return {path.relative_to(folder): content for path, content in sorted(contents.items())}


def _digest(contents: dict[Path, bytes]) -> str:
    """Twelve hex digits."""
    total = hashlib.sha256()
    for path, content in contents.items():
        total.update(f"{path}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:12]


def _imports(tree: ast.Module, file: Path, folder: Path) -> Iterator[Path]:
    """The files in a folder that may be what a file imports, those that are not there included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(folder, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if node.level else folder
            module = node.module or ""
            names = [(base, f"{module}.{alias.name}".strip(".")) for alias in node.names]
        else:
            continue
        for base, name in names:
            parts = name.split(".")
            for count in range(1, len(parts) + 1):
                path = base.joinpath(*parts[:count])
                yield from (path.with_suffix(".py"), path / "__init__.py")
