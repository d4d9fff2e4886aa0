"""A refusal says what, where and why, and survives pickling."""

import pickle

from diffusers_oneflow import OneFlowError, Unsupported


def test_the_sentence():
    error = Unsupported("aten.svd.default", "no lowering is registered for it")
    assert str(error) == "aten.svd.default cannot run on OneFlow: no lowering is registered for it"
    placed = error.at("unet.mid_block, unet.py:12")
    assert str(placed) == "aten.svd.default cannot run on OneFlow in unet.mid_block, unet.py:12: no lowering is registered for it"
    assert placed.at("elsewhere") is placed
    assert isinstance(placed, OneFlowError)


def test_pickling_keeps_every_part():
    error = pickle.loads(pickle.dumps(Unsupported("op", "reason", "place")))
    assert (error.op, error.reason, error.where) == ("op", "reason", "place")
