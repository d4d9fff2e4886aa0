"""Keeps Python's garbage collector from running while a graph is made.

It would run hundreds of times over objects that are all in use, and look at every object of the process nearly once a graph:
a fifth of the time of a small one.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_paused = 0
_was_enabled = False


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """No collection begins by itself within; also in several threads at once, and where it was turned off before."""
    global _paused, _was_enabled
    with _lock:
        if _paused == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _paused += 1
    try:
        yield
    finally:
        with _lock:
            _paused -= 1
            if _paused == 0 and _was_enabled:
                # A build leaves cycles that hold native memory; what it made is young, and looked at in some 20 milliseconds.
                gc.collect(0)
                gc.enable()


@contextlib.contextmanager
def resumed() -> Iterator[None]:
    """Within `paused`, collections of what is made meanwhile: torch.export leaves more than should pile up.

    All that is there before is not looked at: that took a fifth of an export.
    """
    with _lock:
        again = _paused == 1 and _was_enabled
        # What somebody else has frozen would thaw with it.
        frozen = again and not gc.get_freeze_count()
        if frozen:
            gc.collect(1)  # what is young and gone would be among the oldest afterwards, and stay for long
            gc.freeze()
        if again:
            gc.enable()
    try:
        yield
    finally:
        with _lock:
            if frozen:
                gc.unfreeze()
            if again and _paused:
                gc.disable()
