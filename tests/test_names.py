"""Every name of ours that tests, benchmarks and notebooks use is there, even if rarely run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for folder in ("tests", "benchmarks", "notebooks", "experiments")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in path.parts
)


def _code(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = json.loads(text)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(line for cell in code for line in cell.splitlines() if line[:1] not in "%!")


def _used(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Modules of ours and the name that is taken from each."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "dprp_tf":
                    yield alias.name, ""
                    known[alias.asname or "dprp_tf"] = alias.name if alias.asname else "dprp_tf"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dprp_tf":
            for alias in node.names:
                yield str(node.module), alias.name
                if (node.module, alias.name) == ("dprp_tf", "deploy"):
                    known[alias.asname or alias.name] = "dprp_tf.deploy"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in known
        ):
            yield known[node.value.id], node.attr


def _is_there(module: str, name: str) -> bool:
    if not name or hasattr(importlib.import_module(module), name):
        return True
    return importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_ours_are_there(path: Path) -> None:
    used = set(_used(ast.parse(_code(path))))
    assert not sorted(f"{module}.{name}" for module, name in used if not _is_there(module, name))
