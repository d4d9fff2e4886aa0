"""Other sizes of a known model: the same program as torch.export's, or torch.export's."""

import copy
import threading
import types

import pytest
import torch

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig, passes, retrace, same_program, serialize, signature
from diffusers_oneflow.backend import dispatcher_of

from .test_capture import program_of
from .test_serialize import described

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ANEW = "captured anew for these sizes"


pytestmark = pytest.mark.usefixtures("no_grad")


def tidied(module, *tensors):
    program = program_of(module, *tensors)
    retrace.tidy(program)
    return program


def again(module, known, *tensors):
    flat = signature.flatten((tensors, {}), open_numbers=True)
    return retrace.retrace(
        module, list(tensors), lambda given: signature.rebuild_call(flat.spec, given), signature.flatten, known
    )


def unet_args(height, width, batch=2):
    return torch.randn(batch, 4, height, width), torch.tensor(7), torch.randn(batch, 5, 16)


def normal(program):
    """A rewritten program; the passes name and order placeholders as they come."""
    passes.run(program, True)
    nodes, *rest = described(serialize.loads(serialize.dumps(program))[0])
    return [n[1:2] + n[4:] for n in nodes if n[0] != "placeholder"], rest[1:3]


def test_it_gives_what_torch_export_gives(unet):
    known = tidied(unet, *unet_args(8, 8))
    for height, width, batch in ((16, 8, 2), (8, 24, 1)):
        args = unet_args(height, width, batch)
        assert normal(again(unet, [known], *args)) == normal(tidied(unet, *args))


def run(module, *calls):
    """``(origin of the program, why not anew)`` of each call; every result must be torch's."""
    # Torch may leave something in a module, which is another module then.
    in_torch = copy.deepcopy(module.eval())
    diffusers_oneflow.compile(module, OneFlowConfig(fallback="error", cache=None))
    found = []
    for args in calls:
        made, expected = module(*args), in_torch(*args)
        if not isinstance(made, torch.Tensor):
            made, expected = made[0], expected[0]
        torch.testing.assert_close(made, expected, **CLOSE)
        found.append(dispatcher_of(module).entries[-1].origin)
    return found, dispatcher_of(module)._builder.programs.differs


def test_sizes_of_a_unet(unet):
    found, _ = run(unet, *(unet_args(*size) for size in ((8, 8), (16, 8), (24, 24), (8, 8, 1), (7, 9), (9, 11), (12, 8))))
    # Odd sizes need another way up, and are known from then on.
    assert found == ["captured", ANEW, ANEW, ANEW, "captured", ANEW, ANEW]


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.tied = self.inner
        self.table = torch.arange(4.0)


