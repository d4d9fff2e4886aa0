"""Notices every change of a module that a compiled graph would not see.

A graph shares the module's weights, so writes into them are seen. Everything else that shapes the
computation - submodules, attributes, attention processors, adapters, hooks, the weights' addresses -
is part of the module's structure. A call compares it in microseconds: Python gives each dictionary
a version number (PEP 509), and only where one has changed is the structure read again.
"""

from __future__ import annotations

import collections
import gc
import struct
import types
from typing import Any, cast

import torch

from . import engine, strengths
from .bytecode import names_in
from .contents import DEPTH, OPAQUE, OWN, TABLES, contents, is_mutable_class, snapshot
from .libraries import origin

# Hooks with keywords and the like are listed in one of these two as well.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Neither shape the forward pass: gradient and state_dict machinery, and what this package stores.
IGNORED = frozenset((
    *TABLES, *OWN, *_HOOKS, "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook", "_non_persistent_buffers_set",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
))  # fmt: skip
_SIMPLE = (bool, int, str, bytes, type(None), torch.dtype, torch.device)
# Of classes: what Python itself writes, and what documents.
_CLASS_NOISE = frozenset(("__dict__", "__weakref__", "__doc__", "__annotations__", "__slotnames__", "_abc_impl", "__slots__",
                          "__module__", "__qualname__", "__orig_bases__", "__parameters__", "__abstractmethods__",
                          "__match_args__", "__dataclass_fields__", "__dataclass_params__"))  # fmt: skip
# Hooks that only hand on what the trace has anyway: transformers' way to return hidden states.
_TRACEABLE_HOOKS = frozenset(("transformers.utils.output_capturing",))
# Hooks that compute a weight; the trace of a module does not call those of that module itself.
_TRACEABLE_WITHIN = _TRACEABLE_HOOKS | {"torch.nn.utils.weight_norm"}
_GLOBAL_HOOKS = (torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks)
_EMPTY = types.CellType()


