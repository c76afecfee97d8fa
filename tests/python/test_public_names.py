"""`pccl.__all__` is sorted and says what is there, neither more nor less."""

import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest


def bound_names(tree: ast.Module) -> set[str]:
    """Public names that a module binds: own definitions, and what it takes from its own package."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom) and (
            node.level > 0 or (node.module or "").split(".")[0] in ("pccl", "diloco")
        ):
            names |= {alias.asname or alias.name for alias in node.names}
    return {name for name in names if not name.startswith("_")}


def find_faults(module: types.ModuleType) -> list[str]:
    """Sentences about `__all__` of an imported package; empty if it is right."""
    names = list(module.__all__)
    faults = []
    if names != sorted(names):
        faults.append("__all__ is not sorted")
    if len(names) != len(set(names)):
        faults.append("__all__ names something twice")
    # getattr, not vars: a name may be loaded when it is first used.
    faults += [
        f"{name} is in __all__ and does not exist" for name in names if not hasattr(module, name)
    ]
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    bound = bound_names(ast.parse(source))
    faults += [f"{name} is public and not in __all__" for name in sorted(bound - set(names))]
    return faults


@pytest.mark.parametrize("package", ["pccl", "diloco"])
def test_all_is_sorted_and_equal_to_reality(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__, "a library without public names"
    assert find_faults(module) == []


@pytest.mark.parametrize("module", ["pccl", "pccl.communicator", "pccl.cli"])
def test_a_module_that_needs_no_torch_imports_without_it(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {module}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("__all__ = ['b', 'a']\na = b = 1\n", "__all__ is not sorted"),
        ("__all__ = ['a', 'a']\na = 1\n", "__all__ names something twice"),
        ("__all__ = ['a', 'gone']\na = 1\n", "gone is in __all__ and does not exist"),
        (
            "__all__ = ['a']\na = 1\ndef forgotten(): ...\n",
            "forgotten is public and not in __all__",
        ),
        ("__all__ = ['a']\na = 1\nforgotten: int = 2\n", "forgotten is public and not in __all__"),
    ],
)
def test_a_wrong_all_is_found(tmp_path: Path, text: str, fault: str) -> None:
    assert find_faults(load(tmp_path, text)) == [fault]


def test_a_right_all_is_fine(tmp_path: Path) -> None:
    text = """
import os
from typing import Any
__all__ = ['Thing', 'lazy']
_private = 1
class Thing: ...
def __getattr__(name: str) -> Any:
    if name == 'lazy': return 1
    raise AttributeError(name)
"""
    assert find_faults(load(tmp_path, text)) == []


def load(folder: Path, text: str) -> types.ModuleType:
    """A module made of `text`, without an entry in sys.modules."""
    path = folder / "planted.py"
    path.write_text(text, encoding="utf-8")
    module = types.ModuleType("planted")
    module.__file__ = str(path)
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module
