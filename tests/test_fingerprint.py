"""Whatever decides what a module computes is part of its digest: each of these would otherwise give a stale program."""

import copy
import enum
import functools
import subprocess
import sys
import types
import weakref
from pathlib import Path

import diffusers.models.activations as activations
import diffusers.models.attention_dispatch as attention_dispatch
import diffusers.models.attention_processor as attention_processor
import diffusers.models.embeddings as embeddings
import numpy
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from peft import LoraConfig
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, CLIPTextConfig, CLIPTextModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conformance import flux
from diffusers_oneflow import cache, libraries
from diffusers_oneflow.fingerprint import Unknowable, fingerprint

pytestmark = pytest.mark.usefixtures("settled")


def digest(module, spec=()):
    return fingerprint(module, spec).digest


class Text(str):
    pass


class Slots:
    __slots__ = ("__own", "kept")

    def __init__(self, kept=1, own=2):
        self.kept, self.__own = kept, own


class MoreSlots(Slots):
    __slots__ = ("more",)


class Helper:
    factor = 2.0

    def scale(self, x):
        return x * self.factor


HELPER, SHIFT, VARIABLE = Helper(), 1.0, "DIFFUSERS_ONEFLOW_TEST"


def inner(x):
    return x + SHIFT


def keeps(factor):
    return lambda x: x * factor


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.twin, self.none = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), None
        self.options, self.names, self.kind = {"a": 1}, ["x", "y"], Text("small")
        self.slots, self.function, self.table = MoreSlots(), keeps(2.0), torch.arange(4.0)
        self.optional, self.helpers = torch.nn.Identity(), types.SimpleNamespace(deep=[{"x": (1, 2)}])

    def middle(self, x):
        return HELPER.scale(inner(x))


class Whole(Base):
    def forward(self, x, power=2):
        return functools.reduce(lambda a, b: a + b, [self.middle(x)] * power)


def _set(place, name, value):
    return lambda module, patch: patch.setattr(place, name, value, raising=False)


def _attribute(path, value):
    def change(module, patch):
        *owners, name = path.split(".")
        setattr(functools.reduce(getattr, owners, module), name, value)

    return change


def _call(function):
    return lambda module, patch: function(module)


def _other_slot(module):
    module.slots._Slots__own = 3


def _no_submodule(module):
    module._modules["absent"] = None


def _shared(module):
    module.twin = module.linear


