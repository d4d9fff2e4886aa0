"""Other calls of the same kind are other calls, and of the same kind."""

import pytest
import torch

from diffusers_oneflow import nearby


def test_floats_are_a_little_smaller():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float16).to(memory_format=torch.channels_last)
    step, mask, single = torch.tensor([999, 999]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.5])
    first, *others = nearby.calls([x, step, mask, single])
    assert len(others) == nearby.CALLS - 1 and first[0] is x
    for made in others:
        assert made[1] is step and made[2] is mask and made[3] is single
        assert made[0].dtype == x.dtype and made[0].stride() == x.stride() and not torch.equal(made[0], x)
        assert ((made[0] / x) <= 1).all() and ((made[0] / x) > 1 - 1 / 32).all()
    assert len({tuple(made[0].flatten().tolist()) for made in others}) == len(others)


def test_they_are_the_same_every_time():
    x = torch.randn(2, 3)
    for one, other in zip(nearby.calls([x]), nearby.calls([x])):
        assert torch.equal(one[0], other[0])


def test_infinities_of_a_mask_stay():
    mask = torch.tensor([0.0, -1.0, -torch.inf])
    assert all(made[0].isneginf().tolist() == [False, False, True] for made in nearby.calls([mask]))


def test_tokens_change_places_where_there_is_nothing_else():
    ids = torch.tensor([[0, 5, 6, 7, 8, 9, 9], [0, 3, 2, 4, 9, 9, 9]])
    attention = (ids != 9).long()
    _, *others = nearby.calls([ids, attention])
    assert any(not torch.equal(made[0], ids) for made in others)
    for made in others:
        assert torch.equal(made[0].sort().values, ids.sort().values)
        assert torch.equal(made[0][:, [0, 5, 6]], ids[:, [0, 5, 6]]) and made[0][1, 4] == 9
        assert torch.equal(made[1], attention)


@pytest.mark.parametrize("tensors", [[], [torch.tensor([1, 1, 0])], [torch.tensor(3.0)], [torch.zeros(1, 4).expand(3, 4)]])
def test_where_nothing_can_be_other_there_is_one_call(tensors):
    assert len(list(nearby.calls(tensors))) == 1


def test_results_are_one_unit_off_meanwhile():
    class Pipe:
        def __init__(self):
            self.components = {"unet": torch.nn.Identity()}
            self.unet = self.components["unet"]

    pipe, x = Pipe(), torch.randn(100).half()
    with nearby.rounded(pipe, 0):
        made, other = pipe.unet(x), pipe.unet(x)
        wide = pipe.unet(x.float())
    assert torch.equal(pipe.unet(x), x) and torch.equal(wide, x.float()) and not torch.equal(made, other)
    assert (made != x).all()
    torch.testing.assert_close(made, x, rtol=2 * torch.finfo(torch.float16).eps, atol=0)
