"""The order of the rooms: each imports only rooms below it, and docs/architecture.md shows the same order."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the lowest room upwards. A room may import every room before it, and none after it.
ORDER = [
    "launch",
    "naming",
    "arguments",
    "algorithm",
    "mpi",
    "data",
    "history",
    "models",
    "center",
    "spec",
    "callbacks",
    "checkpoint",
    "coordination",
    "rank",
    "driver",
    "ml",
    "predictors",
    "transformers",
    "evaluators",
    "trainers",
    "simulation",
    "mlflow",
]


def room(module: str) -> str | None:
    """The room of a module's dotted name; None for the package itself and for other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "hvdkeras" and len(parts) > 1 else None


def modules() -> dict[str, Path]:
    """All modules of the package by dotted name."""
    found = {}
    for folder, prefix in ((ROOT / "hvdkeras", "hvdkeras"), (ROOT / "launch", "hvdkeras.launch")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((prefix, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """Modules of the package that a module imports, at its top or in a function, for types or in earnest."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hvdkeras":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found - {name, "hvdkeras"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_downwards(name):
    own = room(name)
    if own is None:
        return  # the package's own __init__ is above all rooms
    upwards = {
        other
        for other in imports(name, modules()[name])
        if room(other) != own and ORDER.index(room(other)) > ORDER.index(own)
    }
    assert not upwards, f"{name} imports rooms above its own"


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imports(name, path) for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_every_room_says_in_one_sentence_what_it_is_for():
    for path in [*(ROOT / "hvdkeras").rglob("__init__.py"), ROOT / "launch" / "__init__.py"]:
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        assert first.endswith((".", ":")), f"{path} begins with: {first!r}"


def test_the_map_shows_this_order():
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = re.findall(r"^\| \d+ \| `([\w/.]+)`", text, re.MULTILINE)
    assert [name.removesuffix("/").removesuffix(".py") for name in reversed(table)] == ORDER


def test_every_file_that_the_map_names_exists():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", text))
    assert len(named) > 40
    places = (ROOT / "hvdkeras", ROOT)
    assert not {name for name in named if not any((place / name).exists() for place in places)}
