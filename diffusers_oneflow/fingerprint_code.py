"""What of a fingerprint is the user's own code: its bytecode, and what the names in it stand for."""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

from .bytecode import constants, imported_as, looked_up, names_in
from .libraries import Libraries, Unknowable, origin

# torch's own names for ops; what is called through others may be anybody's Python.
_OPS = frozenset(("aten", "prims", "prim", "higher_order", "torchvision"))
# What reaches any object by a name that no code holds; and ways to these beside builtins.
_ANYTHING = (eval, exec, globals, vars, __import__)
_WAYS = frozenset(
    ("import_module", "__import__", "__globals__", "f_globals", "__builtins__", "builtins", "_getframe", "getmodule")
)
# What reaches anything within a module that it is given.
_MEMBERS = frozenset(("attrgetter", "methodcaller", "__dict__", "__getattribute__", "getattr_static", "getmembers"))


class Code:
    """Hashes functions, with all that their code may reach.

    Args:
        value, every, put: of the walk that it is part of: they hash any object, all objects of a sequence, and plain parts.
        libraries: of installed packages.
    """

    def __init__(
        self, value: Callable[[Any], None], every: Callable[[Any], None], put: Callable[..., None], libraries: Libraries
    ) -> None:
        self._value, self._all, self._put, self._libraries = value, every, put, libraries
        # Modules of the user's of which code takes what it names; and whether there is code that need not name it.
        self._taken_from: list[types.ModuleType] = []
        self._unnamed = False

    def finish(self) -> None:
        """To be called once, when all was walked over: what need not be named may be any of these."""
        for module in self._taken_from:  # which grows
            if self._unnamed:
                self._value(module)

    def named(self, value: Any) -> None:
        """Hash a function that is not Python's, by its name."""
        module = getattr(value, "__module__", None) or ""
        self._put("named", module, value.__qualname__)
        if any(value is other for other in _ANYTHING):
            raise Unknowable(f"code that calls {value.__name__}")
        self._unnamed |= value is getattr
        # Compiled code of the user's own.
        file = getattr(sys.modules.get(module), "__file__", None)
        if file and origin(module) == "user":
            status = os.stat(file)
            self._put(file, status.st_size, status.st_mtime_ns)

    def function(self, function: types.FunctionType) -> None:
        """Hash a function."""
        space = function.__globals__
        self._put(space.get("__name__"), function.__qualname__)
        place = origin(space.get("__name__"))
        if function is importlib.import_module:
            raise Unknowable("code that calls import_module")
        if place == "user":
            self.code(function.__code__)
            self._value(function.__defaults__)
            self._value(function.__kwdefaults__)
            names = names_in(function.__code__)
            self._globals(function.__code__, names, space)
            self._surroundings(function.__code__, names, space)
        elif place == "installed":
            self._libraries.meet(space.get("__name__"))
        # What a decorator wraps is in its closure.
        for cell in function.__closure__ or ():
            try:
                self._value(cell.cell_contents)
            except ValueError:
                self._put("empty cell")

    def _globals(self, code: types.CodeType, names: tuple[str, ...], space: dict[Any, Any]) -> None:
        read, imported = looked_up(code)
        seen: set[int] = set()
        for name in read:
            if name in space:
                self._put("global", name)
                self._global(space[name], names, seen)
            elif (builtin := vars(builtins).get(name)) is getattr or builtin in _ANYTHING:
                self.named(builtin)
        for name in imported:
            for module in imported_as(name, space):
                self._put("import", name)
                self._global(module, names, seen)
        if not _WAYS.isdisjoint(names) or {"sys", "modules"}.issubset(names):
            raise Unknowable(f"{code.co_name}, which may reach any module")
        self._unnamed |= not _MEMBERS.isdisjoint(names)

    def _global(self, value: Any, names: tuple[str, ...], seen: set[int]) -> None:
        if not isinstance(value, types.ModuleType):
            self._value(value)
            return
        self._put("module", value.__name__)
        if id(value) in seen:
            return
        seen.add(id(value))
        place = origin(value.__name__)
        if place == "versioned":
            return
        if place == "installed":
            self._libraries.meet(value.__name__)
        else:
            self._taken_from.append(value)
        for name in ("__getattr__", *names):
            # Of a module only what the code may take from it.
            if name in vars(value) and (place == "user" or isinstance(vars(value)[name], types.ModuleType)):
                self._put(name)
                self._global(vars(value)[name], names, seen)

    def _surroundings(self, code: types.CodeType, names: tuple[str, ...], space: dict[Any, Any]) -> None:
        """What code reads that stands in no variable: the environment, and ops that are somebody's own."""
        if not {"environ", "getenv", "environb"}.isdisjoint(names):
            texts = {c for c in constants(code) if isinstance(c, str)}
            texts.update(space[name] for name in names if isinstance(space.get(name), str))
            if not texts:
                raise Unknowable(f"{code.co_name}, which reads the environment")
            self._all([(text, os.environ.get(text)) for text in sorted(texts)])
        own = {n for n, v in vars(torch.ops).items() if isinstance(v, torch._ops._OpNamespace)} - _OPS
        if "ops" in names and not own.isdisjoint(names):
            raise Unknowable(f"{code.co_name}, which calls ops of {', '.join(sorted(own.intersection(names)))}")

    def code(self, code: types.CodeType) -> None:
        """Hash bytecode."""
        self._put(code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags,
                  code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount)  # fmt: skip
        self._all(code.co_consts)
