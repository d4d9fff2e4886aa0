"""Other calls of the same kind are other calls, and of the same kind."""

import pytest
import torch

from diffusers_oneflow import nearby


def test_floats_are_a_little_smaller():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float16).to(memory_format=torch.channels_last)
    step, mask, single = torch.tensor([999, 999]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.5])
    first, *others = nearby.calls([x, step, mask, single])
    assert len(others) == len(nearby.CALLS) - 1 and first[0] is x
    for made in others:
        assert made[1] is step and made[2] is mask and made[3] is single
        assert made[0].dtype == x.dtype and made[0].stride() == x.stride() and not torch.equal(made[0], x)
        assert ((made[0] / x) <= 1).all() and ((made[0] / x) > 1 - 1 / 32).all()
    assert len({tuple(made[0].flatten().tolist()) for made in others}) == len(others)


def test_they_are_the_same_every_time():
    x = torch.randn(2, 3)
    for one, other in zip(nearby.calls([x]), nearby.calls([x])):
        assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("numbers", [torch.randn(100), torch.zeros(100)])
def test_they_lie_in_memory_as_the_given_one_does(numbers):
    x = numbers[3:99].view(2, 3, 4, 4).transpose(2, 3)
    given, *others = nearby.calls([x])
    assert given[0] is x and len(others) == len(nearby.CALLS) - 1
    for (made,) in others:
        assert (made.storage_offset(), made.stride(), made.shape) == (3, x.stride(), x.shape) and not torch.equal(made, x)


def test_calls_that_judge_again_are_others():
    x = torch.randn(2, 3)
    first, again = ([made[0] for made in nearby.calls([x], numbers)] for numbers in (nearby.CALLS, nearby.MORE_CALLS))
    assert len(again) == len(nearby.MORE_CALLS) and not any(torch.equal(a, b) for a in first for b in again)
    assert not list(nearby.calls([torch.tensor(3.0)], nearby.MORE_CALLS))


def test_infinities_of_a_mask_stay():
    mask = torch.tensor([0.0, -1.0, -torch.inf])
    assert all(made[0].isneginf().tolist() == [False, False, True] for made in nearby.calls([mask]))


def test_tokens_are_others_where_there_is_nothing_else():
    ids = torch.tensor([[0, 5, 6, 7, 8, 9, 9], [0, 3, 2, 4, 1, 9, 9]])
    attention = (ids != 9).long()
    first, *others = nearby.calls([ids, attention], tables=[20])
    assert torch.equal(first[0], ids) and len(others) == len(nearby.CALLS) - 1
    for made in others:
        assert not torch.equal(made[0], ids) and (made[0][:, 1:5] < 9).all()
        assert torch.equal(made[0][:, [0, 5, 6]], ids[:, [0, 5, 6]])
        assert torch.equal(made[1], attention)


def test_calls_that_judge_again_begin_otherwise_too():
    ids = torch.tensor([[0, 5, 6, 7, 8, 9, 9], [0, 3, 2, 4, 1, 9, 9]])
    made = [call[0] for call in nearby.calls([ids], nearby.MORE_CALLS, tables=[20])]
    assert len({int(m[0, 0]) for m in made}) > 3 and all((m < 10).all() for m in made)
    assert all(torch.equal(m[:, 5:], ids[:, 5:]) for m in made)


def test_of_an_empty_prompt_all_tokens_are_others():
    ids = torch.tensor([[1, 0, 0, 0, 0, 0]])
    others = [made[0] for made in nearby.calls([ids, ids.clone()], tables=[200, 1, 20])][1:]
    assert len(torch.cat(others).unique()) > 10 and all((made >= 0).all() and (made < 20).all() for made in others)


def test_of_an_empty_image_there_are_others():
    image, single = torch.zeros(2, 3, 4, 5, dtype=torch.float16).to(memory_format=torch.channels_last), torch.tensor(3.0)
    first, *others = nearby.calls([image, single])
    assert first[0] is image and len(others) == len(nearby.CALLS) - 1
    for made in others:
        assert made[0].stride() == image.stride() and made[0].dtype == image.dtype and made[1] is single
        assert 1 / 128 < made[0].abs().max() <= 1 / 64 and (made[0] < 0).any() and len(made[0].unique()) > 60
    assert len({tuple(made[0].flatten().tolist()) for made in others}) == len(others)


def test_beside_other_numbers_an_empty_image_stays():
    image, prompt = torch.zeros(1, 3, 4, 5), torch.randn(1, 7, 8)
    assert all(made[0] is image and made[1] is not prompt for made in list(nearby.calls([image, prompt]))[1:])


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        [torch.tensor([True, False])],
        [torch.zeros(2, 3)],
        [torch.zeros(0, 3, 4, 5)],
        [torch.zeros(1, 3, 1, 1).expand(1, 3, 4, 5)],
        [torch.tensor(3.0)],
        [torch.zeros(1, 4).expand(3, 4)],
    ],
)
def test_where_nothing_can_be_other_there_is_one_call(tensors):
    assert len(list(nearby.calls(tensors, tables=[20]))) == 1


@pytest.mark.parametrize("tables", [[], [2, 6]])
def test_without_a_table_that_has_them_integers_stay(tables):
    assert len(list(nearby.calls([torch.tensor([3, 4, 5, 6])], tables=tables))) == 1


class Pipe:
    def __init__(self):
        self.components = {"unet": torch.nn.Identity()}
        self.unet = self.components["unet"]


def test_results_are_one_unit_off_meanwhile():
    pipe, x = Pipe(), torch.randn(100).half()
    with nearby.rounded(pipe, 0):
        made, other = pipe.unet(x), pipe.unet(x)
        wide = pipe.unet(x.float())
    assert torch.equal(pipe.unet(x), x) and torch.equal(wide, x.float()) and not torch.equal(made, other)
    assert ((made.view(torch.int16) - x.view(torch.int16)).abs() == 1).all()


def test_zeros_and_the_largest_numbers_stay_numbers():
    most = torch.finfo(torch.bfloat16).max
    x = torch.tensor([0.0, -0.0, most, -most, torch.inf, torch.nan], dtype=torch.bfloat16)
    pipe = Pipe()
    for seed in range(8):
        with nearby.rounded(pipe, seed):
            made = pipe.unet(x)
        assert torch.equal(made[[0, 1, 4]], x[[0, 1, 4]]) and made[2:4].isfinite().all() and made[5].isnan()
