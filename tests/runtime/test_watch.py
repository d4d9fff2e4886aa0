"""The watch over memory: whoever writes, the next call tells; what is as it was is not reported."""

import ctypes
import gc
import os
import random
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .watching import PAGE, WriteWatch, both, libc, mapped, needs_tracking, watch


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


def in_child(check):
    """Whether the check holds in a forked child."""
    child = os.fork()
    if child == 0:
        good = False
        gc.disable()  # what it collects may wait for threads that a child has not
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
