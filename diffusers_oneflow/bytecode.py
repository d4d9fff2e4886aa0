"""What Python code names: the globals that it may read and the modules that it imports."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any


@functools.lru_cache(maxsize=8192)
def names_in(code: types.CodeType) -> tuple[str, ...]:
    """All names that code, and code within it, may look up."""
    inner = [names_in(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return tuple(dict.fromkeys([*code.co_names, *(n for names in inner for n in names)]))


@functools.lru_cache(maxsize=8192)
def looked_up(code: types.CodeType) -> tuple[list[str], list[str]]:
    """The globals, or builtins, that code and code within it reads; and what it imports, by the names that the code has."""
    read: dict[str, None] = {}
    imported: dict[str, None] = {}
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            read[step.argval] = None
        elif step.opname in ("IMPORT_NAME", "IMPORT_FROM"):
            imported[step.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for names, more in zip((read, imported), looked_up(constant)):
                names.update(dict.fromkeys(more))
    return list(read), list(imported)


def constants(code: types.CodeType) -> Iterator[object]:
    """The constants of code and of code within it."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from constants(constant)
        else:
            yield constant


def imported_as(name: str, space: dict[Any, Any]) -> list[types.ModuleType]:
    """The loaded modules that ``import name`` or ``from .name import ...`` inside a function may mean."""
    package, places = space.get("__package__") or "", [name, name.partition(".")[0]]
    while package:
        places.append(f"{package}.{name}".rstrip("."))  # of ``from . import`` there is no name
        package = package.rpartition(".")[0]
    return [sys.modules[place] for place in dict.fromkeys(places) if sys.modules.get(place) is not None]