class Structure:
    """The state of a module's structure at one moment.

    Attributes:
        key: hashable; equal for equal structures.
        token: a small number in the place of the key, which takes a millisecond to hash.
        weights: qualified name -> parameter or buffer.
        strengths: of LoRA adapters; their floats are no part of the key.
        factor_known: whether `strengths` holds all that the `scale` of a call would change.
        sorted: the strengths by group, set with the token.
        wide: whether any weight is float64.
        device: of all weights; the CPU where they lie on several, or there are none.
        refusal: why a module in this state must run in torch, or None.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.refusal: str | None = None
        self.weights: dict[str, torch.Tensor] = {}
        self.strengths: list[strengths.Strength] = []
        self.factor_known = True
        self._dicts: list[dict[Any, Any]] = []
        self._lists: list[list[Any]] = []
        self._snapshots: list[tuple[Any, ...]] = []  # of what has no version: how it is read, what was read
        self._tensors: list[torch.Tensor] = []  # that are no parameters or buffers
        self._alive: list[Any] = []  # objects known by identity must not be replaced by others at the same address
        self._seen: dict[int, int] = {}  # id of what was followed -> its number
        self._classes: dict[type, None] = {}
        self._read: set[tuple[Any, ...]] = set()  # id of a module's dictionary, name in it
        self._place, self._in_classes, self._named = "", False, False
        self._outside: str | None = None
        # All but the module itself: it is to be freed with its last reference, not by the garbage collector.
        modules = [sub for sub in module.modules() if sub is not module]
        self._modules = {id(module), *map(id, modules)}
        self._objects: list[Any] = list(modules)
        types = list({type(module): None, **dict.fromkeys(map(type, modules))})
        for hooks in _GLOBAL_HOOKS:
            self._dicts.append(hooks)
            if hooks:
                self.refusal = "there are forward hooks of all modules, whose Python code must run in every call"
        self.key: tuple[Any, ...] = tuple(self._describe(name, sub) for name, sub in module.named_modules(remove_duplicate=False))
        for cls in types:
            self._meet(cls)
        code = self._code()
        self.refusal = self.refusal or self._outside
        tensors = self.weights.values()
        self.weights_key = tuple(t.data_ptr() for t in tensors)
        layouts = tuple((t.size(), t.stride()) for t in tensors)
        self.wide = any(t.dtype == torch.float64 for t in tensors)
        devices = {t.device for t in tensors}
        self.device = devices.pop() if len(devices) == 1 else torch.device("cpu")
        self.token = -1  # this and the next are set by the dispatcher
        self.sorted: Any = None
        self.castings: dict[Any, str | None] = {}  # why not under an autocast
        self.key = (self.key, code, tuple(self.weights), self.weights_key, layouts, tuple(cast(Any, t).forward for t in types))
        handles = list(map(torch._C._aoti.unsafe_alloc_void_ptr_from_tensor, (*tensors, *self._tensors)))
        self._watch = engine.native().StructureWatch(self._dicts, self._lists, self._objects, types, handles)

    def unchanged(self) -> bool:
        """True if nothing was written to the module since; costs some 10 microseconds for 300 submodules."""
        return not self._watch.changed() and all(read() == known for read, known in self._snapshots)

    def is_moved(self, before: Structure) -> bool:
        """Whether all weights are elsewhere than they were: the module was moved, and not only changed."""
        # An allocator may give the place of one to another.
        pairs = [pair for pair in zip(self.weights_key, before.weights_key) if any(pair)]
        return len(self.weights_key) == len(before.weights_key) and all(now != then for now, then in pairs)

    def _describe(self, name: str, module: torch.nn.Module) -> tuple[Any, ...]:
        attributes = module.__dict__
        self._dicts.append(attributes)
        self._dicts.extend(attributes[t] for t in TABLES)
        self._dicts.extend(attributes[t] for t in _HOOKS if t in attributes)
        for table in ("_parameters", "_buffers"):
            for key, value in attributes[table].items():
                if value is not None:
                    self.weights[f"{name}.{key}".lstrip(".")] = value
        self._place = f"{name or 'the model'} ({type(module).__name__})"
        self._refuse(name, module)
        values = tuple((k, self._value(v)) for k, v in self._fixed(name, module).items() if k not in IGNORED)
        tensors = (*attributes["_parameters"].items(), *attributes["_buffers"].items())
        kinds = tuple((k, v.dtype, v.device) for k, v in tensors if v is not None)
        return name, type(module), values, kinds

    def _fixed(self, name: str, module: torch.nn.Module) -> dict[Any, Any]:
        """The attributes of a module that a graph depends on, with None for strengths of adapters, which are its inputs."""
        attributes, found = fixed(name, module)
        if found is None:
            self.factor_known = self.factor_known and not strengths.is_adapted(module)
        else:
            self.strengths += found
            self._dicts.append(module.__dict__["scaling"])
        return attributes

    def _refuse(self, name: str, module: torch.nn.Module) -> None:
        attributes = module.__dict__
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        traceable = _TRACEABLE_WITHIN if name else _TRACEABLE_HOOKS
        if any(getattr(hook, "__module__", None) not in traceable for hook in hooks):
            self.refusal = self.refusal or f"{self._place} has forward hooks, whose Python code must run in every call"
        elif "forward" in attributes and not _own_forward(module):
            self.refusal = (
                self.refusal or f"{self._place} has a forward of its own (a hook of accelerate or diffusers, or a patch)"
            )
        elif name and attributes.get("_compiled_call_impl") is not None and "_oneflow_dispatcher" not in attributes:
            self.refusal = self.refusal or f"{self._place} was compiled by torch.compile"

    def _value(self, value: Any, depth: int = DEPTH) -> tuple[Any, ...]:
        """A hashable description of an attribute; follows what it holds."""
        kind = type(value)
        if kind is float:
            return ("float", struct.pack("d", value))
        if isinstance(value, _SIMPLE):
            return (kind, value)
        if isinstance(value, torch.nn.Module):
            if id(value) not in self._modules and not self._in_classes:
                self._outside = self._outside or f"{self._place} holds a {kind.__name__} that is none of its submodules"
            return ("module", self._identity(value))
        if isinstance(value, torch.Tensor):
            self._tensors.append(value)
            layout = (value.data_ptr(), value.stride()) if value.layout is torch.strided else value.layout
            return ("tensor", self._identity(value), layout, tuple(value.shape), value.dtype)
        if isinstance(value, type):
            # Those that installed packages name in their classes stay what they are.
            if not self._in_classes or origin(value.__module__) == "user":
                self._meet(value)
            return (kind, self._identity(value))
        if isinstance(value, types.FunctionType):
            return (kind, self._identity(value), self._function(value, depth))
        if isinstance(value, OPAQUE):
            return (kind, self._identity(value))
        if id(value) in self._seen:
            return ("again", self._seen[id(value)])
        if not depth:
            self.refusal = self.refusal or f"{self._place} holds something that is nested deeper than {DEPTH} levels"
            return (kind, self._identity(value))
        self._seen[self._identity(value)] = len(self._seen)
        return self._followed(value, depth)

    def _followed(self, value: Any, depth: int) -> tuple[Any, ...]:
        kind = type(value)
        try:
            read = snapshot(value)
        except ValueError as error:
            self.refusal = self.refusal or f"{self._place} holds {error}, where writes would not be seen"
            return (kind, id(value))
        self._meet(kind)
        held = contents(value)
        if isinstance(value, dict):
            self._dicts.append(value)
        elif isinstance(value, list):
            self._lists.append(value)
        if type(inner := getattr(value, "__dict__", None)) is dict:
            self._dicts.append(inner)
        if is_mutable_class(kind):
            self._objects.append(value)
        known = None
        if read is not None:
            self._alive.extend(item for _, item in held)
            self._snapshots.append((read, known := read()))
        items = tuple([(self._value(k, depth - 1), self._value(v, depth - 1)) for k, v in held])
        # Containers of Python's own are equal where what they hold is; of all else only itself is.
        own = kind in (dict, list, tuple, set, frozenset, collections.deque)
        return (kind, items) if own else (kind, id(value), known, items)

    def _meet(self, cls: type) -> None:
        """Take in a class and its bases."""
        self._classes.update(dict.fromkeys(filter(is_mutable_class, cls.__mro__)))

    def _code(self) -> tuple[Any, ...]:
        """The attributes of all classes that were met, and what their functions read of modules of code."""
        described, done, self._in_classes = [], 0, True
        # More are met on the way.
        while done < len(self._classes):
            cls = list(self._classes)[done]
            done += 1
            # torch.export patches that of all modules while it traces, for all threads.
            if cls is torch.nn.Module:
                continue
            self._place = f"the class {cls.__qualname__}"
            # The dictionary itself, behind the proxy that protects it.
            self._dicts += [d for d in gc.get_referents(vars(cls)) if type(d) is dict]
            attributes = list(vars(cls).items())
            described.append((cls, tuple([(k, self._value(v)) for k, v in attributes if k not in _CLASS_NOISE])))
        return tuple(described)

    def _function(self, function: types.FunctionType, depth: int) -> tuple[Any, ...]:
        """What a function holds, and what it and those that it names read of the modules that they stand in.

        Functions of installed packages are followed no further than from a class or an attribute to what they name.
        """
        if id(function) in self._seen or not depth:
            return ()
        self._seen[id(function)] = len(self._seen)
        space = function.__globals__
        place = origin(space.get("__name__"))
        held = [c.cell_contents for c in function.__closure__ or () if c != _EMPTY]
        if place == "user":
            held += (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        else:
            held = [v for v in held if isinstance(v, types.FunctionType)]  # what a decorator wraps
        described = [self._value(v, depth - 1) for v in held]
        if place == "versioned" or (place == "installed" and self._named):
            return tuple(described)
        self._dicts.append(space)
        names = names_in(function.__code__)
        before, self._named = self._named, True
        for name in names:
            if name in space and (id(space), name) not in self._read:
                self._read.add((id(space), name))
                described.append((name, self._global(space[name], names, place, depth - 1)))
        self._named = before
        return tuple(described)

    def _global(self, value: Any, names: tuple[str, ...], place: str, depth: int) -> tuple[Any, ...]:
        if isinstance(value, types.ModuleType) and origin(value.__name__) == "user":
            inner = vars(value)
            self._dicts.append(inner)
            held = tuple([(n, self._value(inner[n], depth)) for n in names if n in inner])
            return (types.ModuleType, self._identity(value), held)
        if place == "user" or isinstance(value, (float, *_SIMPLE)):
            return self._value(value, depth)
        return (type(value), self._identity(value))

    def _identity(self, value: object) -> int:
        self._alive.append(value)
        return id(value)


def fixed(name: str, module: torch.nn.Module) -> tuple[dict[Any, Any], list[strengths.Strength] | None]:
    """``(attributes, strengths)`` of a module: the former with None for strengths that are floats; the latter may be None."""
    attributes, found = module.__dict__, strengths.found(name, module)
    if _own_forward(module):
        attributes = {k: v for k, v in attributes.items() if k != "forward"}
    if found is not None:
        attributes = {**attributes, "scaling": {s.adapter: None if type(s.value) is float else s.value for s in found}}
    return attributes, found


def _own_forward(module: torch.nn.Module) -> bool:
    """Whether a module has its class's `forward` as an attribute, which is what removed hooks leave there."""
    forward = module.__dict__.get("forward")
    return isinstance(forward, types.MethodType) and forward.__self__ is module and forward.__func__ is type(module).forward


class Interned:
    """Gives equal structures the same token."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Structure] = {}
        self._next = 0

    def intern(self, structure: Structure, in_use: set[int]) -> Structure:
        """Set the structure's token. Of the known ones only those `in_use`, and so needed again, are kept."""
        same = self._known.get(structure.key)
        if same is None:
            self._known = {k: s for k, s in self._known.items() if s.token in in_use}
            self._next += 1
        structure.token = self._next if same is None else same.token
        # The newest holds the objects that the key names by identity; equal keys name the same ones.
        self._known[structure.key] = structure
        return structure
