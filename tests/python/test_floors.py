"""The floors of docs/architecture.md: who may include or import whom, and how long a file may be.

Each rule is a function from a source tree to sentences, one per fault, so that it can be tested on
a planted tree as well as on ours. No rule needs the built library.
"""

import ast
import fnmatch
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Look down only: a file includes its own folder and folders with a smaller number.
FLOORS = {
    "base": 0,
    "transport": 1,
    "kernels": 1,
    "topology": 2,
    "quantization": 2,
    "collectives": 3,
    "membership": 4,
    "recovery": 4,
    "communicator": 5,  # every file directly in csrc/
    "bindings": 6,
}
# Schedules are data for collectives; how they are planned is not its business.
COLLECTIVES_MAY_INCLUDE = {"topology/schedule.h"}
PYTHON_HEADERS = ("Python.h", "pybind11/", "nanobind/")
CUDA_HEADERS = ("cuda", "nccl", "cub/", "thrust/", "cooperative_groups")
TORCH_HEADERS = ("torch/", "ATen/", "c10/")
HEADER_LINES_MAX = 250
SOURCE_LINES_MAX = 450

PYTHON_PACKAGES = ("pccl", "diloco", "asyncrl")
# The bench is loaded by its command only; test_public_names.py shows that nothing else loads it.
TORCH_ANYWHERE = ("pccl/process_group/*.py", "pccl/bench/*.py")
# Parts that stand alone: a relay, a validator or a worker's keys need no torch.
TORCH_NEVER = ("asyncrl/broadcast/*.py", "asyncrl/protocol/*.py", "asyncrl/proof/*.py")
TORCH_LAZILY = ("pccl/__init__.py", "pccl/_autoload.py", "pccl/cli.py")
# package -> packages of ours that it may import, beside itself.
PACKAGES_MAY_IMPORT = {"pccl": set[str](), "diloco": {"pccl"}, "asyncrl": {"diloco", "pccl"}}
ENVIRONMENT_FILES = ("pccl/config.py",)


# --- C++ ---

TEXT_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
CONDITION = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif|else)\b", re.MULTILINE)


def without_comments(text: str) -> str:
    def blank(match: re.Match[str]) -> str:
        found = match.group()
        return found if found.startswith('"') else "\n" * found.count("\n")

    return TEXT_OR_COMMENT.sub(blank, text)


