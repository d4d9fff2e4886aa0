"""Released weights: the same results as packed ones, and the right numbers for everybody who asks for them."""

import copy
import ctypes
import gc
import io
import multiprocessing
import pickle
import subprocess
import threading
import warnings

import pytest
import torch

import diffusers_oneflow
from diffusers_oneflow import EngineUnavailable, FallbackWarning, OneFlowConfig, backend, engine
from diffusers_oneflow.backend import dispatcher_of

pytestmark = pytest.mark.skipif(bool(engine.native().release_refusal()), reason="memory cannot be released here")


class Layers(torch.nn.Module):
    """(n, 64, h, w) -> (n, 600); `tied` reads the linear layer's weight again, as it is."""

    def __init__(self, tied=False):
        super().__init__()
        self.conv, self.linear, self.tied = torch.nn.Conv2d(64, 256, 3, padding=1), torch.nn.Linear(256, 600), tied

    def forward(self, x):
        made = self.linear(self.conv(x).mean((2, 3)))
        return made + self.linear.weight.sum(1) if self.tied else made


def attached(module=None, weights="release", **options):
    module = diffusers_oneflow.compile((module or Layers()).eval(), OneFlowConfig(weights=weights, **options))
    with torch.no_grad():
        module(image())
    return module


def image(seed=7):
    return torch.randn(2, 64, 6, 6, generator=torch.Generator().manual_seed(seed))


def released(module):
    return dispatcher_of(module).released_bytes


def bits(tensor):
    return tensor.detach().contiguous().view(torch.int32)


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(bits(a[k]), bits(b[k])) for k in a)


