"""The numbers that cuBLASLt and cuDNN are called with are those of their headers, where these are installed."""

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest

from diffusers_oneflow.replay.cuda import cublaslt, cudnn


def header(package: str, ending: str) -> str:
    found = [f for f in distribution(package).files or () if str(f).endswith(ending)]
    return Path(found[0].locate()).read_text()


def value(text: str, name: str) -> int:
    return int(re.search(rf"\b{name}\s*=\s*(\d+)", text)[1])


CUDNN = {
    "_POINTWISE": "CUDNN_BACKEND_POINTWISE_DESCRIPTOR", "_CONVOLUTION": "CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR",
    "_ENGINE": "CUDNN_BACKEND_ENGINE_DESCRIPTOR", "_CONFIG": "CUDNN_BACKEND_ENGINECFG_DESCRIPTOR",
    "_HEURISTIC": "CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR", "_PLAN": "CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR",
    "_FORWARD": "CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR", "_ADD": "CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR",
    "_GRAPH": "CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR", "_PACK": "CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR",
    "_TENSOR": "CUDNN_BACKEND_TENSOR_DESCRIPTOR", "_HANDLE": "CUDNN_TYPE_HANDLE", "_DATA_TYPE": "CUDNN_TYPE_DATA_TYPE",
    "_BOOL": "CUDNN_TYPE_BOOLEAN", "_INT64": "CUDNN_TYPE_INT64", "_FLOAT": "CUDNN_TYPE_FLOAT", "_POINTER": "CUDNN_TYPE_VOID_PTR",
    "_MODE": "CUDNN_TYPE_CONVOLUTION_MODE", "_HEUR_MODE": "CUDNN_TYPE_HEUR_MODE", "_NOTE": "CUDNN_TYPE_NUMERICAL_NOTE",
    "_PW_MODE": "CUDNN_TYPE_POINTWISE_MODE", "_DESC": "CUDNN_TYPE_BACKEND_DESCRIPTOR",
    "_CROSS_CORRELATION": "CUDNN_CROSS_CORRELATION", "_PLUS": "CUDNN_POINTWISE_ADD", "_HEURISTIC_A": "CUDNN_HEUR_MODE_A",
}  # fmt: skip
CUBLASLT = {
    "_TRANSA": "CUBLASLT_MATMUL_DESC_TRANSA", "_EPILOGUE": "CUBLASLT_MATMUL_DESC_EPILOGUE",
    "_BIAS_POINTER": "CUBLASLT_MATMUL_DESC_BIAS_POINTER", "_BIAS_TYPE": "CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE",
    "_WORKSPACE_BYTES": "CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES",
    "_REDUCTION_MASK": "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK",
    "_IN_FLOAT32": "CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE",
}  # fmt: skip


def cudnn_header() -> str:
    try:
        return header("nvidia-cudnn-cu13", "cudnn_graph.h")
    except Exception:
        pytest.skip("the headers of cuDNN 9 are not installed")


def cublas_header(name: str) -> str:
    try:
        return header("nvidia-cublas", name)
    except Exception:
        pytest.skip("the headers of cuBLAS are not installed")


@pytest.mark.parametrize("name", CUDNN)
def test_cudnn(name):
    assert getattr(cudnn, name) == value(cudnn_header(), CUDNN[name])


def test_cudnn_types_and_notes():
    text = cudnn_header()
    names = ("FLOAT", "HALF", "BFLOAT16")
    assert list(cudnn._TYPES.values()) == [value(text, f"CUDNN_DATA_{name}") for name in names]
    sizes = ("", "_TILE_4x4", "_TILE_6x6", "_TILE_13x13")
    notes = ("REDUCED_PRECISION_REDUCTION", "NONDETERMINISTIC", *(f"WINOGRAD{size}" for size in sizes))
    assert {value(text, f"CUDNN_NUMERICAL_NOTE_{name}") for name in notes} == cudnn._UNWANTED_NOTES


def test_cublaslt_alignments():
    text = cublas_header("cublasLt.h")
    assert tuple(value(text, f"CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{m}_BYTES") for m in "ABCD") == cublaslt._ALIGNMENTS


@pytest.mark.parametrize("name", CUBLASLT)
def test_cublaslt(name):
    assert getattr(cublaslt, name) == value(cublas_header("cublasLt.h"), CUBLASLT[name])


def test_cublaslt_epilogues():
    text = cublas_header("cublasLt.h")
    plain, relu, bias, gelu = (value(text, f"CUBLASLT_EPILOGUE_{name}") for name in ("DEFAULT", "RELU", "BIAS", "GELU"))
    expected = {("none", False): plain, ("relu", False): relu, ("none", True): bias, ("relu", True): relu | bias,
                ("gelu_tanh", False): gelu, ("gelu_tanh", True): gelu | bias}  # fmt: skip
    assert expected == cublaslt._EPILOGUES


def test_cublaslt_compute_types():
    text = cublas_header("cublas_api.h")
    assert value(text, "CUBLAS_COMPUTE_32F") == cublaslt._COMPUTE_32F
    assert value(text, "CUBLAS_COMPUTE_32F_FAST_TF32") == cublaslt._COMPUTE_TF32
