"""What small models are called with in half types."""

import pytest
import torch

from conformance import tiny


def test_there_are_more_texts_and_no_token_loses_all_that_it_attends_to():
    tokens, mask = torch.arange(7)[None], torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    more = tiny._more_texts(tokens)
    assert more.shape == (32, 7)
    assert torch.equal(more.flatten().sort().values, tokens.repeat(32, 1).flatten().sort().values)
    assert not torch.equal(more, tokens.repeat(32, 1))
    assert torch.equal(tiny._more_texts(mask), mask.repeat(32, 1))
    assert torch.equal(tiny._more_texts(mask.bool()), mask.bool().repeat(32, 1))


@pytest.mark.parametrize("kind", ["clip_text", "t5", "gemma2", "llama"])
def test_texts_are_what_these_models_are_called_with(kind):
    called = []

    def compare(module, args, kwargs, path):
        called.append((args, kwargs))
        return path

    assert tiny.alone(kind, compare).components == [kind]
    [(args, kwargs)] = called
    assert args[0].max() > 1  # tokens are told from masks by this
    assert kwargs["attention_mask"][:, 0].all()
