"""The house rules that a machine can hold: floors, documentation, forbidden constructs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "dprp_tf": ROOT / "dprp_tf",
    "dprp_tf.deploy": ROOT / "deploy",
    "dprp_tf.experiments": ROOT / "experiments",
}
FLOORS = {
    "factorization": 0,
    "costs": 0,
    "graphs": 0,
    "atomic": 0,
    "tables": 0,
    "rendezvous": 0,
    "replicas": 0,
    "regularizers": 1,
    "retraction": 1,
    "layers": 2,
    "surgery": 3,
    "folding": 3,
    "latency": 1,
    "random_streams": 3,
    "added_loss": 4,
    "comparisons": 4,
    "rank_regularization": 4,
    "run_lock": 0,
    "stored_settings": 0,
    "resizing": 4,
    "failure_record": 4,
    "divergence": 4,
    "selection": 4,
    "calibration": 4,
    "compressing": 4,
    "cutting": 4,
    "fine_tuning": 4,
    "trained_kernels": 4,
    "training": 4,
    "factorizing": 4,
    "callbacks": 4,
    "models": 4,
    "summaries": 4,
    "deploy": 5,
    "evaluation": 6,
    "device_fit": 6,
    "progress": 6,
    "distributing": 6,
    "rank_runs": 6,
    "runs": 6,
    "report": 6,
    "experiments": 6,
    "demo": 6,
    "cli": 7,
    "__main__": 8,
}
# What stands beside the floors may import these of ours and nothing else.
BESIDE = {
    "zoo": {"zoo", "data", "augmentation", "atomic"},
    "data": {"zoo", "data", "augmentation", "atomic"},
    "augmentation": {"zoo", "data", "augmentation", "atomic"},
    "resizing": {"layers", "factorization"},
}


def _modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = list(path.relative_to(folder).with_suffix("").parts)
            if "results" in parts or "__pycache__" in parts:
                continue
            if parts[-1] == "__init__":
                parts.pop()
            found[".".join([package, *parts])] = path
    return found


MODULES = _modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def _part(module: str) -> str:
    """The first name below the package: the thing that has a floor."""
    return module.split(".")[1] if "." in module else ""


def _imports(module: str) -> Iterator[str]:
    """Every module of ours that this one imports, at the top or inside functions."""
    is_package = MODULES[module].name == "__init__.py"
    for node in ast.walk(TREES[module]):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                cut = node.level - (1 if is_package else 0)
                parents = parents[: len(parents) - cut]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            names = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base
                for alias in node.names
            ]
        yield from (name for name in names if name.split(".")[0] == "dprp_tf")


def test_every_part_has_a_floor() -> None:
    parts = {_part(name) for name in MODULES} - {""}
    assert parts - set(FLOORS) - set(BESIDE) == set()


def test_the_guide_for_contributors_has_the_same_floors() -> None:
    rows = re.findall(
        r"^\| (\d) \| (.+?) \|",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    told = {
        name: int(floor)
        for floor, names in rows
        for name in re.findall(r"`(\w+)(?:\.py|/)`", names)
    }
    assert told == {part: floor for part, floor in FLOORS.items() if part != "__main__"}


@pytest.mark.parametrize("module", [name for name in MODULES if _part(name)])
def test_imports_point_down(module: str) -> None:
    part = _part(module)
    for imported in _imports(module):
        target = _part(imported)
        if target == part or (part == "experiments" and not target):
            continue  # an experiment is written as a user would, `import dprp_tf as dprp`
        assert target, f"{module} imports the whole package; import the module it needs"
        if part in BESIDE:
            assert target in BESIDE[part], f"{module} imports {imported}"
        elif target in FLOORS:
            assert FLOORS[target] <= FLOORS[part], f"{module} imports {imported}, a floor above"
        else:
            assert FLOORS[part] >= 6, f"{module} imports {imported}, which stands beside"


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph = {
        name: {n for n in _imports(name) if n != name and _part(n) != _part(name)}
        for name in MODULES
        if _part(name)
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' -> '.join((*path, name))}"
        if name in done:
            return
        for target in graph.get(name, ()):
            visit(target, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_the_file_copied_to_a_device_imports_nothing_of_ours_and_no_framework() -> None:
    module = "dprp_tf.deploy.edge_runner"
    assert list(_imports(module)) == []
    top = [
        alias.name if isinstance(node, ast.Import) else node.module or ""
        for node in TREES[module].body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    ]
    heavy = {"tensorflow", "keras", "onnx", "onnxruntime", "ai_edge_litert", "matplotlib"}
    assert not {name.split(".")[0] for name in top} & heavy


@pytest.mark.parametrize("module", list(MODULES))
def test_a_module_says_what_it_is_and_what_is_public(module: str) -> None:
    tree = TREES[module]
    assert ast.get_docstring(tree), f"{module} has no docstring"
    public = _public(tree)
    assert public is not None, f"{module} has no __all__"
    assert public == sorted(public, key=_ruff_order), f"{module}: __all__ is not sorted"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if node.decorator_list and _part(module) in ("cli", "experiments"):
                continue  # a command registered by its decorator
            assert node.name in public, f"{module}.{node.name} is neither private nor in __all__"


@pytest.mark.parametrize("module", list(MODULES))
def test_public_things_are_documented(module: str) -> None:
    tree = TREES[module]
    public = set(_public(tree) or ())
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in public:
            assigned = any(
                isinstance(item, ast.Assign)
                and any(isinstance(t, ast.Name) and t.id == "__doc__" for t in item.targets)
                for item in node.body
            )
            assert ast.get_docstring(node) or assigned, f"{module}.{node.name} has no docstring"


def test_what_is_public_exists() -> None:
    for module, tree in TREES.items():
        bound = {
            name
            for node in ast.walk(tree)
            for name in (
                [node.name]
                if isinstance(node, (ast.FunctionDef, ast.ClassDef))
                else [alias.asname or alias.name for alias in node.names]
                if isinstance(node, (ast.Import, ast.ImportFrom))
                else [node.id]
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                else []
            )
        }
        # A package may make names on first use.
        if "__getattr__" not in bound:
            assert set(_public(tree) or ()) <= bound, module


def test_no_unsafe_loading_and_no_shell() -> None:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {a.name.split(".")[0] for a in node.names} & {"pickle", "marshal"}
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in ("pickle", "marshal"), module
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
                if node.arg in ("shell", "allow_pickle"):
                    assert node.value.value is False, f"{module}: {node.arg}"
                if node.arg == "safe_mode":
                    assert node.value.value is True, f"{module}: safe_mode"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), module


def test_no_drawer_for_everything() -> None:
    assert [m for m in MODULES if m.rsplit(".", 1)[-1] in ("utils", "helpers", "misc")] == []


def test_nothing_points_outside_the_repository() -> None:
    # Spelled in pieces so that this file may be searched too.
    forbidden = re.compile(r"\.\./" + "shared" + r"|(?<![\w./-])/" + r"work(?![\w-])")
    texts = [
        path
        for folder in ("dprp_tf", "deploy", "experiments", "tests", "benchmarks", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    texts += [path for path in ROOT.glob("*") if path.is_file()]
    for path in texts:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        match = forbidden.search(text)
        assert match is None, f"{path.relative_to(ROOT)} mentions {match and match.group()}"


def _public(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return list(ast.literal_eval(value))
    return None


def _ruff_order(name: str) -> tuple[int, list[str | int]]:
    """Constants, then classes, then the rest, numbers by value, as the linter sorts them."""
    parts: list[str | int] = list(re.split(r"(\d+)", name))
    parts[1::2] = map(int, parts[1::2])
    if name.isupper():
        return 0, parts
    return (1, parts) if name[:1].isupper() else (2, parts)