def cpp_files(root: Path) -> Iterator[tuple[Path, str]]:
    """Every C++ and CUDA file under csrc/ with the name of its floor."""
    csrc = root / "csrc"
    for path in sorted(csrc.rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
            parts = path.relative_to(csrc).parts
            yield path, parts[0] if len(parts) > 1 else "communicator"


def includes(path: Path) -> list[tuple[str, str]]:
    """(bracket, name) of each include: ('<', 'vector') or ('"', 'base/types.h')."""
    return INCLUDE.findall(without_comments(path.read_text(encoding="utf-8")))


def find_wrong_includes(root: Path) -> list[str]:
    faults = []
    for path, floor in cpp_files(root):
        name = path.relative_to(root).as_posix()
        if floor not in FLOORS:
            faults.append(f"{name}: no floor is called {floor}")
            continue
        for bracket, included in includes(path):
            is_ours = (root / "csrc" / included).is_file()
            if not is_ours:
                if bracket == '"':
                    faults.append(f"{name}: csrc/{included} does not exist (paths start at csrc/)")
                continue
            target = included.split("/")[0] if "/" in included else "communicator"
            if target == floor:
                continue
            if FLOORS.get(target, -1) >= FLOORS[floor]:
                faults.append(f"{name}: includes {included}, which is not below {floor}")
            if (
                floor == "collectives"
                and target == "topology"
                and included not in COLLECTIVES_MAY_INCLUDE
            ):
                faults.append(
                    f"{name}: includes {included}; collectives runs schedules and plans none"
                )
    return faults


def find_foreign_headers(root: Path) -> list[str]:
    """Python only in bindings, CUDA only in kernels, torch nowhere."""
    faults = []
    for path, floor in cpp_files(root):
        name = path.relative_to(root).as_posix()
        if path.suffix in (".cu", ".cuh") and floor != "kernels":
            faults.append(f"{name}: CUDA outside kernels")
        for _, included in includes(path):
            if (root / "csrc" / included).is_file():
                continue
            if included.startswith(PYTHON_HEADERS) and floor != "bindings":
                faults.append(f"{name}: includes {included} outside bindings")
            if included.startswith(CUDA_HEADERS) and floor != "kernels":
                faults.append(f"{name}: includes {included} outside kernels")
            if included.startswith(TORCH_HEADERS):
                faults.append(f"{name}: includes {included}; the core knows no torch")
    return faults


def find_conditional_code(root: Path) -> list[str]:
    """`#if` only in kernels and base: elsewhere an absent feature is a twin file."""
    faults = []
    for path, floor in cpp_files(root):
        if floor in ("kernels", "base"):
            continue
        text = without_comments(path.read_text(encoding="utf-8"))
        for match in CONDITION.finditer(text):
            line = text.count("\n", 0, match.start(1)) + 1
            faults.append(f"{path.relative_to(root).as_posix()}:{line}: #{match.group(1)}")
    return faults


# --- Python ---


def python_files(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for package in PYTHON_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """(top package, line, whether it runs only when a function does) of each absolute import."""

    def walk(node: ast.AST, lazily: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            inside = lazily or isinstance(
                child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
            )
            inside = inside or (isinstance(child, ast.stmt) and is_type_checking(child))
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name.split(".")[0], child.lineno, inside
            elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
                yield child.module.split(".")[0], child.lineno, inside
            elif isinstance(child, ast.Call) and ast.unparse(child.func).split(".")[-1] in (
                "import_module",
                "__import__",
            ):
                argument = child.args[0] if child.args else None
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value.split(".")[0], child.lineno, inside
            yield from walk(child, inside)

    yield from walk(tree, False)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def find_torch_imports(root: Path) -> list[str]:
    """torch only in the backend and the bench; elsewhere in pccl/ lazily or not at all; never in
    the parts of asyncrl that stand alone."""
    faults = []
    for name, tree in python_files(root):
        is_pccl = name.startswith("pccl/") and not matches(name, TORCH_ANYWHERE)
        if not is_pccl and not matches(name, TORCH_NEVER):
            continue
        for package, line, lazily in imports(tree):
            if package == "torch" and not (lazily and matches(name, TORCH_LAZILY)):
                faults.append(f"{name}:{line}: imports torch")
    return faults


def find_wrong_imports(root: Path) -> list[str]:
    faults = []
    for name, tree in python_files(root):
        own = name.split("/")[0]
        for package, line, _ in imports(tree):
            if (
                package in PACKAGES_MAY_IMPORT
                and package != own
                and package not in PACKAGES_MAY_IMPORT[own]
            ):
                faults.append(f"{name}:{line}: {own} imports {package}")
    return faults


def find_environment_reads(root: Path) -> list[str]:
    faults = []
    words = ("environ", "environb", "getenv", "putenv", "unsetenv")
    for name, tree in python_files(root):
        if matches(name, ENVIRONMENT_FILES):
            continue
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in words
                and ast.unparse(node.value) == "os"
            ):
                faults.append(f"{name}:{node.lineno}: os.{node.attr}")
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                faults += [
                    f"{name}:{node.lineno}: os.{alias.name}"
                    for alias in node.names
                    if alias.name in words
                ]
    return faults


# --- both ---


def find_long_files(root: Path) -> list[str]:
    faults = []
    paths = [path for path, _ in cpp_files(root)]
    for folder in (*PYTHON_PACKAGES, "benchmarks", "examples", "tests"):
        paths += [
            path
            for path in sorted((root / folder).rglob("*"))
            if path.suffix in (".py", ".cpp", ".h")
        ]
    for path in paths:
        count = len(path.read_text(encoding="utf-8").splitlines())
        limit = HEADER_LINES_MAX if path.suffix in (".h", ".cuh") else SOURCE_LINES_MAX
        if count > limit:
            faults.append(f"{path.relative_to(root).as_posix()}: {count} lines, at most {limit}")
    return faults


# --- our tree ---


RULES: list[Callable[[Path], list[str]]] = [
    find_wrong_includes,
    find_foreign_headers,
    find_conditional_code,
    find_torch_imports,
    find_wrong_imports,
    find_environment_reads,
    find_long_files,
]


@pytest.mark.parametrize("rule", RULES)
def test_our_tree_has_no_fault(rule: Callable[[Path], list[str]]) -> None:
    assert list(cpp_files(ROOT)), "csrc/ is empty: the rules would prove nothing"
    assert rule(ROOT) == []


# --- planted trees: each rule bites ---


def plant(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "included"),
    [
        ("csrc/base/a.h", "transport/b.h"),  # up
        ("csrc/transport/a.cpp", "kernels/b.h"),  # sideways
        ("csrc/collectives/a.cpp", "membership/b.h"),
        ("csrc/collectives/a.cpp", "topology/planners.h"),  # down, and still not allowed
        ("csrc/recovery/a.cpp", "membership/b.h"),
        ("csrc/membership/a.cpp", "communicator.h"),
        ("csrc/communicator.cpp", "bindings/b.h"),
    ],
)
@pytest.mark.parametrize("brackets", ['""', "<>"])
def test_an_include_that_does_not_look_down_is_found(
    tmp_path: Path, name: str, included: str, brackets: str
) -> None:
    plant(tmp_path, f"csrc/{included}", "#pragma once\n")
    plant(tmp_path, name, f"#pragma once\n  #  include {brackets[0]}{included}{brackets[1]}\n")
    (fault,) = find_wrong_includes(tmp_path)
    assert name in fault
    assert included in fault


def test_includes_that_look_down_are_fine(tmp_path: Path) -> None:
    for header in (
        "base/a.h",
        "topology/schedule.h",
        "collectives/a.h",
        "bindings/a.h",
        "communicator.h",
    ):
        plant(tmp_path, f"csrc/{header}", "#pragma once\n#include <vector>\n")
    for name, text in (
        ("collectives/b.cpp", '#include "collectives/a.h"\n#include "topology/schedule.h"\n'),
        ("communicator.cpp", '#include "communicator.h"\n#include "collectives/a.h"\n'),
        ("bindings/b.cpp", '#include "communicator.h"\n#include "bindings/a.h"\n'),
        ("base/b.cpp", '// #include "bindings/a.h"\n/*\n#include "communicator.h"\n*/\n'),
    ):
        plant(tmp_path, f"csrc/{name}", text)
    assert find_wrong_includes(tmp_path) == []


def test_an_include_that_does_not_start_at_csrc_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "csrc/base/a.h", "#pragma once\n")
    plant(tmp_path, "csrc/base/a.cpp", '#include "a.h"\n')
    assert find_wrong_includes(tmp_path) == [
        "csrc/base/a.cpp: csrc/a.h does not exist (paths start at csrc/)"
    ]


