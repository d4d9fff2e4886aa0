"""Every rewrite: where it applies, where it must not and says why, and that numbers stay."""

import pytest
import torch

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig, explain, parity, passes
from diffusers_oneflow.kernels import loader
from tests.test_capture import Function, program_of


def rewritten(function, *tensors, native=False):
    """The reports by pass name, and the ops that are left."""
    program = program_of(Function(function).eval(), *tensors)
    reports = {r.name: r for r in passes.run(program, native)}
    return reports, passes.op_counts(program), program


X = torch.randn(2, 8)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clone().sin(), lambda x: (x / 1.0).sin(), lambda x: (x * 1).sin(), lambda x: x.reshape(2, 8).sin(),
        lambda x: x.to(torch.float32).sin(), lambda x: torch.nn.functional.dropout(x, 0.5, training=False).sin(),
        lambda x: x.expand(2, 8).sin(), lambda x: x[:, :8].sin(),
    ],
)  # fmt: skip
def test_what_changes_nothing_goes(function):
    assert rewritten(function, X)[1] == {"aten.sin.default": 1}


def test_adding_zero_stays_and_says_why():
    reports, ops, _ = rewritten(lambda x: x + 0.0, X)
    assert ops == {"aten.add.Tensor": 1}
    assert "sign of -0.0" in reports["RemoveNoops"].near_misses[0]


def test_a_scalar_that_changes_the_dtype_stays():
    reports, ops, _ = rewritten(lambda x: x * 1.0, torch.arange(4))
    assert ops == {"aten.mul.Tensor": 1}
    assert "dtype" in reports["RemoveNoops"].near_misses[0]


def test_constants_are_computed_once():
    reports, ops, program = rewritten(lambda x: x + torch.arange(8, dtype=torch.float32).exp(), X)
    assert reports["FoldConstants"].applied == 1
    assert ops == {"aten.add.Tensor": 1}
    (folded,) = program.constants.values()
    assert torch.equal(folded, torch.arange(8, dtype=torch.float32).exp())


def test_weights_are_no_constants():
    program = program_of(torch.nn.Linear(8, 8), X)
    assert {r.name: r.applied for r in passes.run(program)}["FoldConstants"] == 0


def test_a_large_constant_is_computed_in_every_call():
    reports, ops, _ = rewritten(lambda x: x.sum() + torch.ones(3000, 2000), X)
    assert "aten.ones.default" in ops
    assert "6000000 elements" in reports["FoldConstants"].near_misses[0]


def test_equal_nodes_become_one():
    reports, ops, _ = rewritten(lambda x: x.sin() + x.sin() * x.cos(), X)
    assert reports["MergeEqualNodes"].applied == 1
    assert ops["aten.sin.default"] == 1


def test_nearly_equal_nodes_stay_two():
    assert rewritten(lambda x: x.sum(0) + x.sum(0, keepdim=True), X)[0]["MergeEqualNodes"].applied == 0
    assert rewritten(lambda x: (x * 0.0) + (x * -0.0), X)[0]["MergeEqualNodes"].applied == 0


def test_quick_gelu_is_one_op():
    reports, ops, _ = rewritten(lambda x: x * torch.sigmoid(1.702 * x), X)
    assert reports["FuseQuickGelu"].applied == 1
    assert ops == {"oneflow.quick_gelu.default": 1}


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x * torch.sigmoid(x), "this is silu"),
        (lambda x: x * torch.sigmoid(1.5 * x), "the factor is 1.5"),
        (lambda x: x * torch.sigmoid(x.cos()), "something else"),
        (lambda x: x * torch.sigmoid(1.702 * x) + (1.702 * x), "used elsewhere"),
    ],
)
def test_what_is_nearly_quick_gelu_says_why_it_is_not(function, reason):
    reports, ops, _ = rewritten(function, X)
    assert "oneflow.quick_gelu.default" not in ops
    assert reason in reports["FuseQuickGelu"].near_misses[0]


def test_a_fused_op_computes_what_its_parts_did():
    from diffusers_oneflow.passes.quick_gelu import quick_gelu

    assert torch.equal(quick_gelu(X), X * torch.sigmoid(1.702 * X))


@torch.no_grad()
def test_a_bool_mask_goes_into_the_attention_kernel():
    class Masked(torch.nn.Module):
        def forward(self, q, mask):
            return torch.nn.functional.scaled_dot_product_attention(q, q, q, mask)

    q = torch.randn(2, 3, 7, 8)
    module = diffusers_oneflow.compile(Masked(), OneFlowConfig(fallback="error"))
    for mask in (torch.ones(7, 7).tril().bool(), torch.rand(2, 1, 1, 7) > 0.3):
        mask[..., 0] = True
        torch.testing.assert_close(module(q, mask), module._call_impl(q, mask), rtol=1e-5, atol=1e-6)
    kernels = explain(module, show=False)["Masked"].graphs[0].kernels
    assert kernels["oneflow.attention.default"] == {"dfo_flash_attention": 1}


@pytest.mark.parametrize("rows", [lambda y: y.flatten(2).transpose(1, 2), lambda y: y.reshape(2, 8, 16).permute(0, 2, 1)])
def test_patches_are_rows_of_an_image_with_its_channels_last(rows):
    """Nothing is permuted but the image itself, once."""
    conv = torch.nn.Conv2d(3, 8, 2, stride=2)
    pos = torch.randn(1, 16, 8)
    module = Function(lambda x: torch.nn.functional.layer_norm(rows(conv(x)) + pos, (8,)))
    module.conv = conv
    program = program_of(module.eval(), torch.randn(2, 3, 8, 8))
    passes.run(program, native=True)
    ops = passes.op_counts(program)
    assert ops.get("aten.permute.default") == 1 and "aten.transpose.int" not in ops


