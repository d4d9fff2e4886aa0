"""The bar of long compilations."""

import pytest

from diffusers_oneflow.progress import Bar

LARGE, SMALL = 2**30, 2**20


@pytest.mark.parametrize(
    ("weight_bytes", "show", "seen"),
    [(LARGE, True, True), (LARGE, False, False), (SMALL, True, False), (LARGE, None, False)],
)
def test_a_bar_is_for_large_models_and_terminals(capsys, weight_bytes, show, seen):
    with Bar("unet", weight_bytes, show) as bar:
        bar.stage("lowering", 0.5)
        bar.stage("compiling", 1.0)
    assert ("unet: lowering" in capsys.readouterr().err) == seen


def test_stages_only_move_forward():
    with Bar("unet", LARGE, True) as bar:
        places = []
        for stage in ("capture", "passes", "lowering", "compiling"):
            for done in (0.0, 0.5, 1.0):
                bar.stage(stage, done)
                places.append(bar._bar.n)
    assert places == sorted(places)
    assert places[-1] == 100
