"""The plan of the rooms, and the imports that the source files have: for test_rooms.py, and for the picture of it.

Imports are read from the source, function bodies included.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = "nfnet_ray"

# room -> the rooms that it imports. What those may import is allowed too: a study may build a Recipe.
ARROWS = {
    "errors": set(),
    "command_line": set(),
    "correct_images": set(),
    "metric": set(),
    "places": set(),
    "printable": set(),
    "processor": set(),
    "whole_file": set(),
    "wording": set(),
    "version": set(),
    "settings": set(),
    "recipe": {"settings"},
    "splitmix64": set(),
    "clipping": set(),
    "cohorts": {"recipe"},
    "models": {"recipe", "splitmix64"},
    "optim": {"recipe", "splitmix64"},
    "data": {"recipe", "splitmix64"},
    "training": {"clipping", "cohorts", "models", "optim", "data"},
    "serving": {"models", "data"},
    "tracking": {"clipping", "recipe"},
    "study": {"cohorts", "models", "data", "tracking"},
    "cluster": {"training", "study"},
    "analysis": {"study"},  # whose rules it replays
    "dashboards": {"analysis", "models", "training"},  # the network that a trial has trained
    "data_prep": {"data", "cluster"},
    "studies": {
        "cluster",
        "dashboards",
        "data_prep",
        "serving",
    },  # the built-in data set is written on first use
    "benchmarks": {"studies"},
}
TOP_LEVEL_ROOMS = {"studies", "data_prep", "dashboards", "benchmarks"}
FOR_EVERYONE = {
    "command_line",
    "correct_images",
    "errors",
    "metric",
    "places",
    "printable",
    "processor",
    "version",
    "whole_file",
    "wording",
}
ONLY_IN = {"ray": "cluster", "mlflow": "tracking"}


def reachable(room: str) -> set[str]:
    """All rooms that `room` may import: those behind its arrows, and the ones for everyone."""
    rooms = set(FOR_EVERYONE)
    for target in ARROWS[room]:
        rooms |= {target} | reachable(target)
    return rooms


@functools.cache
def imported_modules(source: str, module: str, is_package: bool) -> tuple[tuple[int, str], ...]:
    """(line, absolute dotted name) of every import in `source`, wherever it stands.

    `from a import b` gives `a.b`, since b may be a module. Literal names handed to `import_module` count too.
    """
    return tuple(_imports(source, module.split(".") if is_package else module.split(".")[:-1]))


def _imports(source: str, package: list[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def room_of(dotted_name: str) -> str | None:
    """The room of a module of ours, "" for the library's façade, None for other people's modules."""
    top, *rest = dotted_name.split(".")
    if top in TOP_LEVEL_ROOMS:
        return top
    if top == LIBRARY:
        return rest[0] if rest and not rest[0].startswith("__") else ""
    return None


def modules() -> list[Path]:
    return sorted(
        path.relative_to(REPOSITORY)
        for top in [LIBRARY, *sorted(TOP_LEVEL_ROOMS)]
        for path in (REPOSITORY / top).rglob("*.py")
    )


def dotted_name(path: Path) -> str:
    return ".".join(path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts)


def imports_of_modules(sources: Mapping[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Module -> the modules among `sources` that it imports. Of each: its source, and whether it is a package."""
    found: dict[str, set[str]] = {}
    for module, (source, is_package) in sources.items():
        names = {name for _, name in imported_modules(source, module, is_package)}
        # `from a import b` is an import of the module a.b, or of a name in the module a.
        found[module] = {name if name in sources else name.rpartition(".")[0] for name in names}
        found[module] &= sources.keys() - {module}
    return found


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """The circles among modules: each a list of modules of which every one leads to every other."""
    reached = {module: behind(module, imports) for module in imports}
    found = {
        tuple(sorted({module} | {other for other in reached[module] if module in reached[other]}))
        for module in imports
        if module in reached[module]
    }
    return [list(circle) for circle in sorted(found)]


def behind(module: str, imports: Mapping[str, set[str]]) -> set[str]:
    """All modules that `module` imports, directly or through others."""
    seen: set[str] = set()
    waiting = list(imports[module])
    while waiting:
        other = waiting.pop()
        if other not in seen:
            seen.add(other)
            waiting.extend(imports[other])
    return seen
