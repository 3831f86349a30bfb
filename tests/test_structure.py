"""The house rules that a machine can hold: floors, documentation, forbidden constructs."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "dprp_tf": ROOT / "dprp_tf",
    "dprp_tf.deploy": ROOT / "deploy",
    "dprp_tf.experiments": ROOT / "experiments",
}
# A room imports rooms of lower floors alone; two rooms on one floor do not know each other.
FLOORS = {
    "files": 0,
    "decomposition": 1,
    "zoo": 1,
    "data": 1,
    "keras_internals": 1,
    "layers": 2,
    "channels": 3,
    "costs": 3,
    "training": 4,
    "conversion": 5,
    "selection": 6,
    "deploy": 6,
    "report": 7,
    "runs": 8,
    "compression": 9,
    "experiments": 10,
    "cli": 11,
}
# Likewise within a room that has rooms of its own; its other modules stand where they need to.
INNER_FLOORS = {
    "dprp_tf.deploy": {
        "running": 0,
        "targets": 0,
        "exporters": 1,
        "measurement": 1,
        "packaging": 1,
        "quantization": 2,
        "planning": 2,
    },
    "dprp_tf.selection": {"scoring": 0, "solving": 0, "methods": 1},
}


# Tests of what takes all rooms: random networks, and the networks that people bring.
ACROSS_ROOMS = ("properties", "clients")


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


def _room(module: str, house: str = "dprp_tf") -> str:
    """The first name below the package, or below a room that has rooms of its own."""
    return module.removeprefix(house).split(".")[1] if module.startswith(f"{house}.") else ""


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


def test_every_room_has_a_floor_and_every_module_a_room() -> None:
    assert {_room(name) for name in MODULES} - {""} == set(FLOORS)


def test_the_guide_for_contributors_has_the_same_floors() -> None:
    rows = re.findall(
        r"^\| (\d+) \| (.+?) \|",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    told = {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)/`", names)}
    assert told == FLOORS


@pytest.mark.parametrize("module", [name for name in MODULES if _room(name)])
def test_imports_point_strictly_down(module: str) -> None:
    room = _room(module)
    for imported in _imports(module):
        target = _room(imported)
        if room == "experiments" and not target:
            continue  # an experiment is written as a user would, `import dprp_tf as dprp`
        assert target, f"{module} imports the whole package; import the module it needs"
        if target != room:
            assert FLOORS[target] < FLOORS[room], f"{module} imports {imported}, not a floor below"


@pytest.mark.parametrize("house", list(INNER_FLOORS))
def test_imports_point_strictly_down_within_a_room(house: str) -> None:
    floors = INNER_FLOORS[house]
    for module in MODULES:
        room = _room(module, house)
        for imported in _imports(module):
            target = _room(imported, house)
            if room in floors and target in floors and target != room:
                assert floors[target] < floors[room], f"{module} imports {imported}"


def test_modules_do_not_import_each_other_in_circles() -> None:
    # The package's own face makes its names on first use: no module waits for it.
    graph = {
        name: {n for n in _imports(name) if n not in (name, "dprp_tf")}
        for name in MODULES
        if name != "dprp_tf"
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


def test_what_is_installed_is_what_is_there() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    installed = set(settings["tool"]["setuptools"]["packages"])
    assert installed == {n for n, path in MODULES.items() if path.name == "__init__.py"}


def test_tests_mirror_the_rooms() -> None:
    homes = {ROOT / "tests" / room for room in (*FLOORS, *ACROSS_ROOMS)}
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent
        if folder == ROOT / "tests":
            continue  # what is about the whole repository
        home = next((place for place in homes if folder == place or place in folder.parents), None)
        assert home is not None, f"{path} mirrors no room"
        inner = folder.relative_to(ROOT / "tests")
        if inner.parts[0] in ACROSS_ROOMS:
            continue
        of = PACKAGES.get(f"dprp_tf.{inner.parts[0]}")
        mirrored = of.joinpath(*inner.parts[1:]) if of else ROOT / "dprp_tf" / inner
        assert mirrored.is_dir(), f"{path} mirrors {mirrored}, which is not there"


# What Keras does not promise, by name: those of its attributes, and of texts that name them.
KERAS_PRIVATE = {
    "_auto_config",
    "_batch_shape",
    "_build_shapes_dict",
    "_call_has_training_arg",
    "_distribute_strategy",
    "_exclude_from_weight_decay",
    "_flatten_layers",
    "_functional",
    "_inbound_nodes",
    "_initialize",
    "_inner_optimizers",
    "_input_spec",
    "_inputs_struct",
    "_keras_history",
    "_keras_mask",
    "_loss_ids",
    "_losses",
    "_metrics",
    "_nodes_by_depth",
    "_non_trainable_variables",
    "_outputs_struct",
    "_seed_generators",
    "_shape",
    "_trainable",
    "_trainable_variables",
    "_trainable_variables_indices",
    "_var_key",
    "jax_state_sync",
}
# Keras 2, whose last version is out, and tensorflow-model-optimization have internals of their own.
KERAS_2 = "dprp_tf.deploy.quantization.training"


@pytest.mark.parametrize("module", list(MODULES))
def test_only_one_room_knows_what_keras_does_not_promise(module: str) -> None:
    if _room(module) == "keras_internals" or module == KERAS_2:
        return
    for node in ast.walk(TREES[module]):
        own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if isinstance(node, ast.Attribute) and not (own and node.value.id == "self"):
            assert node.attr not in KERAS_PRIVATE, f"{module}:{node.lineno}: {node.attr}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value not in KERAS_PRIVATE, f"{module}:{node.lineno}: {node.value}"
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("keras.src"), f"{module}:{node.lineno}"


def test_the_file_copied_to_a_device_imports_nothing_of_ours_and_no_framework() -> None:
    module = "dprp_tf.deploy.targets.edge_runner"
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
            if node.decorator_list and _room(module) in ("cli", "experiments"):
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


def test_make_and_the_owners_name_what_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    assert phony == set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    owners = (ROOT / ".github" / "CODEOWNERS").read_text(encoding="utf-8")
    owned = re.findall(r"^/(\S+)/ +@", owners, re.MULTILINE)
    assert {path.rsplit("/", 1)[-1] for path in owned} == set(FLOORS)
    assert all((ROOT / path).is_dir() for path in owned)


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
