"""The exceptions and warnings of the package: one sentence of what, where and what to do."""

from __future__ import annotations


class OneFlowError(RuntimeError):
    """Base of every error that this package raises by its own decision."""


class EngineUnavailable(OneFlowError):
    """OneFlow cannot be loaded on this machine; the message says why and what to do."""


class Unsupported(OneFlowError):
    """An op, a dtype or a module cannot run on OneFlow.

    Args:
        op: the ATen op (``aten.conv2d.default``) or the part that was refused.
        reason: why, in a few words ("alpha != 1").
        where: module path and source line, filled in by the stage that knows them.
    """

    def __init__(self, op: str, reason: str, where: str = "") -> None:
        self.op, self.reason, self.where = op, reason, where
        super().__init__(f"{op} cannot run on OneFlow{f' in {where}' if where else ''}: {reason}")

    def at(self, where: str) -> Unsupported:
        """The same refusal with its place."""
        return self if self.where else type(self)(self.op, self.reason, where)

    def __reduce__(self) -> tuple[type[Unsupported], tuple[str, str, str]]:
        return type(self), (self.op, self.reason, self.where)


class Refused(Exception):
    """What a lowering raises for a case that it cannot take; the message says why, its caller knows the op."""


class FallbackWarning(UserWarning):
    """A model, or one kind of call to it, runs in torch although OneFlow was asked for."""


class CacheWarning(UserWarning):
    """A program on disk was of no use, or could not be stored; the model runs as if there were none."""


def first_line(error: Exception) -> str:
    """What an error says first, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
