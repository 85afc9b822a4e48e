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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

# Before Triton is imported: interpreted kernels cannot be compiled.
os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from jsonargparse import auto_cli
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tools.aot_jobs import Job, jobs

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


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
