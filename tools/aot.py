"""Compile every shipped kernel configuration for GPUs that are not here, and say what the code is like.

``python -m tools.aot`` prints a table for the documentation; ``--output`` writes everything as JSON, which
``tests/ops/test_aot.py`` asserts on. This is evidence about code, not about speed: which tensor core instruction the
main loop holds, how operands get to shared memory, how many of its steps are under way at once, and whether registers
suffice.

Products are compiled twice: with bias and residual to bf16 (``residual``), and with GELU to 8 bit (``requantize``).
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

# Before Triton is imported: interpreted kernels cannot be compiled.
os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from jsonargparse import auto_cli
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lit_compress.ops import launch, measured
from lit_compress.ops.kernels import quantized_linear
from lit_compress.ops.kernels.attention import attention_varlen_kernel
from lit_compress.ops.kernels.gate_quantize import gate_quantize_kernel
from lit_compress.ops.kernels.gather_rows import gather_rows_kernel
from lit_compress.ops.kernels.layernorm_quantize import layernorm_quantize_kernel
from lit_compress.ops.kernels.quantize_rows import quantize_rows_kernel
from lit_compress.ops.kernels.rotate_rows import rotate_rows_kernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
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


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the code of a kernel is like; None where the wheel of Triton has no disassembler."""

    name: str
    symbol: str  # its name in a profile
    target: int
    dtype: str
    epilogue: str
    warps: int
    stages: int
    shared: int
    buffers: float  # steps whose operands fit the shared memory that was reserved
    tensor_core: list[str]  # instructions of the main loop
    fallbacks: int  # mma.sync in the whole kernel
    copy_bytes: list[int]  # of each asynchronous copy, wherever it is
    loop_copies: int
    loop_loads: list[str]  # synchronous loads in the main loop, by width
    loop_shared_stores: list[str]  # by width
    loop_shared_loads: int  # of single numbers, not of whole fragments
    loop_barriers: int
    in_flight: int | None  # groups of copies that the loop does not wait for
    registers: int | None
    spills: int | None
    loop_instructions: int | None


def aot(output: Path | None = None, epilogues: Literal["all", "one"] = "all", only: str = "") -> None:
    """Compile, print a table.

    Args:
        output: JSON with everything.
        epilogues: both of each product, or one: the residual for int8, 8-bit output for fp8 and on sm_80.
        only: part of a kernel's name.

    """
    if not disassembles():
        print(f"no nvdisasm and cuobjdump in {TOOLS}: registers, spills and machine code are not looked at")
    found = [examine(job) for job in jobs(epilogues) if only in job.name]
    if output is not None:
        output.write_text(json.dumps({"triton": triton.__version__, "kernels": [asdict(item) for item in found]}))
    print(table(found))