def kept(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def payloads(module):
    """NaN payloads in the memory of the weights, where no result reads them twice."""
    with torch.no_grad():
        for p in module.parameters():
            bits(p).view(-1)[::997] = 0x7FA12345
    return module


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_results_are_those_of_packed_weights(memory_format):
    module = Layers().to(memory_format=memory_format)
    packed = attached(copy.deepcopy(module), "packed")(image())
    attached(module)
    assert released(module) > 0.9 * sum(p.nbytes for p in module.parameters())
    assert torch.equal(module(image()), packed)
    assert diffusers_oneflow.explain(module, show=False)["Layers"].released_bytes == released(module)


READERS = {
    "state_dict": lambda m: m.state_dict(),
    "clone": kept,
    "deepcopy": lambda m: copy.deepcopy(m).state_dict(),
    "pickle": lambda m: pickle.loads(pickle.dumps(m)).state_dict(),
    "save": lambda m: saved(m),
    "data": lambda m: {k: p.data for k, p in m.named_parameters()},
    "numpy": lambda m: {k: torch.from_numpy(p.detach().numpy()) for k, p in m.named_parameters()},
    "detach": lambda m: diffusers_oneflow.detach(m).state_dict(),
    "to": lambda m: {k: v.view(torch.float32) for k, v in copy.deepcopy(m).to(torch.float64).float().state_dict().items()},
}


def saved(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@torch.no_grad()
def test_whoever_reads_sees_all_numbers(read, request):
    module = Layers()
    if "[to]" not in request.node.name:  # float64 quiets a NaN
        payloads(module)
    before = kept(module)
    attached(module)
    assert released(module)
    assert same_state(read(module), before)
    assert same_state(kept(module), before)


@torch.no_grad()
def test_safetensors_are_written_from_released_weights(tmp_path, unet):
    before = kept(unet)
    diffusers_oneflow.compile(unet, OneFlowConfig(weights="release"))
    unet(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 5, 16))
    unet.save_pretrained(tmp_path)
    assert same_state(type(unet).from_pretrained(tmp_path).state_dict(), before)


@torch.no_grad()
def test_detached_weights_are_ordinary_memory():
    module = payloads(Layers())
    before = kept(module)
    attached(module)
    fills = engine.native().fills
    gc.collect()  # they are counted for all models
    diffusers_oneflow.detach(module)
    brought = fills()
    assert same_state(kept(module), before) and fills() == brought
    assert torch.equal(bits(module(image())), bits(module._call_impl(image())))


@torch.no_grad()
def test_a_fallback_to_torch_reads_them_and_they_are_dropped_again():
    module = Layers()
    expected, fast = module(image()), None
    attached(module)
    fast, full = module(image()), released(module)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        module(image().requires_grad_())
    assert released(module) < full / 2
    assert torch.equal(module._call_impl(image()), expected)
    assert torch.equal(module(image()), fast) and released(module) == full


WRITES = {
    "data": lambda p: p.data.add_(1.0),
    "numpy": lambda p: p.detach().numpy().__imul__(2.0),
    "first": lambda p: p.data.view(-1)[0].add_(3.0),
    "last": lambda p: p.data.view(-1)[-1].add_(3.0),
    "middle": lambda p: p.data.view(-1)[p.numel() // 2].add_(3.0),
    "copy": lambda p: p.data.copy_(torch.randn_like(p)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("name", ["conv.weight", "linear.weight"])
@torch.no_grad()
def test_writes_are_seen_and_kept(write, name):
    module = attached()
    for _ in range(2):
        before = module(image())
        write(module.get_parameter(name))
        now, state = module(image()), kept(module)
        assert not torch.equal(now, before)
        other = Layers()
        other.load_state_dict(state)
        assert torch.equal(attached(other, "packed")(image()), now)
        torch.testing.assert_close(now, module._call_impl(image()), rtol=2e-5, atol=2e-5)
    assert dispatcher_of(module).record.built == 1
    module(image())
    assert released(module) > 0


@torch.no_grad()
def test_peft_merges_into_released_weights():
    from peft import LoraConfig, inject_adapter_in_model

    module = Layers()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["linear"], init_lora_weights=False), module)
    attached(module)
    assert released(module)
    for change in (module.linear.merge, module.linear.unmerge, module.linear.merge):
        change()
        torch.testing.assert_close(module(image()), module._call_impl(image()), rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_another_dtype_and_back():
    module = attached()
    before = kept(module)
    module.to(torch.bfloat16)
    assert all(torch.equal(v, before[k].bfloat16()) for k, v in module.state_dict().items())
    module(image().bfloat16())
    module.float()
    torch.testing.assert_close(module(image()), module._call_impl(image()), rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_a_weight_that_every_call_reads_stays_in_memory():
    module = Layers(tied=True)
    expected = attached(copy.deepcopy(module), "packed")(image())
    attached(module)
    for _ in range(6):
        assert torch.equal(module(image()), expected)
    gc.collect()
    fills = engine.native().fills()
    module(image())
    assert engine.native().fills() == fills and released(module) > module.conv.weight.nbytes / 2
    module.linear.weight.data += 1
    torch.testing.assert_close(module(image()), module._call_impl(image()), rtol=2e-5, atol=2e-4)


@torch.no_grad()
def test_tied_weights_and_shared_storage():
    module = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)]).eval()
    module[1].weight = module[0].weight
    module[3].weight = torch.nn.Parameter(module[2].weight.data[:])
    x, before = torch.randn(3, 256), kept(module)
    diffusers_oneflow.compile(module, OneFlowConfig(weights="release", fallback="error"))
    for _ in range(3):
        torch.testing.assert_close(module(x), module._call_impl(x), rtol=2e-5, atol=2e-5)
    assert same_state(kept(module), before)
    module[2].weight.data.mul_(2)
    module[1].weight.data.mul_(2)
    for _ in range(2):
        torch.testing.assert_close(module(x), module._call_impl(x), rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_two_modules_on_the_same_weights():
    one = Layers()
    two = Layers()
    two.conv, two.linear = copy.copy(one.conv), copy.copy(one.linear)
    attached(one), attached(two)
    one.linear.weight.data += 1
    for module in (one, two, one, two):
        torch.testing.assert_close(module(image()), module._call_impl(image()), rtol=2e-5, atol=2e-5)
    diffusers_oneflow.detach(one)
    one.conv.weight.data += 1
    torch.testing.assert_close(two(image()), two._call_impl(image()), rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_hoisted_results_follow_writes_and_survive_reads(unet):
    unet = type(unet)(**{**unet.config, "cross_attention_dim": 1024, "attention_head_dim": 32, "block_out_channels": (64, 64)})
    diffusers_oneflow.compile(unet.eval(), OneFlowConfig(weights="release", hoist=True, fallback="error"))
    args = torch.randn(1, 4, 8, 8), 1, torch.randn(1, 5, 1024)

    def right():
        made = unet(*args).sample
        torch.testing.assert_close(made, unet._call_impl(*args).sample, rtol=1e-4, atol=1e-4)
        return made

    name = next(n for n, p in unet.named_parameters() if "attn2.to_k" in n)
    first = right()
    right()
    entry = dispatcher_of(unet).entries[0]
    assert entry.hoisted
    unet.get_parameter(name).data.mul_(3)
    assert not torch.equal(right(), first)


@torch.no_grad()
def test_two_modules_in_two_threads():
    expected = [attached(Layers(), "packed") for _ in range(2)]
    modules = [attached(copy.deepcopy(diffusers_oneflow.detach(m))) for m in expected]
    results = [m._call_impl(image()) for m in modules]
    wrong = []

    def run(module, result):
        state = kept(module)
        with torch.no_grad():
            for i in range(30):
                good = torch.allclose(module(image()), result, rtol=2e-5, atol=2e-5)
                if not good or (i % 5 == 0 and not same_state(module.state_dict(), state)):
                    wrong.append(i)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(modules, results)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_dropping_the_module_leaves_its_tensors_whole():
    module = payloads(Layers())
    before = kept(module)
    attached(module)
    state = {k: v for k, v in module.state_dict().items()}
    del module
    gc.collect()
    assert same_state(state, before)


def send(module, queue):
    queue.put({k: bits(v).sum(dtype=torch.int64).item() for k, v in module.state_dict().items()})


@torch.no_grad()
def test_children_see_them():
    module = payloads(Layers())
    sums = {k: bits(v).sum(dtype=torch.int64).item() for k, v in module.state_dict().items()}
    attached(module)
    assert subprocess.run(["true"], preexec_fn=lambda: None).returncode == 0 and released(module)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    try:
        child = context.Process(target=send, args=(module, queue), daemon=True)
        child.start()
        child.join(300)
    finally:
        torch.set_num_threads(threads)
    assert child.exitcode == 0 and queue.get() == sums
    assert released(module)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@torch.no_grad()
def test_memory_falls():
    attached()
    base = resident()
    module = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(24)]).eval()
    weights, x = sum(p.nbytes for p in module.parameters()), torch.randn(2, 1024)
    diffusers_oneflow.compile(module, OneFlowConfig(weights="release", fallback="error"))
    module(x)
    assert resident() - base < 1.15 * weights
    kept_state = kept(module)
    del kept_state
    module(x)
    assert resident() - base < 1.15 * weights
    diffusers_oneflow.detach(module)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    assert resident() - base < 1.15 * weights


def test_where_it_is_not_possible_nothing_changes(monkeypatch):
    class Native:
        def release_refusal(self):
            return "the kernel is too old"

    monkeypatch.setattr(backend.engine, "native", Native)
    module = Layers()
    with pytest.raises(EngineUnavailable, match=r'weights="release" is not possible here: the kernel is too old; or use'):
        diffusers_oneflow.compile(module, OneFlowConfig(weights="release"))
    assert dispatcher_of(module) is None
