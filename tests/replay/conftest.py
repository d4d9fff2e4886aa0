"""What stands for a package that needs a GPU."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture
def package(monkeypatch):
    """quack as far as it is asked for, on a GPU of the right kind; the configurations that it was called with."""
    from diffusers_oneflow.replay.cuda import cute_ahead, flash, quack

    configs, gate_fn_map = [], {}

    def linear_act_mod(name, *, gated, has_c, has_rowvec, has_colvec):
        assert gated == (name is not None) and not has_c and not has_colvec

        def run(a, b, c, *, out, store_d, config, tuned, concat_layout=(), mRowVecBroadcast=None):
            assert c is None and not store_d and not tuned and has_rowvec == (mRowVecBroadcast is not None)
            assert concat_layout == (("B", "mRowVecBroadcast")[: 1 + has_rowvec] if gated else ())
            configs.append(config)
            made = a.float() @ b.float()
            if has_rowvec:
                assert mRowVecBroadcast.dtype == torch.float32 and mRowVecBroadcast.shape == (1, b.shape[1])
                made += mRowVecBroadcast
            out["mAuxOut"].copy_(gate_fn_map[name](*made.chunk(2, -1)) if gated else made)

        return run

    of = {
        "quack.activation": {"gate_fn_map": gate_fn_map, "gelu_erf": F.gelu, "silu": F.silu},
        "quack.epilogue.library": {"linear_act_mod": linear_act_mod},
        "quack.gemm_config": {"GemmConfig": lambda **how: tuple(how.items())},
    }
    for name in ("quack", "quack.epilogue", *of):
        module = types.ModuleType(name)
        vars(module).update(of.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(flash, "is_tried", lambda device: True)
    monkeypatch.setattr(flash, "LEAST", 2.0 * 64 * 16 * 128)
    monkeypatch.setattr(quack, "failed", set())
    monkeypatch.setattr(cute_ahead, "installed", lambda package: True)
    quack.epilogue.cache_clear()
    yield configs
    quack.epilogue.cache_clear()
