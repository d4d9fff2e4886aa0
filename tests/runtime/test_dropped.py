"""Dropped memory: whoever touches it, and however, finds what was there."""

import ctypes
import gc
import mmap
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from diffusers_oneflow import engine
from diffusers_oneflow.kernels import loader
from diffusers_oneflow.kernels.weights import _pack_filter, filter_sizes

native = engine.native()
pytestmark = pytest.mark.skipif(bool(native.release_refusal()), reason="memory cannot be released here")
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
FRESH = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED


def bits(tensor):
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()


def patiently(memory) -> str:
    """Drop it. A machine that is busy moves pages about, and may hold one for longer than a drop waits: it is refused then,
    nothing is lost, and a later one succeeds."""
    for _ in range(10):
        if (outcome := memory.drop()) != "refused":
            break
        time.sleep(0.5)
    return outcome


class Held:
    """A weight whose memory was dropped; `before` has its bytes."""

    def __init__(self, weight, drop=True):
        bits(weight).view(np.int32)[77::1001] = 0x7FA12345  # a signalling NaN with a payload
        self.weight, self.before, self.packed = weight, bits(weight).copy(), _pack_filter(weight)
        source = loader.pack().filter_source(weight.data_ptr(), *filter_sizes(weight), self.packed.data_ptr())
        self.memory = native.Released(weight.data_ptr(), weight.nbytes, source)
        if drop:
            assert patiently(self.memory) == "dropped", self.memory.refusal

    def unchanged(self):
        return np.array_equal(bits(self.weight), self.before)


def held(*shape, **options):
    return Held(torch.randn(*shape or (512, 512)), **options)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


