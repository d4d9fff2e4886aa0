"""The watch over memory whose mappings change: dropped pages, freed memory, files."""

import os
import time

import numpy as np
import pytest
import torch

from .watching import (
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MAP_FIXED,
    PAGE,
    TRACKS,
    WriteWatch,
    both,
    libc,
    mapped,
    needs_tracking,
    view,
    watch,
)


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