def disassembles() -> bool:
    """Whether machine code can be looked at."""
    return all((TOOLS / tool).exists() for tool in ("nvdisasm", "cuobjdump"))


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
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages", "enable_fp_fusion")}
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
    return Job(
        name=f"quantized_linear {launch.FORMATS[tile]} {shape.block_m}x{shape.block_n}x{shape.block_k}{swap}",
        target=target,
        dtype=dtype,
        kernel=quantized_linear.quantized_linear_kernel,
        types=types,
        constants=constants,
        options=options,
        epilogue=epilogue,
        stage_bytes=shape.shared_bytes // shape.stages,
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
        options = {key: constants.pop(key) for key in ("num_warps", "num_stages", "enable_fp_fusion")}
        used = {"q": dtype, "values": dtype, "q_scale": "fp32", "w_scale": "fp32", "out": "fp32"}
        types: dict[str, Any] = {name: pointer(kind) for name, kind in used.items()}
        types |= {"rows": ("i32", False), "inputs": ("i32", inputs % 16 == 0)}
        if outputs == 1:
            constants["outputs"] = 1
        else:
            types["outputs"] = ("i32", True)
        yield Job(
            name=f"unusual product of {inputs} inputs",
            target=target,
            dtype=dtype,
            kernel=quantized_linear.quantized_linear_kernel,
            types=types,
            constants=constants,
            options=options,
        )


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


def examine(job: Job) -> Evidence:
    """Compile and look."""
    signature, constants, hints = {}, dict(job.constants), {}
    for place, name in enumerate(job.kernel.arg_names):
        kind = job.types.get(name)
        if name in job.constants or kind is None:
            signature[name] = "constexpr"
            constants.setdefault(name, None)
            continue
        signature[name] = kind[0]
        if kind[1]:
            hints[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=job.kernel, signature=signature, constexprs=constants, attrs=hints)
    compiled = triton.compile(source, target=GPUTarget("cuda", job.target, 32), options=job.options)
    ptx: str = compiled.asm["ptx"]
    loop = main_loop(ptx, r"wgmma\.mma_async|mma\.sync", r"^(\$L__BB\d+_\d+):", r"bra(?:\.uni)?\s+(\$L__BB\d+_\d+)")
    machine = machine_code(compiled.asm["cubin"])
    waits = re.findall(r"cp\.async\.wait_group\s+(\d+)", loop)
    return Evidence(
        name=job.name,
        symbol=compiled.metadata.name,
        target=job.target,
        dtype=job.dtype,
        epilogue=job.epilogue,
        warps=compiled.metadata.num_warps,
        stages=compiled.metadata.num_stages,
        shared=compiled.metadata.shared,
        buffers=compiled.metadata.shared / job.stage_bytes if job.stage_bytes else 0,
        tensor_core=sorted(set(re.findall(r"wgmma\.mma_async\.[\w.]+|mma\.sync\.[\w.]+", loop))),
        fallbacks=len(re.findall(r"\bmma\.sync", ptx)),
        copy_bytes=sorted({int(size, 16) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global .*?(0x\w+)", ptx)}),
        loop_copies=len(re.findall(r"cp\.async\.c[ag]\.", loop)),
        loop_loads=sorted(set(re.findall(r"ld\.global[\w.:]*?((?:v\d\.)?[bfsu]\d+)", loop))),
        loop_shared_stores=sorted(set(re.findall(r"st\.shared[\w.:]*?((?:v\d\.)?[bfsu]\d+)", loop))),
        loop_shared_loads=len(re.findall(r"\bld\.shared", loop)),
        loop_barriers=len(re.findall(r"\bbar\.sync|\bbarrier\.", loop)),
        in_flight=min(map(int, waits)) if waits else None,
        **machine,
    )


def machine_code(binary: bytes) -> dict[str, int | None]:
    """Registers, spills, and the length of the main loop, from the binary for the GPU."""
    if not disassembles():
        return {"registers": None, "spills": None, "loop_instructions": None}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = run("nvdisasm", "-c", file.name)
        usage = run("cuobjdump", "-res-usage", file.name)
    loop = main_loop(text, r"\b[IHQ]?G?MMA\b", r"^(\.L_x_\d+):", r"BRA\S*\s.*?`\((\.L_x_\d+)\)")
    (registers,), (stack,) = re.findall(r"REG:(\d+)", usage), re.findall(r"STACK:(\d+)", usage)
    return {
        "registers": int(registers),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", text)) + int(stack),
        "loop_instructions": len(re.findall(r"/\*[0-9a-f]{4,}\*/", loop)) or None,
    }


def run(tool: str, *arguments: str) -> str:
    """Output of a tool of the wheel."""
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def main_loop(code: str, inside: str, label: str, jump: str) -> str:
    """The shortest stretch from a label to a jump back to it that holds what is looked for; empty if there is none."""
    lines = code.splitlines()
    starts: dict[str, int] = {}
    loops = []
    for number, line in enumerate(lines):
        if found := re.search(label, line.strip()):
            starts[found[1]] = number
        elif (found := re.search(jump, line)) and found[1] in starts:
            stretch = "\n".join(lines[starts[found[1]] : number + 1])
            if re.search(inside, stretch):
                loops.append(stretch)
    return min(loops, key=len, default="")


def table(found: list[Evidence]) -> str:
    """In Markdown."""
    lines = [
        "| kernel | target | type | epilogue | tensor core | copies | steps in flight | shared | registers | spills |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for item in found:
        instruction = ", ".join(shorter(name) for name in item.tensor_core) or "none"
        copies = ", ".join(f"{size} B" for size in item.copy_bytes) or "none"
        depth = f"{item.buffers:.0f}" if item.buffers else str(item.in_flight or "")
        lines.append(
            f"| {item.name} | sm_{item.target} | {item.dtype} | {item.epilogue} | {instruction} | {copies} | {depth} | "
            f"{item.shared} | {item.registers} | {item.spills} |"
        )
    return "\n".join(lines)


def shorter(instruction: str) -> str:
    """``wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8`` is ``wgmma m64n128k32 s8``."""
    parts = instruction.split(".")
    shape = next(part for part in parts if re.fullmatch(r"m\d+n\d+k\d+", part))
    types = [part for part in parts[parts.index(shape) + 1 :] if re.fullmatch(r"s8|e4m3|bf16|f16|tf32", part)]
    return f"{'wgmma' if parts[0] == 'wgmma' else 'mma'} {shape} {types[0] if types else ''}".strip()


if __name__ == "__main__":
    auto_cli(aot, as_positional=False)
