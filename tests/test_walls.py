"""Which room and which wing may import which: an arrow that is not in the tables is a wall.

What is imported when it is first asked for counts too: names that a package lists in its `__init__.pyi`, and modules
that are named in a string.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = {
    "benchmarks": {"export", "engine", "kernels"},
    "export": {"engine", "kernels"},
    "engine": {"kernels"},
    "kernels": set(),
}

LOOP = (
    "aio", "core", "door", "engine", "estimates", "exposition", "keeping", "lifecycle", "loading", "loop", "results",
    "routing", "staging", "stats",
)  # fmt: skip
"""Modules of `engine/` itself that make up the loop and its faces; they count as one wing."""

WINGS = {
    "cli": {"serve", "study", "replay", "loop", "judging", "batching", "records", "models", "api"},
    "serve": {"study", "loop", "batching", "records", "api"},
    "study": {"loop", "judging", "batching", "avoidance", "models", "api"},
    "replay": {"loop", "records", "api"},
    "loop": {"stages", "judging", "batching", "backends", "records", "avoidance", "models", "sampling", "api"},
    "stages": {"judging", "batching", "backends", "avoidance", "models", "sampling", "api"},
    "judging": {"avoidance", "records", "models", "sampling", "api"},
    "batching": {"backends", "avoidance", "models", "sampling", "api"},
    "backends": {"models", "sampling", "api"},
    "records": {"models", "api"},
    "avoidance": {"models", "sampling", "api"},
    "models": {"sampling", "api"},
    "sampling": {"api"},
    "api": set(),
}


def sources(folder: Path) -> list[Path]:
    """Every module under `folder`, and every list of what a package imports when it is asked."""
    return [*folder.rglob("*.py"), *folder.rglob("*.pyi")]


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """Modules of this package that a file imports, each by its parts below the root."""
    package = path.relative_to(ROOT).parent.parts

    def below(level: int, module: str | None) -> tuple[str, ...]:
        return package[: len(package) - level + 1] + tuple(module.split(".") if module else ())

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = below(node.level, node.module)
            yield from [base] if node.module else [(*base, alias.name) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = written(node.args[0])
            module = name.lstrip(".")
            if name != module:
                yield below(len(name) - len(module), module)


def written(name: ast.expr) -> str:
    """What can be read of a module's name: all of a string, an f-string up to its first brace."""
    first = name.values[0] if isinstance(name, ast.JoinedStr) else name
    return str(first.value) if isinstance(first, ast.Constant) else ""


def wing_of(parts: tuple[str, ...]) -> str:
    """Wing that a module of `engine/` belongs to."""
    return "loop" if parts[1] in LOOP else parts[1]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_look_down_alone(room):
    for path in sources(ROOT / room):
        seen = {parts[0] for parts in imported(path) if parts[0] in ROOMS}
        assert seen - {room} <= ROOMS[room], path


@pytest.mark.parametrize("wing", WINGS)
def test_wings_look_where_the_table_lets_them(wing):
    found = [path for path in sources(ROOT / "engine") if wing_of(path.relative_to(ROOT).with_suffix("").parts) == wing]
    assert found
    for path in found:
        seen = {wing_of(parts) for parts in imported(path) if parts[0] == "engine" and len(parts) > 1}
        assert seen - {wing} <= WINGS[wing], path


def test_what_is_imported_late_is_seen():
    late = {*imported(ROOT / "engine/cli/actions/__init__.pyi"), *imported(ROOT / "export/cli.py")}
    assert {("engine", "cli", "actions", "generating"), ("export", "commands")} <= late


def test_every_file_of_the_engine_has_its_wing():
    files = [path.relative_to(ROOT).with_suffix("").parts for path in sources(ROOT / "engine")]
    assert {wing_of(parts) for parts in files} - {"__init__"} == set(WINGS)


def test_the_tables_close_no_circle():
    for table in (ROOMS, WINGS):
        order = list(table)
        for place, (name, below) in enumerate(reversed(table.items())):
            assert below <= set(order[len(order) - place :]), name
