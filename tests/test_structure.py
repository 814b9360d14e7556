"""Imports go one way: between rooms along the list below, and within a room without a circle.

Every import statement counts, also one inside a function or under TYPE_CHECKING: a reader who follows
it has to understand the other file first, whenever it is executed.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mechforget"

# A room may import from itself and from the rooms before it. `shared` holds the files that stand
# beside the rooms and that every room may use, `face` the package's own __init__.py, the
# command with its options, and runs in Python.
ORDER = (
    "shared",
    "statistics",
    "tasks",
    "checkpoints",
    "models",
    "sweeps",
    "measures",
    "study",
    "planning",
    "training",
    "views",
    "face",
)
SHARED = ("errors", "progress", "shapes")
FACE = ("__init__", "cli", "options", "runs")


def rooms() -> set[str]:
    return {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    _, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    return name if name in rooms() else "shared" if name in SHARED else "face"


def imports(text: str, modules: set[str]) -> set[str]:
    """The modules of the package that an import statement anywhere in `text` names. A name that is
    taken from a package's __init__.py counts as that package, unless it is one of its files."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "an import with dots isn't read here: write its whole path"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                # The version is a constant that needs nothing: using it isn't an arrow.
                if inner != "mechforget.__version__":
                    found.add(inner if inner in modules else node.module)
    return found & modules


def graph() -> dict[str, set[str]]:
    """module -> the modules that it imports."""
    files = {module_of(file): file for file in PACKAGE.rglob("*.py")}
    return {name: imports(file.read_text(), set(files)) for name, file in files.items()}


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules each of which can be reached from each other one along the arrows."""
    reach = {name: set(out) for name, out in arrows.items()}
    for middle in arrows:  # Warshall's closure
        for name in arrows:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    groups = {frozenset(o for o in reach[n] if n in reach[o]) for n in arrows if n in reach[n]}
    return [set(group) for group in groups]


GRAPH = graph()


def test_every_room_stands_in_the_order():
    """Catches a new room, or a file beside the rooms, that nobody gave a place in the order."""
    assert {room_of(name) for name in GRAPH} == set(ORDER)
    assert {file.stem for file in PACKAGE.glob("*.py")} == {*SHARED, *FACE}


@pytest.mark.parametrize("room", ORDER)
def test_no_room_imports_from_a_later_one(room):
    """Catches an arrow between rooms that points back, wherever in the file its import stands."""
    earlier = ORDER[: ORDER.index(room) + 1]
    back = {
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        if room_of(name) == room
        for other in others
        if room_of(other) not in earlier
    }
    assert not back


@pytest.mark.parametrize("room", ORDER)
def test_no_files_of_a_room_import_one_another_in_a_circle(room):
    """Catches a circle, however its last arrow is hidden."""
    arrows = {
        name: {o for o in others if room_of(o) == room}
        for name, others in GRAPH.items()
        if room_of(name) == room
    }
    found = circles(arrows)
    assert not found


def test_an_import_is_seen_wherever_it_stands():
    """Catches a reader of imports that looks at the top of a file only, and a search for circles
    that finds none: the tests above would pass on anything."""
    text = """
import mechforget.a
from typing import TYPE_CHECKING
from mechforget import b, __version__
if TYPE_CHECKING:
    from mechforget.c import C
def f():
    from mechforget.d import g
    class Inner:
        def h(self):
            import mechforget.e as e
"""
    names = {f"mechforget.{letter}" for letter in "abcde"}
    assert imports(text, names | {"mechforget"}) == names
    ring = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set(), "f": {"f"}}
    assert sorted(circles(ring), key=len) == [{"f"}, {"a", "b", "c"}]
