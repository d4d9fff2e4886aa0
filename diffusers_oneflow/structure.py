"""Notices every change of a module that a compiled graph would not see.

A graph shares the module's weights, so writes into them are seen. Everything else that shapes the
computation - submodules, attributes, attention processors, adapters, hooks, the weights' addresses -
is part of the module's structure. A call compares it in microseconds: Python gives each dictionary
a version number (PEP 509), and only where one has changed is the structure read again.
"""

import struct
import types

import torch

from . import engine

_TABLES = ("_parameters", "_buffers", "_modules")
# Hooks with keywords and the like are listed in one of these two as well.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Neither shape the forward pass: gradient and state_dict machinery, and what this package stores.
IGNORED = frozenset((
    *_TABLES, *_HOOKS, "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook", "_non_persistent_buffers_set",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    "_oneflow_dispatcher", "_compiled_call_impl",
))  # fmt: skip
_SIMPLE = (bool, int, str, bytes, type(None), torch.dtype, torch.device, type)
_DEPTH = 4
# Hooks that only hand on what the trace has anyway: transformers' way to return hidden states.
_TRACEABLE_HOOKS = frozenset(("transformers.utils.output_capturing",))


class Structure:
    """The state of a module's structure at one moment.

    Attributes:
        key: hashable; equal for equal structures.
        token: a small number in the place of the key, which takes a millisecond to hash.
        weights: qualified name -> parameter or buffer.
        refusal: why a module in this state must run in torch, or None.
    """

    def __init__(self, module: torch.nn.Module):
        self.refusal: str | None = None
        self.weights: dict[str, torch.Tensor] = {}
        self._dicts: list[dict] = []
        self._lists: list[list] = []
        self._alive: list = []  # objects known by identity must not be replaced by others at the same address
        self._seen: set[int] = set()
        # All but the module itself: it is to be freed with its last reference, not by the garbage collector.
        modules = [sub for sub in module.modules() if sub is not module]
        types = list({type(module): None, **dict.fromkeys(map(type, modules))})
        self.key = tuple(self._describe(name, sub) for name, sub in module.named_modules(remove_duplicate=False))
        tensors = self.weights.values()
        self.weights_key = tuple(t.data_ptr() for t in tensors)
        layouts = tuple((t.size(), t.stride()) for t in tensors)
        self.token = -1  # set by `Interned`
        self.key = (self.key, tuple(self.weights), self.weights_key, layouts, tuple(t.forward for t in types))
        handles = list(map(torch._C._aoti.unsafe_alloc_void_ptr_from_tensor, tensors))
        self._watch = engine.native().StructureWatch(self._dicts, self._lists, modules, types, handles)

    def unchanged(self) -> bool:
        """True if nothing was written to the module since; costs some 10 microseconds for 300 submodules."""
        return not self._watch.changed()

    def _describe(self, name: str, module: torch.nn.Module) -> tuple:
        attributes = module.__dict__
        self._dicts.append(attributes)
        self._dicts.extend(attributes[t] for t in _TABLES)
        self._dicts.extend(attributes[t] for t in _HOOKS if t in attributes)
        for table in ("_parameters", "_buffers"):
            for key, value in attributes[table].items():
                if value is not None:
                    self.weights[f"{name}.{key}".lstrip(".")] = value
        self._refuse(name, module)
        values = tuple((k, self._value(v, _DEPTH)) for k, v in attributes.items() if k not in IGNORED)
        tensors = (*attributes["_parameters"].items(), *attributes["_buffers"].items())
        kinds = tuple((k, v.dtype, v.device) for k, v in tensors if v is not None)
        return name, type(module), values, kinds

    def _refuse(self, name: str, module: torch.nn.Module):
        label = f"{name or 'the model'} ({type(module).__name__})"
        attributes = module.__dict__
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if any(getattr(hook, "__module__", None) not in _TRACEABLE_HOOKS for hook in hooks):
            self.refusal = self.refusal or f"{label} has forward hooks, whose Python code must run in every call"
        elif "forward" in attributes:
            self.refusal = self.refusal or f"{label} has a forward of its own (a hook of accelerate or diffusers, or a patch)"
        elif name and attributes.get("_compiled_call_impl") is not None and "_oneflow_dispatcher" not in attributes:
            self.refusal = self.refusal or f"{label} was compiled by torch.compile"

    def _value(self, value, depth: int):
        """A hashable description of an attribute; follows containers and plain objects `depth` levels down."""
        kind = type(value)
        if kind is float:
            return ("float", struct.pack("d", value))
        if isinstance(value, _SIMPLE):
            return (kind, value)
        if isinstance(value, torch.nn.Module):
            return ("module", self._identity(value))
        if isinstance(value, torch.Tensor):
            return ("tensor", self._identity(value), value.data_ptr(), tuple(value.shape), value.dtype)
        if depth and kind in (list, tuple, set, frozenset):
            if kind is list:
                self._lists.append(value)
            items = sorted(value, key=repr) if kind in (set, frozenset) else value
            return (kind, tuple(self._value(v, depth - 1) for v in items))
        if depth and isinstance(value, dict):
            self._dicts.append(value)
            return (kind, tuple((self._value(k, 0), self._value(v, depth - 1)) for k, v in value.items()))
        inner = getattr(value, "__dict__", None)
        shared = isinstance(value, (type, types.FunctionType, types.ModuleType))
        if depth and isinstance(inner, dict) and id(value) not in self._seen and not shared:
            self._seen.add(id(value))
            self._dicts.append(inner)
            return (kind, self._identity(value), tuple((k, self._value(v, depth - 1)) for k, v in inner.items()))
        return (kind, self._identity(value))

    def _identity(self, value) -> int:
        self._alive.append(value)
        return id(value)


class Interned:
    """Gives equal structures the same token."""

    def __init__(self):
        self._known: dict[tuple, Structure] = {}
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