SHAPES = [(512, 512), (77, 4001), (256, 128, 3, 3), (97, 33, 7, 7), (300, 64, 1, 1), (64, 500, 1, 3), (40, 5, 13, 13), (1, 90000)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed"])
def test_every_layout_comes_back_to_the_bit(shape, layout):
    weight = torch.randn(shape)
    if layout == "channels last" and len(shape) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    if layout == "transposed":
        weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    made = Held(weight)
    pages = (weight.data_ptr() + weight.nbytes) // PAGE - -(-weight.data_ptr() // PAGE)
    assert weight.nbytes - 3 * PAGE < made.memory.bytes <= pages * PAGE
    for at in (0, weight.numel() // 2, weight.numel() - 1):
        assert bits(weight)[4 * at] == made.before[4 * at]
    assert made.memory.touched
    assert made.unchanged() and made.memory.bytes == 0
    assert patiently(made.memory) == "dropped" and made.memory.bytes > 0 and not made.memory.touched
    made.memory.give_back()
    assert made.memory.bytes == 0 and made.unchanged()


def test_memory_falls_and_comes_back():
    made = held(4096, 4096, drop=False)
    full = resident()
    assert patiently(made.memory) == "dropped"
    assert full - resident() > 0.95 * made.weight.nbytes
    made.memory.give_back()
    assert full - resident() < 0.05 * made.weight.nbytes


def test_a_touch_brings_back_a_part():
    made = held(4096, 1024)
    assert made.weight[2000, 5] == made.weight[2000, 5]
    assert made.memory.touched and 0 < made.weight.nbytes - made.memory.bytes < made.weight.nbytes // 8
    assert made.unchanged()


def test_what_was_written_is_told_and_kept():
    made = held()
    made.weight[300, 300] = 5
    assert patiently(made.memory) == "changed" and made.memory.bytes == 0 and made.weight[300, 300] == 5
    made.weight[300, 300] = 6  # ordinary memory by now
    made.before[4 * (300 * 512 + 300) :][:4] = np.frombuffer(np.float32(6).tobytes(), np.uint8)
    assert made.unchanged()


def test_the_same_number_written_is_no_change():
    made = held()
    made.weight.copy_(made.weight.clone())
    assert made.memory.touched and patiently(made.memory) == "dropped"


def test_a_sign_of_zero_is_a_change():
    weight = torch.zeros(512, 512)
    made = Held(weight)
    weight[200, 200] = -0.0
    assert patiently(made.memory) == "changed" and np.signbit(weight[200, 200].item())


def test_system_calls_read_and_write_it(tmp_path):
    made = held(1024, 1024)
    view = memoryview(bits(made.weight))
    path = tmp_path / "written"
    with open(path, "wb", buffering=0) as file:
        while view:
            view = view[file.write(view) :]
    assert path.read_bytes() == made.before.tobytes()
    patiently(made.memory)
    source, sink = os.pipe()
    os.write(sink, b"x" * 4096)
    assert os.readv(source, [memoryview(bits(made.weight))[100_000:104_096]]) == 4096
    made.before[100_000:104_096] = ord("x")
    assert made.unchanged() and patiently(made.memory) == "changed"
    os.close(source), os.close(sink)


def test_direct_io_reads_it(tmp_path):
    made = held(1024, 1024)
    start = -made.weight.data_ptr() % PAGE
    try:
        file = os.open(tmp_path / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    except OSError:
        pytest.skip("no direct input and output in this file system")
    assert os.write(file, memoryview(bits(made.weight))[start : start + 64 * PAGE]) == 64 * PAGE
    os.close(file)
    assert (tmp_path / "direct").read_bytes() == made.before[start : start + 64 * PAGE].tobytes()


def test_threads_see_the_same_while_it_comes_and_goes():
    made, stop, wrong = held(1024, 1024), threading.Event(), []

    def read():
        while not stop.is_set():
            if not made.unchanged():
                wrong.append("other numbers")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    outcomes = {patiently(made.memory) for _ in range(60)}
    stop.set()
    for reader in readers:
        reader.join()
    assert outcomes == {"dropped"} and not wrong


@pytest.mark.parametrize("back", [False, True])
def test_no_write_is_lost_while_it_is_dropped(back):
    weight = torch.zeros(1024, 1024)
    made = Held(weight)
    row, stop, counts = weight.view(torch.int32)[511], threading.Event(), [0]
    start = row.clone()

    def write():
        while not stop.is_set():
            row.add_(1)
            counts[0] += 1
            if back:
                row.sub_(1)

    writer = threading.Thread(target=write)
    writer.start()
    outcomes, end = set(), time.monotonic() + 300
    try:
        # What is written back at once may never be seen while it is there.
        while counts[0] < 500 or ("dropped" if back else "changed") not in outcomes:
            outcomes.add(made.memory.drop())
            assert time.monotonic() < end, f"the writer was never met: {outcomes}"
    finally:
        stop.set()
        writer.join()
    assert torch.equal(row, start if back else start + counts[0])


def test_a_watch_gets_ordinary_memory():
    made = held(1024, 1024)
    watch = native.WriteWatch([(made.weight.data_ptr(), made.weight.nbytes)])
    assert made.memory.bytes == 0 and made.memory.touched
    if watch.tracked:
        assert made.memory.drop() == "refused" and made.unchanged()
        assert made.memory.refusal == "a watch tracks some of it"
    made.weight[1, 1] = 3
    assert watch.changed() == [0]
    del watch
    assert patiently(made.memory) == "changed"


def test_memory_that_a_watch_has_lost_can_be_dropped():
    """Somebody's weight was freed under a watch that lives on, and its addresses are another's by now."""
    size = 512 * PAGE
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    lost = native.WriteWatch([(address, size), (address, 10 * PAGE)])
    tracked = lost.tracked
    assert libc.mmap(address + PAGE, size - PAGE, 3, FRESH, -1, 0) == address + PAGE
    made = Held(torch.frombuffer(area, dtype=torch.float32).view(512, -1))
    assert made.memory.bytes == size and made.unchanged()
    assert lost.changed() == [0, 1] and (not tracked or not lost.tracked)


def test_what_cannot_be_dropped_is_refused_and_stays(tmp_path):
    small = held(16, 16, drop=False)
    assert small.memory.drop() == "refused" and small.unchanged()
    assert small.memory.refusal == "it is too small"
    assert sum(size for _, size in small.memory.edges) == small.weight.nbytes
    shared = Held(torch.randn(512, 512).share_memory_(), drop=False)
    assert shared.memory.drop() == "refused" and shared.unchanged()
    path = tmp_path / "file"
    path.write_bytes(torch.randn(512, 512).numpy().tobytes())
    mapped = Held(torch.from_file(str(path), shared=False, size=512 * 512).view(512, 512), drop=False)
    assert mapped.memory.drop() == "refused" and mapped.unchanged()
    # Read only, never copied: the file's own pages.
    other = tmp_path / "other"
    other.write_bytes(bytes(1 << 20))
    clean = torch.from_file(str(other), shared=False, size=512 * 512).view(512, 512)
    packed = _pack_filter(clean)
    source = loader.pack().filter_source(clean.data_ptr(), *filter_sizes(clean), packed.data_ptr())
    memory = native.Released(clean.data_ptr(), clean.nbytes, source)
    assert memory.drop() == "refused" and not clean.any()


def test_one_piece_of_memory_is_dropped_once():
    made = held(1024, 1024)
    part = made.weight[100:900]
    packed = _pack_filter(part)
    source = loader.pack().filter_source(part.data_ptr(), *filter_sizes(part), packed.data_ptr())
    other = native.Released(part.data_ptr(), part.nbytes, source)
    assert other.drop() == "refused" and made.unchanged()
    del other
    assert patiently(made.memory) == "dropped" and made.unchanged()


def test_filters_out_of_order_have_no_source():
    for weight in (torch.randn(8, 16)[:, ::2], torch.randn(16, 8)[::2], torch.randn(4, 4, 3, 3).transpose(2, 3)):
        assert loader.pack().filter_source(weight.data_ptr(), *filter_sizes(weight), 0) is None


def test_edges_are_what_is_never_dropped():
    made = held(1000, 333)
    (first, head), (last, tail) = made.memory.edges
    assert first == made.weight.data_ptr() and last + tail == first + made.weight.nbytes
    assert (first + head) % PAGE == last % PAGE == 0 and max(head, tail) < PAGE
    # There is none where the weight happens to begin or to end with a page.
    if head:
        bits(made.weight)[0] ^= 1
    if tail:
        bits(made.weight)[-1] ^= 1
    assert not made.memory.touched


def in_child(check):
    """Run in a forked process; the process must end well."""
    pid = os.fork()
    if pid == 0:
        gc.disable()  # what it collects may wait for threads that a child has not
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def test_forked_children_see_it():
    made, touched = held(2048, 1024), held()
    assert touched.weight[5, 5] == touched.weight[5, 5]
    touched.weight[100] = 3.0  # the child has this, not what was packed

    def check():
        good = made.unchanged() and bool((touched.weight[100] == 3.0).all())
        made.weight[7] = 1.0
        return good and bool((made.weight[7] == 1.0).all()) and not np.array_equal(bits(made.weight), made.before)

    in_child(check)
    assert made.memory.bytes > 0  # not this process's matter
    in_child(lambda: (in_child(made.unchanged), made.unchanged())[1])
    assert made.unchanged()


def test_memory_that_a_child_shares_can_be_dropped():
    made = held(drop=False)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reading, 1)
        os._exit(0 if made.unchanged() else 1)
    assert patiently(made.memory) == "dropped"
    os.write(writing, b"x")
    assert os.waitpid(pid, 0)[1] == 0 and made.unchanged()
    os.close(reading), os.close(writing)


def test_commands_start_beside_it():
    made = held(2048, 1024)
    assert subprocess.run(["true"]).returncode == 0
    assert subprocess.run(["true"], preexec_fn=lambda: None).returncode == 0
    assert made.memory.bytes > 0 and made.unchanged()


ALONE = """
import os, sys, torch
sys.path.insert(0, {root!r})
from tests.runtime.test_dropped import held
made = held(1024, 1024)
{body}
"""


def alone(body):
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    made = subprocess.run([sys.executable, "-c", ALONE.format(root=root, body=body)], capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr[-2000:]
    return made.stdout


def test_closing_all_descriptors_loses_nothing():
    body = "out = os.dup(1)\nos.closerange(0, out), os.closerange(out + 1, 4096)\n"
    assert alone(body + "os.write(out, str(made.unchanged()).encode())\nos._exit(0)") == "True"


def test_a_process_ends_well_with_dropped_memory():
    assert alone("import atexit\natexit.register(lambda: print(made.unchanged()))") == "True\n"


def test_memory_that_was_unmapped_is_forgotten():
    size = 128 * PAGE
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    weight = torch.frombuffer(area, dtype=torch.float32).view(256, -1)
    made = Held(weight)
    assert libc.munmap(address + size // 2, size // 2) == 0
    made.memory.give_back()
    assert np.array_equal(bits(weight)[: size // 2], made.before[: size // 2])
    assert libc.mmap(address + size // 2, size // 2, 3, FRESH, -1, 0) == address + size // 2  # the area's owner unmaps it
