"""Draws the rooms and the imports between them into docs/design.md: ``python -m tests.quick.draw_rooms``.

The picture is a Mermaid diagram, which GitHub renders. It shows the imports that the source files have, not those
that the plan allows. An arrow is left out where other arrows already lead from the one room to the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.quick.rooms import (
    FOR_EVERYONE,
    LIBRARY,
    ONLY_IN,
    REPOSITORY,
    TOP_LEVEL_ROOMS,
    behind,
    dotted_name,
    imports_of_modules,
    modules,
    room_of,
)

DOCUMENT = REPOSITORY / "docs" / "design.md"
BLOCK = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)


def imports_of_rooms() -> dict[str, set[str]]:
    """Room -> the rooms that its files import, without those that every room may import."""
    sources = {
        dotted_name(path): ((REPOSITORY / path).read_text(), path.name == "__init__.py") for path in modules()
    }
    found: dict[str, set[str]] = {}
    for module, targets in imports_of_modules(sources).items():
        room = room_of(module)
        if room and room not in FOR_EVERYONE:
            found.setdefault(room, set()).update(filter(None, map(room_of, targets)))
    return {room: targets - FOR_EVERYONE - {room} for room, targets in found.items()}


def without_detours(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same, without the arrows to rooms that another arrow leads to as well: a -> c where a -> b -> c."""
    return {
        room: {
            target
            for target in targets
            if not any(target in behind(other, imports) for other in targets - {target})
        }
        for room, targets in imports.items()
    }


def label(room: str) -> str:
    """The room's name, the library that it alone imports, and the folders within it."""
    folder = REPOSITORY / (room if room in TOP_LEVEL_ROOMS else f"{LIBRARY}/{room}")
    folders = sorted(f"{path.parent.name}/" for path in folder.glob("*/__init__.py"))
    alone = [f"alone imports {library}" for library, owner in ONLY_IN.items() if owner == room]
    return "<br/>".join([f"<b>{room}</b>", *alone, *([", ".join(folders)] if folders else [])])


def drawing() -> str:
    """The Mermaid diagram, as a block of Markdown."""
    arrows = without_detours(imports_of_rooms())
    within = sorted(room for room in arrows if room not in TOP_LEVEL_ROOMS)
    lines = [
        "```mermaid",
        "%% Drawn from the imports by: python -m tests.quick.draw_rooms",
        "flowchart TD",
        *(f'    {room}["{label(room)}"]' for room in sorted(arrows.keys() - set(within))),
        f"    subgraph {LIBRARY}",
        *(f'        {room}["{label(room)}"]' for room in within),
        "    end",
        *(f"    {room} --> {target}" for room in sorted(arrows) for target in sorted(arrows[room])),
        "```",
    ]
    return "\n".join(lines) + "\n"


def redrawn(document: str) -> str:
    """The document with the diagram of today in place of the one that it has."""
    return BLOCK.sub(drawing().replace("\\", r"\\"), document, count=1)


if __name__ == "__main__":
    DOCUMENT.write_text(redrawn(DOCUMENT.read_text()))
    print(f"{DOCUMENT.relative_to(REPOSITORY)}: the picture of the rooms is drawn.")
