import pytest
import torch

pytest.importorskip("openvino")

from benchmarks import openvino_peer
from benchmarks.peers import prepare, prepare_pipeline


class Named(torch.nn.Module):
    """Takes tensors by name and gives a dict with things that are no tensors."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x, scale=1.0, shift=None):
        y = self.layer(x) * scale
        return {"sum": y if shift is None else y + shift, "none": None, "both": (y, 2)}


def test_any_signature_and_result():
    module = Named()
    x, shift = torch.randn(2, 4), torch.randn(3)
    calls = [((x,), {}), ((x,), {"scale": 2.0, "shift": shift}), ((x[:1],), {"scale": 2.0}), ((2 * x,), {})]
    with torch.no_grad():
        expected = [module(*args, **kwargs) for args, kwargs in calls]
        openvino_peer.attach(module)
        found = [module(*args, **kwargs) for args, kwargs in calls]
    for theirs, ours in zip(expected, found):
        assert (ours["none"], ours["both"][1]) == (None, 2)
        torch.testing.assert_close(ours["sum"], theirs["sum"])
        torch.testing.assert_close(ours["both"][0], theirs["both"][0])
    # A later call has not overwritten an earlier result, and only new shapes or options were converted.
    assert len(module.forward._models) == 3


def test_a_module_that_cannot_be_converted_says_so():
    class Sorts(torch.nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.numpy().copy()) if x.sum() > 0 else torch.linalg.eigvals(x)

    module = Sorts()
    openvino_peer.attach(module)
    with pytest.raises(RuntimeError, match="OpenVINO"):
        module(-torch.eye(3))


def test_bfloat16_inside_float32_outside():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(64, 64), torch.randn(2, 64)
    with torch.no_grad():
        expected = layer(x)
        prepare("openvino", [layer], "bfloat16")
        found = layer(x)
    (model,) = layer.forward._models.values()
    assert model.request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT").get_type_name() == "bf16"
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_a_pipeline_runs_on_it(pipe, draw):
    expected = draw(pipe)
    prepare_pipeline("openvino", pipe)
    found = draw(pipe)
    assert abs(found - expected).max() < 1e-4
    for part in (pipe.unet, pipe.text_encoder, pipe.vae.decoder):
        assert len(part.forward._models) == 1
