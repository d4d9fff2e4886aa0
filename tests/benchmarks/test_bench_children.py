import os
import signal

import pytest

from benchmarks.children import Child, ChildFailed, call


def double(value):
    return 2 * value


def fail():
    raise LookupError("not here")


def kill(number):
    os.kill(os.getpid(), number)


def leave():
    os._exit(3)


def echo(channel):
    while (message := channel.recv()) is not None:
        channel.send(("echo", message))
    return "done"


def test_result_and_failures():
    assert call(double, 21) == 42
    with pytest.raises(ChildFailed, match="LookupError: not here") as raised:
        call(fail)
    assert raised.value.signal is None
    with pytest.raises(ChildFailed, match="killed by SIGSEGV") as raised:
        call(kill, signal.SIGSEGV)
    assert raised.value.signal == "SIGSEGV"
    with pytest.raises(ChildFailed, match="exit code 3"):
        call(leave)


def test_messages_go_both_ways():
    with Child(echo) as child:
        child.send("a")
        assert child.receive() == ("echo", "a")
        child.send(None)
        assert child.receive() == ("result", "done")
