"""Notices every change of a module that a compiled graph would not see.

A graph shares the module's weights, so writes into them are seen. Everything else that shapes the
computation - submodules, attributes, attention processors, adapters, hooks, the weights' addresses -
is part of the module's structure. A call compares it in microseconds: Python gives each dictionary
a version number (PEP 509), and only where one has changed is the structure read again.
"""

import struct
import types

import torch

from . import engine, strengths

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
# Hooks that compute a weight; the trace of a module does not call those of that module itself.
_TRACEABLE_WITHIN = _TRACEABLE_HOOKS | {"torch.nn.utils.weight_norm"}


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
        refusal: why a module in this state must run in torch, or None.
    """

    def __init__(self, module: torch.nn.Module):
        self.refusal: str | None = None
        self.weights: dict[str, torch.Tensor] = {}
        self.strengths: list[strengths.Strength] = []
        self.factor_known = True
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
        self.wide = any(t.dtype == torch.float64 for t in tensors)
        self.token, self.sorted = -1, None  # set by the dispatcher
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
        values = tuple((k, self._value(v, _DEPTH)) for k, v in self._fixed(name, module).items() if k not in IGNORED)
        tensors = (*attributes["_parameters"].items(), *attributes["_buffers"].items())
        kinds = tuple((k, v.dtype, v.device) for k, v in tensors if v is not None)
        return name, type(module), values, kinds

    def _fixed(self, name: str, module: torch.nn.Module) -> dict:
        """The attributes of a module that a graph depends on, with None for strengths of adapters, which are its inputs."""
        attributes, found = fixed(name, module)
        if found is None:
            self.factor_known = self.factor_known and not strengths.is_adapted(module)
        else:
            self.strengths += found
            self._dicts.append(module.scaling)
        return attributes

    def _refuse(self, name: str, module: torch.nn.Module):
        label = f"{name or 'the model'} ({type(module).__name__})"
        attributes = module.__dict__
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        traceable = _TRACEABLE_WITHIN if name else _TRACEABLE_HOOKS
        if any(getattr(hook, "__module__", None) not in traceable for hook in hooks):
            self.refusal = self.refusal or f"{label} has forward hooks, whose Python code must run in every call"
        elif "forward" in attributes and not _own_forward(module):
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


def fixed(name: str, module: torch.nn.Module) -> tuple[dict, list[strengths.Strength] | None]:
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