def test_a_folder_without_a_floor_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "csrc/helpers/a.h", "#pragma once\n")
    assert find_wrong_includes(tmp_path) == ["csrc/helpers/a.h: no floor is called helpers"]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("csrc/communicator.cpp", "Python.h"),
        ("csrc/kernels/a.cpp", "pybind11/pybind11.h"),
        ("csrc/transport/a.cpp", "cuda_runtime.h"),
        ("csrc/bindings/a.cpp", "nccl.h"),
        ("csrc/bindings/a.cpp", "torch/extension.h"),
        ("csrc/kernels/a.cu", "c10/cuda/CUDAStream.h"),
    ],
)
def test_a_header_of_another_world_is_found(tmp_path: Path, name: str, header: str) -> None:
    plant(tmp_path, name, f"#include <{header}>\n")
    assert len(find_foreign_headers(tmp_path)) == 1


def test_cuda_source_outside_kernels_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "csrc/collectives/a.cu", "")
    plant(tmp_path, "csrc/kernels/a.cu", "#include <cuda_runtime.h>\n")
    plant(tmp_path, "csrc/bindings/a.cpp", "#include <pybind11/pybind11.h>\n")
    assert find_foreign_headers(tmp_path) == ["csrc/collectives/a.cu: CUDA outside kernels"]


