"""Options outside of what is possible are refused by name."""

import pytest

from diffusers_oneflow import OneFlowConfig


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fallback": "raise"}, "fallback is 'raise'"),
        ({"progress": "yes"}, "progress is 'yes'"),
        ({"max_graphs": 0}, "max_graphs is 0"),
        ({"max_graphs": 1.5}, "max_graphs is 1.5"),
    ],
)
def test_a_bad_value_is_named(options, says):
    with pytest.raises(ValueError, match=says):
        OneFlowConfig(**options)


def test_defaults_fall_back_with_a_warning():
    assert OneFlowConfig() == OneFlowConfig(fallback="torch", progress=None, max_graphs=16)
