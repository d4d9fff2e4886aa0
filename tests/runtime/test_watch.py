"""The watch over memory: whoever writes, the next call tells; what is as it was is not reported."""

import ctypes
import mmap
import os
import random
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_oneflow import engine

WriteWatch = engine.native().WriteWatch
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MAP_FIXED = 0x10
MADV_DONTNEED, MADV_HUGEPAGE = 4, 14


def place(*tensors):
    return [(t.data_ptr(), t.nbytes) for t in tensors]


def watch(*tensors, track=True):
    return WriteWatch(place(*tensors), track)


PROBE = torch.zeros(1 << 18)
TRACKS = watch(PROBE).tracked
needs_tracking = pytest.mark.skipif(not TRACKS, reason="this kernel does not track writes")
both = pytest.mark.parametrize("track", [True, False], ids=["tracked", "hashed"])


def mapped(size, address=0, flags=0, fd=-1):
    """The address of a private mapping, which no one frees but the test."""
    anonymous = mmap.MAP_ANONYMOUS if fd < 0 else 0
    at = libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | anonymous | flags, fd, 0)
    assert at not in (None, ctypes.c_void_p(-1).value)
    return at


def view(address, size):
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def bytes_of(tensor):
    return tensor.view(torch.uint8).numpy()


def from_pipe(tensor, read):
    """Fills the first bytes from a pipe: the kernel writes, not this process's code."""
    target = bytes_of(tensor)[: min(4096, tensor.nbytes)]
    source, sink = os.pipe()
    os.write(sink, bytes(target ^ 0xFF))
    os.close(sink)
    with os.fdopen(source, "rb", buffering=0) as file:
        assert read(file, memoryview(target)) == len(target)