@pytest.mark.parametrize(
    "line", ["#if 0", "#ifdef __linux__", "# ifndef A_H", "#elif A", "  #else"]
)
def test_conditional_code_is_found(tmp_path: Path, line: str) -> None:
    plant(tmp_path, "csrc/transport/a.h", f"#pragma once\n/* a\n comment */\n{line}\n")
    plant(tmp_path, "csrc/kernels/a.h", f"#pragma once\n{line}\n")
    (fault,) = find_conditional_code(tmp_path)
    assert fault.startswith("csrc/transport/a.h:4: #")


def test_conditional_code_in_a_comment_is_fine(tmp_path: Path) -> None:
    plant(
        tmp_path,
        "csrc/transport/a.h",
        '#pragma once\n// #if 0\n/*\n#if 0\n*/\nauto glob = "/*";\nint a;\n',
    )
    assert find_conditional_code(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pccl/communicator.py", "import torch\n"),
        (
            "pccl/communicator.py",
            "def f():\n    import torch.distributed as dist\n",
        ),  # lazily, in the wrong file
        ("pccl/__init__.py", "from torch import Tensor\n"),  # the right file, not lazily
        ("pccl/cli.py", "try:\n    import torch\nexcept ImportError:\n    pass\n"),
        ("pccl/config.py", "import importlib\nimportlib.import_module('torch.distributed')\n"),
        ("pccl/_process_group.py", "import torch\n"),
        ("asyncrl/broadcast/relay.py", "def f():\n    import torch\n"),
        ("asyncrl/protocol/deep/keys.py", "from torch import Tensor\n"),
        ("asyncrl/proof/a.py", "import torch\n"),
    ],
)
def test_a_torch_import_is_found(tmp_path: Path, name: str, text: str) -> None:
    plant(tmp_path, name, text)
    (fault,) = find_torch_imports(tmp_path)
    assert fault.startswith(f"{name}:")


def test_torch_where_it_belongs_is_fine(tmp_path: Path) -> None:
    plant(tmp_path, "pccl/process_group/work.py", "import torch\n")
    plant(
        tmp_path,
        "pccl/__init__.py",
        "def f():\n    from pccl import process_group\n    import torch\n",
    )
    plant(tmp_path, "pccl/cli.py", "if TYPE_CHECKING:\n    import torch\n")
    plant(tmp_path, "pccl/bench/measure.py", "import torch\n")
    plant(tmp_path, "pccl/config.py", "import torchless\nfrom .torch import a\n")
    plant(tmp_path, "diloco/__init__.py", "import torch\n")
    plant(tmp_path, "asyncrl/trainer.py", "import torch\n")
    assert find_torch_imports(tmp_path) == []


def test_an_import_of_a_package_above_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "pccl/a.py", "import diloco\n")
    plant(
        tmp_path, "diloco/a.py", "import pccl\ndef f():\n    from asyncrl.trainer import Trainer\n"
    )
    plant(tmp_path, "asyncrl/a.py", "import asyncrl.b\nimport diloco\nimport pccl\n")
    assert find_wrong_imports(tmp_path) == [
        "pccl/a.py:1: pccl imports diloco",
        "diloco/a.py:3: diloco imports asyncrl",
    ]


@pytest.mark.parametrize(
    "text",
    ["import os\nos.environ['A']\n", "import os\nos.getenv('A')\n", "from os import environ\n"],
)
def test_a_read_of_the_environment_is_found(tmp_path: Path, text: str) -> None:
    plant(tmp_path, "pccl/a.py", text)
    plant(tmp_path, "pccl/config.py", text)
    (fault,) = find_environment_reads(tmp_path)
    assert fault.startswith("pccl/a.py:")


def test_a_long_file_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "csrc/base/a.h", "//\n" * 251)
    plant(tmp_path, "csrc/base/b.h", "//\n" * 250)
    plant(tmp_path, "csrc/base/a.cpp", "//\n" * 451)
    plant(tmp_path, "pccl/a.py", "#\n" * 450)
    plant(tmp_path, "tests/python/test_a.py", "#\n" * 451)
    assert find_long_files(tmp_path) == [
        "csrc/base/a.cpp: 451 lines, at most 450",
        "csrc/base/a.h: 251 lines, at most 250",
        "tests/python/test_a.py: 451 lines, at most 450",
    ]
