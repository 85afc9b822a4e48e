"""The product of cuBLASLt: the same numbers as ours, and only where somebody measured it to be faster."""

import json

import pytest
import torch

from lit_compress.ops import cublaslt, dispatch, linear, measured, reference
from lit_compress.ops.linear import LinearArguments
from lit_compress.ops.rows import quantize_rows

GPU = "NVIDIA of tomorrow"
FP8 = torch.float8_e4m3fn


def product(rows=32, outputs=48, inputs=64, dtype=FP8, per_row=True, **changed):
    q, q_scale = quantize_rows(torch.randn(rows, inputs), dtype)
    w, w_scale = quantize_rows(torch.randn(outputs, inputs), dtype)
    bias = torch.randn(outputs, dtype=torch.bfloat16)
    scale = q_scale if per_row else torch.tensor([0.02])
    of = LinearArguments(q, scale, w, w_scale, None, None, bias, None, "none", torch.bfloat16, None)
    return of._replace(**changed)


@pytest.fixture
def faster(tmp_path, monkeypatch):
    """As if a GPU were here on which the library takes 10 us, and our kernel so many."""
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path))
    monkeypatch.setattr(cublaslt, "device_name", lambda kind, index: GPU)

    def write(kernel_us, **more):
        shape = {"device": GPU, "format": "dense", "dtype": "fp8", "outputs": 48, "inputs": 64, "rows": 32}
        row = shape | {"density": 1.0, "kernel_us": kernel_us, "dense_us": 30.0, "source": "a test"} | more
        (tmp_path / measured.TIMES).write_text(json.dumps([row]))
        forget()

    def forget():
        for cached in (measured._rows, measured._times, cublaslt._is_faster, dispatch._decide):
            cached.cache_clear()

    yield write
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("changed", [{}, {"per_row": False}, {"bias": None}, {"rows": 1}], ids=str)
def test_the_library_computes_what_the_kernel_does(changed):
    of = product(**changed)
    torch.testing.assert_close(cublaslt.library_product(of), reference.quantized_linear(*of), rtol=2**-7, atol=2**-7)


def test_a_row_that_is_not_finite_spoils_no_other():
    of = product()
    q_scale = of.q_scale.clone()
    q_scale[3] = torch.nan
    y = cublaslt.library_product(of._replace(q_scale=q_scale))
    assert y[3].isnan().all()
    assert y[:3].isfinite().all()
    assert y[4:].isfinite().all()


def test_it_is_taken_where_it_was_faster(faster):
    faster(20.0, library_us=10.0)
    assert cublaslt.is_faster(product())
    assert not cublaslt.is_faster(product(rows=33))
    faster(9.0, library_us=10.0)
    assert not cublaslt.is_faster(product())
    faster(20.0)
    assert not cublaslt.is_faster(product())


@pytest.mark.parametrize(
    "changed",
    [{"activation": "gelu"}, {"residual": torch.zeros(32, 48)}, {"out_scale": torch.ones(1)},
     {"out_dtype": torch.float16}, {"dtype": torch.int8}, {"outputs": 40}, {"rows": 0}],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_it_is_not_taken_where_something_follows_or_it_cannot(changed, faster):
    faster(20.0, library_us=10.0)
    assert not cublaslt.is_faster(product(**changed))


def test_operators_ask_for_it(faster, monkeypatch):
    """With kernels as if they ran here: what is measured decides which of both computes."""
    monkeypatch.setattr(linear, "serves", lambda *_: True)
    faster(20.0, library_us=10.0)
    of = product()
    taken = linear.quantized_linear(*of)
    torch.testing.assert_close(taken, cublaslt.library_product(of), rtol=0, atol=0)
