"""Rewrites of a captured program, in one explicit order."""

from __future__ import annotations

from collections import Counter

from ..capture import Program, is_bookkeeping, op_name
from .base import Rewrite
from .cast_weights import CastWeights
from .chains import FuseChains
from .channels_last import ChannelsLast
from .common_subexpressions import MergeEqualNodes
from .complex_numbers import RealNumbers
from .fold_constants import FoldConstants
from .fuse_attention import FuseAttention
from .fuse_gate import FuseGate
from .fuse_heavy import FuseHeavy
from .fuse_norm import FuseNorm
from .narrow_norms import NarrowNorms
from .quick_gelu import FuseQuickGelu
from .remove_noops import RemoveNoops
from .resize import ResizeByMatrices
from .simplify_views import SimplifyViews

# No-ops go first so that patterns are found; equal nodes merge once constants are folded.
ORDER = (RemoveNoops, FoldConstants, RealNumbers, ResizeByMatrices, MergeEqualNodes, FuseQuickGelu)
# For the kernel pack: casts and norms, now that equal casts are one; the layout before the patterns, which stand between
# permutations; what is left of elementwise ops when convolutions and linear layers have taken theirs goes into chains.
NATIVE_ORDER = (
    CastWeights, NarrowNorms, ChannelsLast, SimplifyViews, FuseAttention, SimplifyViews, FuseNorm, FuseGate, FuseHeavy, FuseChains
)  # fmt: skip

__all__ = ["NATIVE_ORDER", "ORDER", "Rewrite", "op_counts", "run"]


def run(program: Program, native: bool = False) -> list[Rewrite]:
    """Rewrite `program` in place; returns what each pass did, near misses included.

    Args:
        native: also the passes whose result only the kernel pack computes.
    """
    done = []
    for rewrite in (*ORDER, *NATIVE_ORDER) if native else ORDER:
        done.append(rewrite().run(program))
        program.graph.eliminate_dead_code()
    program.graph.lint()
    return done


def op_counts(program: Program) -> dict[str, int]:
    """ATen op -> number of nodes, the most frequent first."""
    names = (op_name(n) for n in program.graph.nodes if n.op == "call_function" and not is_bookkeeping(n))
    return dict(Counter(names).most_common())