def test_a_filter_of_more_taps_than_the_kernel_holds_stays_with_oneflow():
    """The patch embedding of a CLIP image encoder: 14 x 14 taps. The pack's kernel would write behind its memory."""
    conv = torch.nn.Conv2d(3, 4, 14, stride=14).eval()
    program = program_of(conv, torch.randn(1, 3, 28, 28))
    reports = {r.name: r for r in passes.run(program, native=True)}
    assert "more than 144 taps" in reports["ChannelsLast"].near_misses[0]
    assert passes.op_counts(program) == {"aten.conv2d.default": 1}
    found = parity.component(conv, (torch.randn(1, 3, 28, 28),), {})
    assert found.passed, found


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1}, {"kernel_size": (3, 1, 1)}, {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)},
        {"kernel_size": (2, 3, 3), "stride": 2}, {"kernel_size": 1, "stride": (2, 1, 1)},
        {"kernel_size": 3, "groups": 3, "dilation": (1, 2, 1)},
    ],
)  # fmt: skip
def test_a_convolution_of_videos_is_one_of_images(options):
    """OneFlow's own is four times as wrong as torch's."""
    conv = torch.nn.Conv3d(6, 9, **options).eval()
    x = torch.randn(2, 6, 6, 7, 8)
    program = program_of(conv, x)
    passes.run(program, native=True)
    assert "aten.conv3d.default" not in passes.op_counts(program)
    found = parity.component(conv, (x,), {})
    assert found.passed, found


def test_a_convolution_that_leaves_out_frames_stays_and_says_why():
    program = program_of(torch.nn.Conv3d(2, 2, 2, dilation=2), torch.randn(1, 2, 4, 5, 5))
    reports = {r.name: r for r in passes.run(program, native=True)}
    assert "leaves out frames" in reports["ChannelsLast"].near_misses[0]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", ["auto", "shared", "packed", "release"])
def test_a_filter_of_videos_that_is_written_to_is_read_anew(dtype, weights):
    import diffusers_oneflow
    from diffusers_oneflow import OneFlowConfig

    conv = torch.nn.Conv3d(32, 64, 3).eval().to(dtype)
    x = torch.randn(1, 32, 4, 5, 5, dtype=dtype)
    expected = conv(x)
    diffusers_oneflow.compile(conv, OneFlowConfig(fallback="error", weights=weights))
    close = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(conv(x), expected, **close)
    conv.weight.data *= 2
    conv.bias.data *= 2
    torch.testing.assert_close(conv(x), 2 * expected, **close)
    diffusers_oneflow.detach(conv)


def test_empty_parts_of_a_concatenation_go():
    """A rotary axis of size 0, as Bria has: OneFlow has no empty tensors."""

    def function(x):
        return torch.cat([torch.arange(0, dtype=torch.float32).exp().expand(2, 0), x.sin(), x], dim=-1)

    reports, ops, _ = rewritten(function, X)
    assert reports["RemoveNoops"].applied
    assert ops == {"aten.sin.default": 1, "aten.cat.default": 1}
    found = parity.component(Function(function).eval(), (X,), {})
    assert found.passed, found


@torch.no_grad()
@pytest.mark.skipif(loader.instruction_set() != "amx", reason="this processor has no AMX")
def test_attention_of_many_keys_has_a_kernel_of_its_own():
    """It leaves what is not finite to torch's: results are the same."""

    class Attend(torch.nn.Module):
        def forward(self, q, k, mask):
            return torch.nn.functional.scaled_dot_product_attention(q, k, k, mask)

    q, k, mask = torch.randn(2, 2, 40, 8), torch.randn(2, 2, 150, 8), torch.randn(2, 1, 1, 150)
    module = diffusers_oneflow.compile(Attend(), OneFlowConfig(fallback="error"))
    torch.testing.assert_close(module(q, k, mask), module._call_impl(q, k, mask), rtol=1e-5, atol=1e-6)
    k[1, 1, 3, 2] = float("inf")
    torch.testing.assert_close(module(q, k, mask), module._call_impl(q, k, mask), rtol=1e-5, atol=1e-6, equal_nan=True)
    kernels = explain(module, show=False)["Attend"].graphs[0].kernels
    assert kernels["oneflow.attention.default"] == {"dfo_attention": 1}


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "options",
    [
        {"size": (5, 9), "antialias": True}, {"size": (24, 3), "antialias": True}, {"scale_factor": 0.4, "antialias": True},
        {"size": (5, 9), "antialias": True, "align_corners": True}, {"scale_factor": 1.7}, {"scale_factor": 0.6},
    ],
)  # fmt: skip
def test_images_are_resized_by_matrices(mode, options):
    resize = Function(lambda x: torch.nn.functional.interpolate(x, mode=mode, **options)).eval()
    x = torch.randn(2, 3, 11, 8)
    found = parity.component(resize, (x,), {})
    assert found.passed, found
    program = program_of(resize, x)
    assert {r.name: r for r in passes.run(program)}["ResizeByMatrices"].applied == 1