CHANGES = {
    "training": _call(lambda m: m.train()),
    "training of a part": _call(lambda m: m.linear.train()),
    "hyperparameter": _attribute("linear.in_features", 5),
    "true is not one": _attribute("options", {"a": True}),
    "a float is not an integer": _attribute("options", {"a": 1.0}),
    "another key": _attribute("options", {"b": 1}),
    "an entry more": _attribute("options", {"a": 1, "b": 2}),
    "another order": _attribute("names", ["y", "x"]),
    "a tuple is not a list": _attribute("names", ("x", "y")),
    "text of its own class": _attribute("kind", Text("large")),
    "slot": _attribute("slots.kept", 9),
    "slot of its class alone": _call(_other_slot),
    "deep attribute": _call(lambda m: m.helpers.deep[0].update(x=(1, 3))),
    "closure": _attribute("function", keeps(3.0)),
    "content of a tensor": _call(lambda m: m.table.mul_(2)),
    "stride of a tensor": _call(lambda m: setattr(m, "table", torch.arange(8.0).repeat_interleave(2)[::4])),
    "none instead of a module": _attribute("optional", None),
    "a module that is none": _call(_no_submodule),
    "shared modules": _call(_shared),
    "shared weights": _call(lambda m: setattr(m.twin, "weight", m.linear.weight)),
    "no bias": _attribute("linear.bias", None),
    "dtype": _call(lambda m: m.linear.double()),
    "layout of a weight": _call(lambda m: setattr(m.linear, "weight", torch.nn.Parameter(m.linear.weight.t()))),
    "frozen": _call(lambda m: m.linear.requires_grad_(False)),
    "attribute of a weight": _attribute("linear.weight.quantised", 4),
    "another class": _call(lambda m: setattr(m, "linear", torch.nn.Bilinear(4, 4, 4))),
    "method of a base": _set(Base, "middle", lambda self, x: x),
    "method of a base's helper": _set(Helper, "scale", lambda self, x: x),
    "attribute of a helper's class": _set(Helper, "factor", 3.0),
    "object in a global": _set(sys.modules[__name__], "HELPER", Slots()),
    "global of a function": _set(sys.modules[__name__], "SHIFT", 2.0),
    "function in a global": _set(sys.modules[__name__], "inner", lambda x: x - SHIFT),
    "default": _set(Whole.forward, "__defaults__", (3,)),
    "torch's function": _set(torch.nn.functional, "linear", lambda *args: 0),
    "torch's method": _set(torch.Tensor, "softmax", lambda *args: 0),
    "torch's layer": _set(torch.nn.Linear, "forward", lambda self, x: x),
    "a layer's helper": _set(torch.nn.Linear, "extra_repr", lambda self: ""),
    "a function of torch behind partial": _set(torch, "sigmoid", functools.partial(inner, SHIFT)),
    "fast path": lambda module, patch: patch.setattr(torch.backends.mha, "_is_fastpath_enabled", False),
    "forward hook": _call(lambda m: m.linear.register_forward_hook(keeps(1.0))),
    "weight norm": _call(lambda m: torch.nn.utils.parametrizations.weight_norm(m.linear)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_another_digest(change, monkeypatch):
    module = Whole().eval()
    before = digest(module)
    assert digest(module) == before
    change(module, monkeypatch)
    assert digest(module) != before
    monkeypatch.undo()


def test_weights_are_no_part_of_it():
    module = Whole().eval()
    before = digest(module)
    module.linear.weight.data.mul_(2)
    assert digest(module) == before == digest(copy.deepcopy(module))


def test_what_follows_a_dictionary_is_not_in_it():
    assert digest(torch.nn.Identity(), ({1: 2}, 3, 4)) != digest(torch.nn.Identity(), ({1: 2, 3: 4},))


def test_calls_and_modes():
    module, before = Whole(), digest(Whole())
    assert len({before, *(digest(module, (v,)) for v in (1, 1.0, True, "1", None, -0.0, 0.0, float("nan")))}) == 9
    with torch.inference_mode():
        assert digest(module) != before
    torch.use_deterministic_algorithms(True)
    try:
        assert digest(module) != before
    finally:
        torch.use_deterministic_algorithms(False)
    with torch.device("cpu"):
        assert digest(module) != before
    assert digest(module) == before


class Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_calls_that_others_change_on_the_way_are_not_kept():
    with Mode(), pytest.raises(Unknowable, match="Mode"):
        digest(Whole())
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        with pytest.raises(Unknowable, match="hooks of all modules"):
            digest(Whole())
    finally:
        handle.remove()


# torch cannot forget ops: they stay.
LIBRARY = []


class Asks(Base):
    def forward(self, x):
        import os

        return x * 2 if os.environ.get(VARIABLE) else x


class CallsOthers(Base):
    def forward(self, x):
        return torch.ops.somebodys.op(x)


def test_the_environment_and_ops_of_others(monkeypatch):
    before = digest(Asks())
    monkeypatch.setenv(VARIABLE, "1")
    assert digest(Asks()) != before
    if not LIBRARY:
        LIBRARY.append(torch.library.Library("somebodys", "DEF"))
        LIBRARY[0].define("op(Tensor x) -> Tensor")
        LIBRARY[0].impl("op", lambda x: x + 1, "CompositeImplicitAutograd")
    assert torch.ops.somebodys.op(torch.zeros(1)) == 1
    with pytest.raises(Unknowable, match="ops of somebodys"):
        digest(CallsOthers())


def _free_u(unet, patch, s1=0.9):
    for block in unet.up_blocks:
        block.s1, block.s2, block.b1, block.b2 = s1, 0.2, 1.2, 1.4


UNET_CHANGES = {
    "free u": _free_u,
    "processor": _call(lambda unet: unet.set_attn_processor(AttnProcessor())),
    "fused projections": _call(lambda unet: unet.fuse_qkv_projections()),
    "function": _set(embeddings, "get_timestep_embedding", lambda *args, **kwargs: 0),
    "function of another module": _set(activations, "get_activation", lambda *args, **kwargs: 0),
    "function of another package": _set(embeddings, "get_timestep_embedding", CLIPTextModel.forward),
    "flag": _set(embeddings, "SOME_FLAG", True),
    "class": _set(embeddings, "Timesteps", Whole),
    "method": _set(attention_processor.Attention, "get_attention_scores", lambda *args: 0),
    "property": _set(attention_processor.Attention, "fused", property(lambda self: True)),
    "memory efficient slices": _call(lambda unet: unet.set_attention_slice(1)),
    "gradient checkpointing": _call(lambda unet: unet.enable_gradient_checkpointing()),
    "channels last": _call(lambda unet: unet.to(memory_format=torch.channels_last)),
    "configuration": _call(lambda unet: unet.register_to_config(center_input_sample=True)),
}


@pytest.mark.parametrize("change", UNET_CHANGES.values(), ids=UNET_CHANGES)
def test_a_change_of_a_model_of_diffusers_is_another_digest(unet, change, monkeypatch):
    before = digest(unet)
    change(unet, monkeypatch)
    assert digest(unet) != before
    monkeypatch.undo()


BACKEND_CHANGES = {
    "of the model": _call(lambda model: model.set_attention_backend("_native_math")),
    "of the class": _set(FluxAttnProcessor, "_attention_backend", "_native_math"),
    "of the process": _set(attention_dispatch._AttentionBackendRegistry, "_active_backend", "_native_math"),
    "a function of its own": lambda unet, patch: patch.setitem(
        attention_dispatch._AttentionBackendRegistry._backends, attention_dispatch.AttentionBackendName.NATIVE, keeps(1.0)
    ),
    "the function that chooses": _set(attention_dispatch, "dispatch_attention_fn", lambda *args, **kwargs: 0),
    "checks": _set(attention_dispatch._AttentionBackendRegistry, "_checks_enabled", True),
}


@pytest.mark.parametrize("change", BACKEND_CHANGES.values(), ids=BACKEND_CHANGES)
def test_attention_backends(change, monkeypatch):
    model = flux.parts()["transformer"]
    before = digest(model)
    change(model, monkeypatch)
    assert digest(model) != before
    monkeypatch.undo()


def test_strengths_of_free_u_are_different(unet):
    made = set()
    for s1 in (0.9, 0.8):
        _free_u(unet, None, s1)
        made.add(digest(unet))
    assert len(made) == 2


def test_adapters(unet):
    def adapter(rank):
        return LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q"], init_lora_weights=False)

    seen = [digest(unet)]
    unet.add_adapter(adapter(2), "one")
    seen.append(digest(unet))
    unet.add_adapter(adapter(3), "two")
    unet.set_adapters(["one", "two"], [1.0, 1.0])
    seen.append(digest(unet))
    # Strengths are inputs.
    unet.set_adapters(["one", "two"], [0.3, 0.5])
    assert digest(unet) == seen[-1]
    unet.set_adapters(["two", "one"], [0.3, 0.5])
    seen.append(digest(unet))
    unet.set_adapters("one", 1.0)
    seen.append(digest(unet))
    unet.disable_adapters()
    seen.append(digest(unet))
    unet.enable_adapters()
    unet.fuse_lora()
    seen.append(digest(unet))
    assert len(set(seen)) == len(seen)


def test_attention_of_transformers(monkeypatch):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPTextModel(CLIPTextConfig(**sizes)).eval()
    before = digest(model)
    with monkeypatch.context() as patch:
        patch.setitem(AttentionInterface._global_mapping, "sdpa", keeps(1.0))
        everywhere = digest(model)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = keeps(1.0)
    here = digest(model)
    del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert digest(model) == before
    model.set_attn_implementation("eager")
    assert len({before, everywhere, here, digest(model)}) == 4


def test_files_of_installed_packages(tmp_path, monkeypatch):
    package = tmp_path / "diffusers_oneflow_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .part import *\n")
    (package / "part.py").write_text(
        "import torch\n\nclass Part(torch.nn.Module):\n    def forward(self, x):\n        return x\n"
    )
    monkeypatch.setattr(libraries, "_SITE", (str(tmp_path),))
    monkeypatch.syspath_prepend(str(tmp_path))
    import diffusers_oneflow_test_package

    module = diffusers_oneflow_test_package.Part()
    before = digest(module)
    (package / "other.so").write_bytes(b"")
    assert digest(module) != before
    (package / "other.so").unlink()
    assert digest(module) == before
    text = (package / "part.py").read_text()
    (package / "part.py").write_text(text.replace("return x", "return 2 * x"))
    assert digest(module) != before
    monkeypatch.setattr(libraries, "STARTED", 0.0)
    with pytest.raises(Unknowable, match="was written to after this process had started"):
        digest(module)


def test_a_fork_knows_when_its_code_was_read():
    """Not when it was forked."""
    code = (
        "import os, time, diffusers_oneflow, torch\n"
        "time.sleep(1.2)\n"
        "now = time.time()\n"
        "if not (child := os.fork()):\n"
        "    from diffusers_oneflow.libraries import STARTED\n"
        "    os._exit(0 if 0 < STARTED < now - 1 else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_versions_and_this_package_are_in_the_key(monkeypatch):
    before = cache.key_of("x")
    for name in cache.PACKAGES:
        with monkeypatch.context() as patch:
            cache._versions.cache_clear()
            patch.setitem(sys.modules, name, types.SimpleNamespace(__version__="0.0.1"))
            assert cache.key_of("x") != before, name
    for attribute in ("git_version", "cuda", "debug"):
        with monkeypatch.context() as patch:
            cache._versions.cache_clear()
            patch.setattr(torch.version, attribute, "0.0.1")
            assert cache.key_of("x") != before, attribute
    with monkeypatch.context() as patch:
        cache._versions.cache_clear()
        patch.setattr(Path, "read_bytes", lambda self: b"")
        assert cache.key_of("x") != before
    cache._versions.cache_clear()
    assert cache.key_of("x") == before != cache.key_of("x", "")


def test_a_graph_of_torch_compile_is_not_confused_with_another():
    def traced(function):
        module = torch.fx.symbolic_trace(function)
        try:
            return digest(module)
        except (Unknowable, RecursionError):
            return object()

    assert traced(lambda x: torch.sin(x)) != traced(lambda x: torch.cos(x))


def test_tensors_come_in_the_same_order():
    module = Whole()
    module.second = torch.zeros(2)
    assert [t is u for t, u in zip(fingerprint(module).tensors, (module.table, module.second))] == [True, True]


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


def test_what_is_weakly_held():
    module, held = Whole(), Helper()
    held.factor = 2.0
    module.parent = weakref.ref(held)
    before = digest(module)
    held.factor = 3.0
    assert digest(module) != before
    del held
    assert digest(module) not in (before, digest(Whole()))
    held = Helper()
    module.parent = weakref.proxy(held)
    with pytest.raises(Unknowable, match="weak proxy"):
        digest(module)


def test_values_of_enums(monkeypatch):
    module = Whole()
    module.level = Level.LOW
    before = digest(module)
    with monkeypatch.context() as patch:
        patch.setattr(Level.LOW, "_value_", 7)
        assert digest(module) != before
    assert digest(module) == before
    monkeypatch.setattr(Level, "method", lambda self: 1, raising=False)
    assert digest(module) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(2), torch.zeros(2)),
        (numpy.ones(2), numpy.zeros(2)),
        ([torch.ones(2)], [torch.zeros(2)]),
        ([keeps(1.0)], [keeps(2.0)]),
        (Slots(1), Slots(2)),
        (functools.lru_cache(keeps(1.0)), functools.lru_cache(keeps(2.0))),
    ],
    ids=["tensor", "array", "tensor in a list", "function in a list", "object", "cached function"],
)
@pytest.mark.parametrize("place", [embeddings, embeddings.Timesteps])
def test_content_in_globals_of_installed_packages(unet, place, one, other, monkeypatch):
    monkeypatch.setattr(place, "TABLE", one, raising=False)
    before = digest(unet)
    assert digest(unet) == before
    monkeypatch.setattr(place, "TABLE", other)
    assert digest(unet) != before