def through_proc(tensor):
    """As a debugger writes."""
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(tensor.data_ptr() + tensor.nbytes // 2)
        memory.write(bytes([bytes_of(tensor)[tensor.nbytes // 2] ^ 1]))


def in_a_thread(tensor):
    thread = threading.Thread(target=lambda: tensor.data.add_(1))
    thread.start()
    thread.join()


def add_to_data(tensor):
    tensor.data += 1


def add_one(tensor, at):
    bytes_of(tensor)[at] += 1


WRITES = {
    "data": add_to_data,
    "copy": lambda t: t.copy_(t + 1),
    "numpy": lambda t: np.add(t.numpy(), 1, out=t.numpy()),
    "first byte": lambda t: add_one(t, 0),
    "last byte": lambda t: add_one(t, -1),
    "memset": lambda t: ctypes.memset(t.data_ptr() + t.nbytes // 2, int(bytes_of(t)[t.nbytes // 2]) ^ 1, 1),
    "readinto": lambda t: from_pipe(t, lambda file, target: file.readinto(target)),
    "readv": lambda t: from_pipe(t, lambda file, target: os.readv(file.fileno(), [target])),
    "/proc": through_proc,
    "thread": in_a_thread,
}


@both
@pytest.mark.parametrize("size", [1, 300, 30_000, 1_000_000])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_each_write_is_reported_once(write, size, track):
    tensor = torch.arange(size + 6, dtype=torch.float32)[3:-3]
    seen = watch(tensor, track=track)
    assert seen.changed() == []
    for _ in range(3):
        write(tensor)
        assert seen.changed() == [0]
        assert seen.changed() == []


@both
@pytest.mark.parametrize("size", [16, 100_000])
def test_writes_around_a_range_are_none(size, track):
    base = torch.zeros(size + 2)
    seen = watch(base[1:-1], track=track)
    base[0] = base[-1] = 1
    assert seen.changed() == []


@both
def test_ranges_on_one_page_are_told_apart(track):
    parts = torch.zeros(64 * 16).split(16)
    seen = watch(*parts, track=track)
    for i in (0, 17, 63):
        parts[i][i % 16] += 1
        assert seen.changed() == [i]
    parts[5].add_(1)
    parts[9].add_(1)
    assert seen.changed() == [5, 9]


@both
def test_an_equal_value_is_no_change(track):
    tensor = torch.randn(500_000)
    seen = watch(tensor, track=track)
    tensor.mul_(1.0)
    assert seen.changed() == []
    tensor.add_(1).sub_(1)
    assert seen.changed() == [0]  # it rounds
    tensor[250_000] += 1
    assert seen.changed() == [0]


@both
def test_many_ranges(track):
    tensors = [torch.zeros(random.Random(i).choice([7, 320, 9_000, 60_000])) for i in range(700)]
    seen = watch(*tensors, track=track)
    assert seen.changed() == []
    for i in range(0, 700, 50):
        tensors[i][-1] = 1
        assert seen.changed() == [i]
    for tensor in tensors:
        tensor.data += 1
    assert seen.changed() == list(range(700))
    assert seen.changed() == []


@needs_tracking
def test_only_what_cannot_be_tracked_is_hashed():
    large, small = torch.zeros(1 << 20), torch.zeros(50)
    tracked = watch(large, small)
    assert tracked.tracked and small.nbytes <= tracked.hashed_bytes < small.nbytes + 2 * PAGE
    hashed = watch(large, small, track=False)
    assert not hashed.tracked and hashed.hashed_bytes == large.nbytes + small.nbytes


@both
def test_watches_do_not_hide_writes_from_each_other(track):
    base = torch.zeros(400_000)
    whole, left, right = watch(base, track=track), watch(base[:250_001], track=track), watch(base[149_999:], track=track)
    base[200_000] = 1  # in all
    assert left.changed() == [0]
    late = watch(base[100_000:300_000], track=track)
    assert right.changed() == [0] and whole.changed() == [0] and late.changed() == []
    base[1] = 1
    assert (right.changed(), whole.changed(), left.changed()) == ([], [0], [0])
    base[200_000] = 2
    base[399_000] = 2
    del left, late
    assert (right.changed(), whole.changed()) == ([0], [0])
    del whole
    base[200_000] = 3
    assert right.changed() == [0]
    again = watch(base, base[7:], track=track)
    base[3] = 4
    assert (again.changed(), right.changed()) == ([0], [])
    base[300_000] = 5
    assert (right.changed(), again.changed()) == ([0], [0, 1])


def tracked_pages(address, size):
    """How many of the pages belong to a mapping that is registered for tracking."""
    pages, current = 0, (0, 0)
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            head, _, rest = line.partition(" ")
            if "-" in head:
                current = tuple(int(part, 16) for part in head.split("-"))
            elif head == "VmFlags:" and "uw" in rest.split():
                pages += max(0, min(current[1], address + size) - max(current[0], address)) // PAGE
    return pages


@needs_tracking
def test_tracking_ends_with_the_last_watch():
    base = mapped(100 * PAGE)
    whole = WriteWatch([(base, 100 * PAGE)])
    part = WriteWatch([(base + 10 * PAGE, 20 * PAGE), (base + 50 * PAGE, 20 * PAGE)])
    assert tracked_pages(base, 100 * PAGE) == 100
    del whole
    assert tracked_pages(base, 100 * PAGE) == 40
    other = WriteWatch([(base + 20 * PAGE, 20 * PAGE)])
    assert tracked_pages(base, 100 * PAGE) == 50
    del part
    assert tracked_pages(base, 100 * PAGE) == 20
    view(base, 100 * PAGE)[25 * PAGE] = 1
    assert other.changed() == [0]
    del other
    assert tracked_pages(base, 100 * PAGE) == 0
    libc.munmap(base, 100 * PAGE)


@both
@pytest.mark.parametrize("huge", [False, True])
def test_dropped_pages_and_huge_ones(track, huge):
    size = 8 << 20
    base = mapped(size)
    if huge:
        libc.madvise(base, size, MADV_HUGEPAGE)
    data = view(base, size)
    data[:] = 1
    seen = WriteWatch([(base + i * (size // 64) + 8, size // 64 - 16) for i in range(64)], track)
    assert seen.changed() == []
    data[size // 2 + 100] = 2
    assert seen.changed() == [32]
    libc.madvise(base + (2 << 20), 4 << 20, MADV_DONTNEED)
    assert seen.changed() == list(range(16, 48))
    assert seen.changed() == []
    libc.madvise(base, 2 << 20, MADV_DONTNEED)
    assert data[: 4 << 20].sum() == 0
    assert seen.changed() == list(range(16))
    data[3 << 20] = 3
    data[3 << 20 | 4096] = 3
    assert seen.changed() == [24]
    del seen
    libc.munmap(base, size)


@both
def test_memory_that_was_never_touched(track):
    base = mapped(1 << 20)
    seen = WriteWatch([(base, 1 << 20)], track)
    assert seen.changed() == []
    view(base, 1 << 20)[-1] = 1
    assert seen.changed() == [0]
    libc.munmap(base, 1 << 20)


@needs_tracking
def test_what_is_left_of_freed_memory_is_tracked_no_more():
    base = mapped(100 * PAGE)
    seen, other = WriteWatch([(base, 100 * PAGE)]), WriteWatch([(base + 60 * PAGE, 20 * PAGE)])
    libc.munmap(base + 20 * PAGE, 20 * PAGE)
    assert seen.changed() == [0] and not seen.tracked
    assert tracked_pages(base, 100 * PAGE) == 20 and other.tracked
    del other
    assert tracked_pages(base, 100 * PAGE) == 0
    libc.munmap(base, 100 * PAGE)


@both
def test_freed_memory_counts_as_changed(track):
    size = 64 * PAGE
    base = mapped(4 * size)
    view(base, 4 * size)[:] = 1
    seen = WriteWatch([(base + i * size, size) for i in range(4)], track)
    libc.munmap(base + size + 8 * PAGE, PAGE)
    for _ in range(3):
        assert seen.changed() == [1]
    # Mapped anew: other content, then the same that it had.
    libc.munmap(base + 2 * size, size)
    mapped(size, base + 2 * size, MAP_FIXED)
    other = WriteWatch([(base + 2 * size, size)], track)
    assert seen.changed() == [1, 2] and seen.changed() == [1]
    mapped(size, base + 2 * size, MAP_FIXED)
    assert seen.changed() == [1] and not seen.tracked
    view(base, 4 * size)[2 * size] = 1
    view(base, 4 * size)[3 * size] = 2
    assert seen.changed() == [1, 2, 3] and other.changed() == [0]
    del seen, other
    libc.munmap(base, 4 * size)


@both
def test_private_mappings_of_files(tmp_path, track):
    path = tmp_path / "weights"
    path.write_bytes(bytes(1 << 20))
    tensor = torch.from_file(str(path), shared=False, size=1 << 18)
    array = np.memmap(path, np.float32, mode="c")
    seen = watch(tensor, torch.from_numpy(array), track=track)
    assert seen.changed() == [] and seen.tracked == (track and TRACKS)
    tensor.data += 1
    assert seen.changed() == [0]
    array[-1] = 3
    assert seen.changed() == [1]
    again = watch(tensor, track=track)
    tensor[5] = 7
    assert (seen.changed(), again.changed()) == ([0], [0])


@both
def test_the_file_under_a_private_mapping_changes(tmp_path, track):
    path = tmp_path / "weights"
    path.write_bytes(bytes(1 << 20))
    tensor = torch.from_file(str(path), shared=False, size=1 << 18)
    seen = watch(tensor, track=track)

    def write():
        with open(path, "r+b") as file:
            file.seek(1 << 19)
            file.write(os.urandom(8))

    write()  # at once, when a clock tells nothing yet
    assert seen.changed() == [0]
    write()
    assert seen.changed() == [0]
    time.sleep(3.2 if track else 0)
    assert seen.changed() == seen.changed() == []
    tensor[7] = 1
    assert seen.changed() == [0]
    late = watch(tensor, track=track)
    for read in (False, True):
        libc.madvise(tensor.data_ptr(), tensor.nbytes, MADV_DONTNEED)  # the file's content again
        assert not read or tensor.sum() != 1
        assert late.changed() == seen.changed() == [0] and late.changed() == seen.changed() == []
        tensor[7] = 1
        assert late.changed() == seen.changed() == [0]
    write()
    assert seen.changed() == late.changed() == [0]
    os.truncate(path, 1 << 19)
    assert seen.changed() == seen.changed() == [0]


@both
def test_shared_mappings(tmp_path, track):
    path = tmp_path / "shared"
    path.write_bytes(bytes(1 << 20))
    mine, other = (np.memmap(path, np.uint8, mode="r+") for _ in range(2))
    seen = WriteWatch([(mine.ctypes.data, mine.nbytes)], track)
    assert not seen.tracked
    other[12345] = 1
    assert seen.changed() == [0]
    assert seen.changed() == []


def in_child(check):
    """Whether the check holds in a forked child."""
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = check()
        finally:
            os._exit(0 if good else 1)
    return os.waitpid(child, 0)[1] == 0


@both
def test_a_forked_child_sees_its_own_writes(track):
    tensor = torch.zeros(100_000)
    seen = watch(tensor, track=track)
    tracked = seen.tracked

    def check():
        good = seen.changed() == [] and not seen.tracked
        tensor.numpy()[:] += 1  # torch would wait for the threads of its parent
        good &= seen.changed() == [0] and seen.changed() == []
        mine = watch(tensor, track=track)
        good &= mine.tracked == tracked and mine.changed() == []
        tensor[50_000] = 7
        return good and mine.changed() == [0] and seen.changed() == [0]

    assert in_child(check)
    assert seen.changed() == [] and seen.tracked == tracked
    tensor[50_000] = 7
    assert seen.changed() == [0]


def test_fork_while_another_thread_asks():
    tensor = torch.zeros(3_000_000)
    seen, hashed, stop = watch(tensor), watch(tensor, track=False), threading.Event()

    def ask():
        while not stop.is_set():
            assert hashed.changed() == []

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert all(in_child(lambda: seen.changed() == hashed.changed() == []) for _ in range(10))
    finally:
        stop.set()
        thread.join()


@both
def test_no_write_is_lost_between_threads(track):
    """Two threads keep a copy each, by what their watch says, while two others write."""
    tensor = torch.zeros(60_000)
    end = time.monotonic() + 0.5
    copies = []

    def write(seed):
        choose = random.Random(seed)
        while time.monotonic() < end:
            tensor[choose.randrange(len(tensor))] += 1

    def keep(part):
        seen = watch(*part, track=track)
        copy = [p.clone() for p in part]
        copies.append((seen, part, copy))
        while time.monotonic() < end:
            for i in seen.changed():
                copy[i].copy_(part[i])

    threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
    threads += [threading.Thread(target=keep, args=(part,)) for part in (tensor.split(9_999), [tensor[100:], tensor[:40_000]])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seen, part, copy in copies:
        for i in seen.changed():
            copy[i].copy_(part[i])
        assert all(torch.equal(a, b) for a, b in zip(part, copy))


def test_the_hash_sees_every_bit():
    data = np.random.default_rng(0).integers(0, 256, 3_333, dtype=np.uint8)
    for buffer in (data, np.zeros_like(data)):
        seen = WriteWatch([(buffer.ctypes.data, buffer.nbytes)], False)
        for bit in range(0, 8 * len(buffer), 5):
            buffer[bit // 8] ^= 1 << bit % 8
            assert seen.changed() == [0], bit
    words = data[:3_328].view(np.uint64)
    seen = WriteWatch([(words.ctypes.data, words.nbytes)], False)
    for i, j in [(0, 1), (0, 8), (3, 19), (8, 136), (100, 415), (7, 128)]:
        words[[i, j]] = words[[j, i]]
        assert seen.changed() == [0], (i, j)
    for i in range(400):  # signs of neighbours, as a negation of part of a weight does
        words[i : i + 16] ^= 0x8000_0000_8000_0000
        assert seen.changed() == [0], i


def test_what_it_refuses():
    gone = mapped(PAGE)
    libc.munmap(gone, PAGE)
    for ranges, error in (([(gone, 16)], ValueError), ([(-1, 4)], ValueError), ([(2**63 - 1, 2)], ValueError),
                          ([(1,)], TypeError), (3, TypeError), ([5], TypeError), ([("a", 1)], TypeError)):  # fmt: skip
        with pytest.raises(error, match=r"WriteWatch|interpreted|iterable"):
            WriteWatch(ranges)
    assert WriteWatch([]).changed() == [] and WriteWatch([(0, 0)]).changed() == []


BUFFER = np.zeros(400_000, np.uint8)
offsets = st.one_of(st.integers(0, len(BUFFER) - 1), st.integers(0, 96).map(lambda page: page * PAGE))
ranges_of = st.lists(st.tuples(offsets, st.one_of(st.integers(0, 200), st.integers(0, 300_000))), max_size=5)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), offsets, st.one_of(st.just(1), st.integers(1, 100_000)), st.integers(0, 1)),
        st.tuples(st.just("watch"), ranges_of, st.booleans()),
        st.tuples(st.just("ask"), st.integers(0, 9)),
        st.tuples(st.just("drop"), st.integers(0, 9)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_random_writes_against_a_comparison(steps):
    base = BUFFER.ctypes.data
    alive = []  # of (the watch, its ranges, their bytes when it was last asked)

    def ask(seen, places, before):
        now = [bytes(BUFFER[a:b]) for a, b in places]
        assert seen.changed() == [i for i in range(len(places)) if now[i] != before[i]]
        before[:] = now

    for kind, *args in steps:
        if kind == "write":
            BUFFER[args[0] : args[0] + args[1]] = args[2]
        elif kind == "watch":
            places = [(at, min(at + size, len(BUFFER))) for at, size in args[0]]
            seen = WriteWatch([(base + a, b - a) for a, b in places], args[1])
            alive.append((seen, places, [bytes(BUFFER[a:b]) for a, b in places]))
        elif alive:
            one = alive[args[0] % len(alive)]
            if kind == "ask":
                ask(*one)
            else:
                alive.remove(one)
                del one
    for one in alive:
        ask(*one)
