"""Which kernels, in which configurations, ``tools.aot`` compiles: all that is shipped."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lit_compress.ops import launch, measured
from lit_compress.ops.kernels import quantized_linear
from lit_compress.ops.kernels.attention import attention_varlen_kernel
from lit_compress.ops.kernels.gate_quantize import gate_quantize_kernel
from lit_compress.ops.kernels.gather_rows import gather_rows_kernel
from lit_compress.ops.kernels.layernorm_quantize import layernorm_quantize_kernel
from lit_compress.ops.kernels.quantize_rows import quantize_rows_kernel
from lit_compress.ops.kernels.rotate_rows import rotate_rows_kernel

EPILOGUES = ("residual", "requantize")
# Where each 8-bit type is compiled for.
TARGETS = {"i8": (90, 80), "fp8e4nv": (90,)}
DTYPES = {"int8": "i8", "fp8": "fp8e4nv"}
WIDTH = 3072


@dataclass(frozen=True, kw_only=True)
class Job:
    """One compilation."""

    name: str
    target: int
    dtype: str
    kernel: Any
    types: dict[str, tuple[str, bool] | None]  # pointers and numbers: type, and whether divisible by 16
    constants: dict[str, Any]
    options: dict[str, Any]
    epilogue: str = ""
    stage_bytes: int = 0  # of the operands of one step of the loop


def jobs(epilogues: str) -> Iterator[Job]:
    """Everything that is shipped."""
    for dtype, targets in TARGETS.items():
        for target in targets:
            for tile, shape in launch.shipped_products(divmod(target, 10)):
                chosen = EPILOGUES[:1] if (dtype, target) == ("i8", 90) else EPILOGUES[1:]
                for epilogue in EPILOGUES if epilogues == "all" else chosen:
                    yield product(dtype, target, tile, shape, epilogue)
            yield from measured_products(dtype, target)
            yield from rows(dtype, target)
            yield from unusual_products(dtype, target)
    for target in (90, 80):
        for head_dim, shape in launch.shipped_attention(divmod(target, 10)):
            for relative in ("", "bias", "window", "relative") if head_dim == 64 else ("",):
                yield attend(target, head_dim, shape, relative)
        yield rotate(target)
        yield movement(target, gather_rows_kernel, {"x": "*bf16", "index": "*i32", "out": "*bf16"})


def product(dtype: str, target: int, tile: tuple[int, int, int], shape: launch.Product, epilogue: str) -> Job:
    """A matrix product."""
    residual = epilogue == "residual"
    constants = quantized_linear.settings(shape, tile, WIDTH, True, "none" if residual else "gelu")
    index = pointer("i32") if tile[2] else None
    types = {
        "q": pointer(dtype),
        "q_scale": pointer("fp32"),
        "values": pointer(dtype),
        "w_scale": pointer("fp32"),
        "columns": index,
        "offsets": index,
        "bias": pointer("bf16"),
        "residual": pointer("bf16") if residual else None,
        "out": pointer("bf16" if residual else dtype),
        "out_scale": None if residual else pointer("fp32"),
        "rows": ("i32", False),
        "outputs": ("i32", True),
        "inputs": ("i32", True),
    }
    swap = " swapped" if shape.swap else ""
    name = f"quantized_linear {launch.FORMATS[tile]} {shape.block_m}x{shape.block_n}x{shape.block_k}{swap}"
    job = _product_job(name, dtype, target, types, constants)
    return replace(job, epilogue=epilogue, stage_bytes=shape.shared_bytes // shape.stages)


def _product_job(name: str, dtype: str, target: int, types: dict[str, Any], settings: dict[str, Any]) -> Job:
    """A product whose settings are constants of the kernel but for those that the compiler takes."""
    compiler = ("num_warps", "num_stages", "enable_fp_fusion")
    return Job(
        name=name,
        target=target,
        dtype=dtype,
        kernel=quantized_linear.quantized_linear_kernel,
        types=types,
        constants={key: value for key, value in settings.items() if key not in compiler},
        options={key: settings[key] for key in compiler},
    )


def measured_products(dtype: str, target: int) -> Iterator[Job]:
    """Launches that were measured and ship, each with what follows such a product in an encoder."""
    tiles = {name: tile for tile, name in launch.FORMATS.items()}
    for row in measured.launch_rows():
        if tuple(row["capability"]) == divmod(target, 10) and DTYPES[row["dtype"]] == dtype:
            shape = launch.Product(**{key: row[key] for key in measured.SETTINGS})
            yield product(dtype, target, tiles[row["format"]], shape, epilogue_of(row["outputs"], row["inputs"]))


def epilogue_of(outputs: int, inputs: int) -> str:
    """What follows a product of this shape: more outputs than inputs are rounded, the others meet the residual."""
    return "requantize" if outputs > inputs else "residual"


def unusual_products(dtype: str, target: int) -> Iterator[Job]:
    """Everything that the others are not: one static scale, no bias, error function, inputs that fill no step.

    240 inputs can be copied 16 at a time; 100 cannot, and there is one output.
    """
    for rows, outputs, inputs in ((8192, 768, 240), (8192, 1, 100)):
        shape = launch.product_launch(rows, outputs, inputs, launch.DENSE, torch.int8, torch.device("cpu"))
        constants = quantized_linear.settings(shape, launch.DENSE, inputs, False, "gelu")
        used = {"q": dtype, "values": dtype, "q_scale": "fp32", "w_scale": "fp32", "out": "fp32"}
        types: dict[str, Any] = {name: pointer(kind) for name, kind in used.items()}
        types |= {"rows": ("i32", False), "inputs": ("i32", inputs % 16 == 0)}
        if outputs == 1:
            constants["outputs"] = 1
        else:
            types["outputs"] = ("i32", True)
        yield _product_job(f"unusual product of {inputs} inputs", dtype, target, types, constants)


def rows(dtype: str, target: int) -> Iterator[Job]:
    """Operators on rows."""
    for columns in (768, 3072):
        shape = launch.row_launch(columns)
        common: dict[str, Any] = {
            "target": target,
            "dtype": dtype,
            "constants": {"BLOCK": shape.block},
            "options": {"num_warps": shape.warps},
        }
        ends = {"q": pointer(dtype), "scale": pointer("fp32"), "columns": ("i32", True)}
        yield Job(
            name=f"quantize_rows {columns}",
            kernel=quantize_rows_kernel,
            types={"x": pointer("bf16"), **ends},
            **common,
        )
        if columns == 3072:
            types = {"x": pointer("bf16"), **ends, "out_scale": pointer("fp32")}
            constants = {"BLOCK": shape.block, "ACTIVATION": "gelu"}
            yield Job(
                name=f"gate_quantize {columns}",
                kernel=gate_quantize_kernel,
                types=types,
                **(common | {"constants": constants}),
            )
        if columns == 768:
            inputs = {name: pointer("bf16") for name in ("x", "residual", "weight", "bias", "y")}
            types = {**inputs, **ends, "eps": ("fp32", False)}
            yield Job(
                name=f"layernorm_quantize {columns}",
                kernel=layernorm_quantize_kernel,
                types=types,
                **common,
            )


def attend(target: int, head_dim: int, shape: launch.Attention, relative: str) -> Job:
    """Attention in bf16, to int8; with a bias by distance (MPNet), a window (ModernBERT), or disentangled (DeBERTa)."""
    tables = ("by_query", "by_key")
    return Job(
        name=f"attention_varlen {head_dim} {shape.block_m}x{shape.block_n} {relative}".rstrip(),
        target=target,
        dtype="bf16",
        kernel=attention_varlen_kernel,
        types={
            "qkv": pointer("bf16"),
            "cu_seqlens": pointer("i32"),
            "out": pointer("i8"),
            "out_scale": pointer("fp32"),
            "bias": pointer("fp32") if relative == "bias" else None,
            "positions": pointer("i32") if relative else None,
            "columns": pointer("i32") if relative == "relative" else None,
            **{name: pointer("bf16") if relative == "relative" else None for name in tables},
            "tokens": ("i32", False),
            "heads": ("i32", False),
            "log2_scale": ("fp32", False),
            "reach": ("i32", False),
            "window": ("i32", False) if relative == "window" else None,
            "found": ("i32", False),
        },
        constants={
            "HEAD": head_dim,
            "BLOCK_D": shape.block_d,
            "BLOCK_M": shape.block_m,
            "BLOCK_N": shape.block_n,
        },
        options={"num_warps": shape.warps, "num_stages": shape.stages},
    )


def rotate(target: int) -> Job:
    """Rotary positions of heads of 64."""
    names = ("qkv", "cos", "sin", "out")
    return Job(
        name="rotate_rows 64",
        target=target,
        dtype="bf16",
        kernel=rotate_rows_kernel,
        types={name: pointer("bf16") for name in names} | {"width": ("i32", True)},
        constants={"HEAD": 64, "BLOCK": 1024},
        options={},
    )


def movement(target: int, kernel: Any, pointers: dict[str, str]) -> Job:
    """A kernel that only moves numbers."""
    numbers = [name for name in kernel.arg_names if name not in pointers and name != "BLOCK"]
    return Job(
        name=Path(kernel.fn.__code__.co_filename).stem,
        target=target,
        dtype=pointers["out"][1:],
        kernel=kernel,
        types={name: (kind, True) for name, kind in pointers.items()} | dict.fromkeys(numbers, ("i32", True)),
        constants={"BLOCK": 1024},
        options={},
    )


def pointer(kind: str) -> tuple[str, bool]:
    """Type of an aligned pointer."""
    return f"*{kind}", True
