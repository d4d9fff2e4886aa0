"""Rewrites of a captured program, in one explicit order."""

from collections import Counter

from ..capture import Program, is_bookkeeping, op_name
from .base import Rewrite
from .common_subexpressions import MergeEqualNodes
from .fold_constants import FoldConstants
from .quick_gelu import FuseQuickGelu
from .remove_noops import RemoveNoops

# No-ops go first so that patterns are found; equal nodes merge once constants are folded.
ORDER = (RemoveNoops, FoldConstants, MergeEqualNodes, FuseQuickGelu)

__all__ = ["ORDER", "Rewrite", "op_counts", "run"]


def run(program: Program) -> list[Rewrite]:
    """Rewrite `program` in place; returns what each pass did, near misses included."""
    done = []
    for rewrite in ORDER:
        done.append(rewrite().run(program))
        program.graph.eliminate_dead_code()
    program.graph.lint()
    return done


def op_counts(program: Program) -> dict[str, int]:
    """ATen op -> number of nodes, the most frequent first."""
    names = (op_name(n) for n in program.graph.nodes if n.op == "call_function" and not is_bookkeeping(n))
    return dict(Counter(names).most_common())