class Sized(Base):
    """Its numbers depend on the size in all the ways that are followed."""

    def forward(self, x):
        n = x.shape[0]
        a, b = self.tied(x).chunk(2, -1)
        mask = torch.zeros(n, 1, device=x.device).masked_fill(torch.arange(n).unsqueeze(1) > n // 2, 2.0)
        return torch.cat([a * n, b.expand(n, 2)], -1) + self.table + mask


class Branches(Base):
    def forward(self, x):
        return x + 1 if x.shape[0] < 4 else x + 2


class Scales(Base):
    """A float that follows from a size is another number, not another size."""

    def forward(self, x):
        return x * (1.5 / x.shape[0])


class Flags(Base):
    def forward(self, x):
        return x.sum(0, keepdim=x.shape[0] % 2 == 0).reshape(4) + x


class Picks(Base):
    def __init__(self):
        super().__init__()
        self.other = torch.nn.Linear(4, 4)

    def forward(self, x):
        return (self.inner if x.shape[0] < 4 else self.other)(x)


class Swaps(Base):
    def forward(self, x):
        y = x * 2
        return x - y if x.shape[0] < 4 else y - x


class Keeps(Base):
    def forward(self, x):
        self.seen = x.shape[0]
        return x + self.seen


class AsksDevice(Base):
    def forward(self, x):
        return x + 1 if x.device.type == "cpu" and x.is_cpu and not x.is_meta else x + 2


class AsksExport(Base):
    def forward(self, x):
        return x + 1 if torch.compiler.is_exporting() and torch.compiler.is_compiling() else x + 1.0


class KeepsTable(Base):
    def forward(self, x):
        self.table = torch.arange(4.0).cos()
        return x + self.table


class KeepsLarge(Base):
    def __init__(self):
        super().__init__()
        self.large = torch.randn(1 << 18)

    def forward(self, x):
        return x + self.large[:4]


class KeepsMap(Base):
    """Only what more than two rows give it."""

    def __init__(self):
        super().__init__()
        self.place = types.SimpleNamespace(value=None)

    def forward(self, x):
        y = x * 2
        if x.shape[0] > 2:
            self.place.value = y
        return y + 1


@pytest.mark.parametrize("kind", [Sized, AsksDevice, Branches, KeepsTable])
def test_what_only_sizes_change_is_done_anew(kind):
    assert run(kind(), (torch.randn(2, 4),), (torch.randn(5, 4),), (torch.randn(3, 4),)) == (["captured", ANEW, ANEW], "")


@pytest.mark.parametrize("kind", [Scales, Flags, Picks, Swaps])
def test_what_changes_more_is_exported(kind):
    found, why = run(kind(), (torch.randn(2, 4),), (torch.randn(5, 4),))
    assert found == ["captured", "captured"] and why


def test_code_sees_that_it_is_exported():
    program = again(AsksExport(), [tidied(AsksExport(), torch.randn(2, 4))], torch.randn(3, 4))
    assert not torch.compiler.is_exporting() and not torch.compiler.is_compiling()
    assert [n.args[1] for n in program.graph.nodes if n.op == "call_function"] == [1]


class AsksElsewhere(Base):
    def forward(self, x):
        def ask():
            FOUND.append(bool(torch.compiler.is_exporting() or torch.compiler.is_compiling()))

        ask()
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return x + 1


FOUND = []


def test_other_threads_are_not_told_that_they_are_exported():
    known = tidied(AsksElsewhere(), torch.randn(2, 4))
    FOUND.clear()
    again(AsksElsewhere(), [known], torch.randn(3, 4))
    assert FOUND == [True, False]


def test_a_flag_that_another_thread_puts_back_says_nothing():
    with retrace._as_in_export():
        left = torch.compiler._is_exporting_flag
        assert left
    assert not left


def test_tables_are_not_kept_for_other_sizes():
    module = KeepsLarge()
    found, _ = run(module, (torch.randn(2, 4),), (torch.randn(5, 4),))
    kept = dispatcher_of(module)._builder.programs._captured.values()
    assert found == ["captured", ANEW] and 0 < sum(len(data) for group in kept for data in group) < 1 << 16


def test_a_stateful_module_is_refused_and_left_alone():
    module = Keeps()
    known = tidied(Branches(), torch.randn(2, 4))
    with pytest.raises(same_program.Differs, match="changes seen"):
        again(module, [known], torch.randn(3, 4))
    assert not hasattr(module, "seen")


def test_a_tensor_that_is_kept_of_the_inputs_is_a_state():
    module = KeepsMap()
    known = tidied(module, torch.randn(2, 4))
    with pytest.raises(same_program.Differs, match="changes place"):
        again(module, [known], torch.randn(3, 4))
    assert module.place.value is None


def test_the_module_keeps_its_tensors(unet):
    before = {name: id(t) for name, t in unet.state_dict(keep_vars=True).items()}
    known = tidied(unet, *unet_args(8, 8))
    again(unet, [known], *unet_args(16, 16))
    assert {name: id(t) for name, t in unet.state_dict(keep_vars=True).items()} == before
    assert not any(t.is_meta for t in unet.parameters())
