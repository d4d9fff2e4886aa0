"""Cases of the kernel that moves, for Triton's interpreter (TRITON_INTERPRET=1), run by test_triton.py."""

import pytest
import torch

from diffusers_oneflow.replay.cuda import moves

from .test_graph import graph_of
from .triton_graphs import Interpreted

SENTINEL = 77


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def views():
    """Views of several kinds, whose numbers lie side by side in rows."""
    yield numbers(2, 9, 12)[:, :4], "a part of the rows of each image"
    yield numbers(2, 3, 5, 24)[..., 8:16], "a part of each row"
    yield numbers(3, 2, 7, 6).transpose(0, 1), "rows in another order"
    yield numbers(2, 3, 4, 5).permute(2, 1, 0, 3)[::2], "three dimensions of rows"
    yield numbers(1, 5).expand(4, 5), "one row several times"
    yield numbers(3000), "a dense one"
    yield numbers(70, 3)[:, :2], "rows of two"


@pytest.mark.parametrize("x", [pytest.param(x, id=what) for x, what in views()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("inner", [False, True])
def test_a_view_is_moved(x, dtype, inner):
    x = (x > 0) if dtype == torch.bool else (x * 50).to(dtype)
    whole = torch.full((*x.shape[:-1], x.shape[-1] + 6), SENTINEL).to(dtype)
    out = whole[..., 2:-4] if inner else torch.full(x.shape, SENTINEL).to(dtype)
    assert moves.rows_of(out, x) is not None
    moves.move(out, x)
    assert torch.equal(out, x)
    if inner:
        assert (whole[..., :2] == whole[..., -1:]).all() and (whole[..., -4:] == torch.tensor(SENTINEL).to(dtype)).all()


def test_columns_that_do_not_lie_side_by_side_are_left_to_torch():
    x, out = numbers(4, 6).t(), torch.zeros(6, 4)
    assert moves.rows_of(out, x) is None
    moves.move(out, x)
    assert torch.equal(out, x)


@pytest.mark.parametrize("columns, fits", [(65535 * 2048, True), (65535 * 2048 + 1, False)])
def test_rows_that_a_grid_has_no_room_for_are_left_to_torch(columns, fits):
    x = torch.empty(2, 2 * columns, device="meta")[:, :columns]
    assert (moves.rows_of(torch.empty(2, columns, device="meta"), x) is not None) == fits


def test_more_dimensions_than_the_kernel_knows_are_left_to_torch():
    x = numbers(3, 3, 3, 3, 3, 2)[::2, ::2, ::2, ::2, ::2]
    out = torch.zeros(x.shape)
    assert moves.rows_of(out, x) is None
    moves.move(out, x)
    assert torch.equal(out, x)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_parts_lie_one_after_the_other(dim):
    parts = [numbers(*(s + i if d == dim else s for d, s in enumerate((2, 3, 4)))) for i in range(3)]
    shape = torch.cat(parts, dim).shape
    out = torch.full(shape, float("nan"))
    how = moves.Cat(dim)
    for way, _ in how._ways(out, *parts):
        out.fill_(float("nan"))
        way(out, *parts)
        assert torch.equal(out, torch.cat(parts, dim))


class Joint(torch.nn.Module):
    """Heads of texts and images side by side, as attention over both has them; `turned`: those of texts lie in another order."""

    def __init__(self, turned: bool):
        super().__init__()
        self.turned = turned
        self.image, self.text, self.out = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, image, text):
        image, text = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (self.image(image), self.text(text)))
        text = text.contiguous().sin() if self.turned else text
        return self.out(torch.cat([image, text], 2).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("turned", [False, True])
def test_parts_are_joined_in_the_order_in_which_all_lie(turned):
    module, given = Joint(turned).eval(), [numbers(2, 5, 8), numbers(2, 3, 8)]
    graph = graph_of(module, *given, device=Interpreted())
    assert sum("copy" in step.kernel for step in graph.steps) == turned  # behind it, where it is not in the order of positions
    with torch.no_grad():
        torch.testing.assert_close(graph(given)[0], module(*given), rtol=1e-5, atol=1e-6)


def test_what_prepares_a_graph_compiles_what_joins(monkeypatch):
    module, given = Joint(False).eval(), [numbers(2, 5, 8), numbers(2, 3, 8)]
    graph = graph_of(module, *given, device=Interpreted())
    launched = []
    monkeypatch.setattr(moves, "move", lambda out, x: launched.append((tuple(out.shape), tuple(x.shape))))
    *_, kernels = graph._preparations()
    for launch in kernels:
        launch()
    assert launched == [((2, 5, 2, 4), (2, 5, 2, 4)), ((2, 3, 2, 4), (2, 3, 2, 4))]
