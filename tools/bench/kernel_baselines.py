"""What ``tools.bench.kernels`` compares the kernels with, and the check of every case before its time counts."""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_compress import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Call = Callable[[int], Tensor]


def baselines_of(
    x: list[Tensor], quantized: list[tuple[Tensor, Tensor]], dense: list[Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, Call]]:
    """What ours is compared with, each after its gate."""
    truth = F.linear(x[0].float(), dense[0].float())

    def checked(name: str, call: Call, tolerance: float) -> tuple[str, Call]:
        gate(name, call(0), truth, tolerance)
        return name, call

    yield checked("bf16", lambda turn: F.linear(x[turn], dense[turn]), 0.01)
    if has_fp8():
        fp8 = torch.float8_e4m3fn
        a, b = ([ops.quantize_rows(part, fp8) for part in parts] for parts in (x, dense))

        def scaled(turn: int, fast: bool) -> Tensor:
            (q, q_scale), (w, w_scale) = a[turn], b[turn]
            rows, columns = q_scale.unsqueeze(1), w_scale.unsqueeze(0)
            return torch._scaled_mm(q, w.T, rows, columns, out_dtype=torch.bfloat16, use_fast_accum=fast)

        yield checked("_scaled_mm fp8", partial(scaled, fast=False), 0.1)
        yield checked("_scaled_mm fp8, fast accumulation", partial(scaled, fast=True), 0.1)
    if dtype == torch.int8 and x[0].shape[0] > 16:
        whole = [ops.quantize_rows(weight, dtype) for weight in dense]
        scales = quantized[0][1].unsqueeze(1) * whole[0][1]
        gate("_int_mm", torch._int_mm(quantized[0][0], whole[0][0].T) * scales, truth, 0.05)
        yield "_int_mm", lambda turn: torch._int_mm(quantized[turn][0], whole[turn][0].T)
    if DEVICE == "cuda":
        yield from torchao_baselines(x, dense, truth)


def torchao_baselines(x: list[Tensor], dense: list[Tensor], truth: Tensor) -> Iterator[tuple[str, Call]]:
    """torchao's dynamic quantization, compiled, where it is installed; it rounds its input itself."""
    if importlib.util.find_spec("torchao") is None:
        print("torchao is not installed: no such baseline")
        return
    from torchao import quantization as ao  # type: ignore[import-not-found]

    configurations = {"torchao int8": ao.Int8DynamicActivationInt8WeightConfig()}
    if has_fp8():
        rowwise = ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())
        configurations["torchao fp8"] = rowwise
    for name, configuration in configurations.items():
        layers = [nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=DEVICE) for weight in dense]
        for layer, weight in zip(layers, dense, strict=True):
            layer.weight = nn.Parameter(weight, requires_grad=False)
            ao.quantize_(layer, configuration)
        compiled = [torch.compile(layer, dynamic=False) for layer in layers]
        call = partial(lambda turn, layers: layers[turn](x[turn]), layers=compiled)
        gate(name, call(0), truth, 0.1)
        yield name, call


def has_fp8() -> bool:
    """Whether ``_scaled_mm`` runs here."""
    return DEVICE == "cuda" and torch.cuda.get_device_capability() >= (8, 9)


def gate(name: str, got: Tensor, truth: Tensor, tolerance: float = 0.005) -> None:
    """Stop when a case computes something else.

    Raises:
        SystemExit: with the relative error.

    """
    error = ((got.float() - truth.float()).norm() / truth.float().norm()).item()
    if not error <= tolerance:
        raise SystemExit(f"gate: {name} is off by {error:.3g} (relative), more than {tolerance:g}; no row was written")
