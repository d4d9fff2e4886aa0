"""Programs as bytes."""

import collections
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save

from diffusers_oneflow import passes, stored_values
from diffusers_oneflow.passes.base import custom_op
from diffusers_oneflow.provenance import where
from diffusers_oneflow.serialize import dumps, loads
from diffusers_oneflow.stored_values import Unreadable, Unwritable

from .test_capture import Outer, program_of


@pytest.fixture
def program():
    return program_of(Outer(), torch.randn(2, 3))


def described(program):
    """A program without the objects that it consists of."""
    index = {n: i for i, n in enumerate(program.graph.nodes)}

    def plain(value):
        return torch.fx.map_arg(value, lambda n: f"node {index[n]}")

    nodes = [
        (
            n.op,
            n.target if n.op == "call_function" else "",
            repr(plain(n.args)),
            repr(plain(n.kwargs)),
            where(n),
            shapes(n.meta["val"]),
        )
        for n in program.graph.nodes
        if n.op != "output"
    ]
    constants = [(t.dtype, t.tolist()) for t in program.constants.values()]
    used = sorted(q for name, q in program.weights.items())
    return nodes, len(program.inputs), used, constants, [index[n] for n in program.outputs], program.result.spec


def shapes(value):
    return [shapes(v) for v in value] if isinstance(value, (list, tuple)) else (tuple(value.shape), value.dtype)


@pytest.mark.parametrize("native", [None, False, True])
def test_what_is_read_is_what_was_written(program, native):
    done = passes.run(program, native) if native is not None else []
    read, reports = loads(dumps(program, done))
    assert described(read) == described(program)
    assert [(r.name, r.applied, r.near_misses) for r in reports] == [(r.name, r.applied, r.near_misses) for r in done]
    read.graph.lint()


def test_a_whole_unet_is_read_as_it_was(unet):
    program = program_of(unet, torch.randn(2, 4, 8, 8), torch.tensor(7), torch.randn(2, 5, 16))
    done = passes.run(program, True)
    read, reports = loads(dumps(program, done))
    assert described(read) == described(program) and dumps(read, reports) == dumps(program, done)


VALUES = [
    None, True, False, 0, -(2**40), "text", 0.1, -0.0, float("inf"), float("-inf"), [1, [2.0, None]], (1, 2), torch.Size([2, 3]),
    torch.float16, torch.bool, torch.strided, torch.channels_last, torch.contiguous_format, torch.device("cpu"),
    [], (), [torch.float32, (True, [])],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_every_kind_of_value_comes_back_with_its_type(value):
    written = json.loads(json.dumps(stored_values.write(value, {})))
    read = stored_values.read_value(written, [])
    assert repr(read) == repr(value) and type(read) is type(value)


def test_nan_comes_back():
    read = stored_values.read_value(json.loads(json.dumps(stored_values.write(float("nan"), {}))), [])
    assert read != read


@pytest.mark.parametrize(
    "value", [object(), 1j, {1, 2}, b"bytes", torch.ones(1), lambda: 0, slice(1)], ids=lambda v: type(v).__name__
)
def test_other_values_are_refused(value):
    with pytest.raises(Unwritable, match="a value of type"):
        stored_values.write(value, {})


def _document(program):
    data = dumps(program)
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["program"])


def _with(program, document):
    tensors = {str(i): t for i, t in zip(document["constants"], program.constants.values())}
    return save(tensors, {"program": json.dumps(document)})


def _set_op(name):
    def change(document):
        node = next(n for n in document["nodes"] if n[1] is not None)
        node[1] = name

    return change


def _set_result(tag, name):
    def change(document):
        document["result"] = [tag, name, []]

    return change


def _set_argument(value):
    def change(document):
        node = next(n for n in document["nodes"] if n[1] is not None)
        node[2] = [value]

    return change


def _set_made(op, value):
    def change(document):
        node = next(n for n in document["nodes"] if (n[1] is not None) == op)
        node[4] = value

    return change


def _drop(key):
    return lambda document: document.pop(key)


@pytest.mark.parametrize(
    "change",
    [
        _set_op("aten.no_such_op.default"), _set_op("os.system.default"), _set_op("aten.linear"), _set_op("__import__"),
        _set_op("prims.device_put.default"), _set_op("aten.__class__.default"),
        _set_result("output", "os:system"), _set_result("output", "builtins:dict"), _set_result("dataclass", "subprocess:Popen"),
        _set_result("namedtuple", "no.such.module:Name"), _set_result("sequence", "builtins:set"),
        _set_result("dict", "builtins:type"),
        _set_argument({"node": 10**6}), _set_argument({"dtype": "load"}), _set_argument({"layout": "float32"}),
        _set_argument({"pickle": "gASVAAA="}), _set_argument({"dtype": "float32", "node": 1}),
        _drop("nodes"), _drop("outputs"), _set_made(False, None), _set_made(False, {"of": [[[2], "float32"]]}),
        _set_made(True, [[2], "float33"]), _set_argument({"dtype": ["float32"]}), _set_result("dataclass", "torch:_dynamo"),
    ],
)  # fmt: skip
def test_what_was_not_written_here_is_refused(program, change):
    document = _document(program)
    loads(_with(program, document))
    change(document)
    with pytest.raises(Unreadable):
        loads(_with(program, document))


_LAZY = """
import builtins, sys
from diffusers_oneflow import engine, serialize, stored_values
engine.load()
serialize._op("no.such.op")
import torch
LAZY = [name for name in ("_dynamo", "_inductor", "_export", "onnx") if f"torch.{name}" not in sys.modules]
assert "onnx" in LAZY
def refuse(name, *args):
    raise SystemExit(f"imports {name}")
class Finder:
    find_spec = staticmethod(refuse)
sys.meta_path.insert(0, Finder)
for name in LAZY:
    try:
        stored_values.constant("dtype", name)
        raise SystemExit("not refused")
    except (stored_values.Unreadable, AttributeError):
        pass
    assert stored_values.kind_of("dataclass", f"torch:{name}.Thing") is None
assert serialize._op("aten.silu.default") and stored_values.constant("dtype", "float16") is torch.float16
"""


def test_reading_imports_nothing():
    done = subprocess.run([sys.executable, "-c", _LAZY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"PK\x03\x04" + bytes(100), bytes(8), save({"a": torch.ones(1)})])
def test_other_files_are_refused(data):
    with pytest.raises(Unreadable):
        loads(data)


def test_an_op_that_no_reader_would_know_is_not_written(program):
    node = next(n for n in program.graph.nodes if n.op == "call_function")
    node.target = custom_op("oneflow.unheard_of.default")(lambda x: x)
    with pytest.raises(Unwritable, match="unheard_of"):
        dumps(program)


def test_a_type_without_a_name_is_not_written(program):
    Local = collections.namedtuple("Local", "a")
    program.result.spec = ("namedtuple", Local, (("tensor", 0),))
    with pytest.raises(Unwritable, match="Local"):
        dumps(program)
