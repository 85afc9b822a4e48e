"""Runs steps one after the other within a number of minutes, and remembers how each ended."""

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tools.gpu.steps import PYTHON, ROOT, Step

__all__ = ["ended_before", "extra_paths", "run_all"]

STATE = "steps.jsonl"
# Of a step: its name, status, seconds and error in one line.
Ended = dict[str, Any]


def run_all(steps: list[Step], output: Path, minutes: float, after_each: Callable[[list[Ended]], None]) -> None:
    """Run what has not been run yet; a step that failed before comes last.

    Args:
        steps: in order.
        output: folder of logs and of what is remembered.
        minutes: after which nothing runs any more.
        after_each: gets how every step ended so far, also those that there is no time for.

    """
    deadline = time.monotonic() + 60 * minutes
    before = ended_before(output)
    todo = [step for step in steps if before.get(step.name, {}).get("status") != "ok"]
    for step in sorted(todo, key=lambda step: step.name in before):
        left = deadline - time.monotonic()
        if left < step.needs:
            ended = {
                "step": step.name,
                "status": "left out",
                "error": f"needs {step.needs:.0f} s, {left:.0f} s were left",
            }
        else:
            print(f"{step.name} ...", flush=True)
            ended = run(step, output, min(step.limit, left))
            print(f"{step.name}: {ended['status']}, {ended['seconds']} s {ended['error']}".rstrip(), flush=True)
            _append(output / STATE, ended)
        before[step.name] = ended
        after_each([before[step.name] for step in steps if step.name in before])


def run(step: Step, output: Path, limit: float) -> Ended:
    """How a step ended: its status, seconds, and its error in one line."""
    started = time.monotonic()
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    files = [logs / f"{step.name.replace(' ', '-')}-{part}.txt" for part in range(1, step.parts + 1)]
    running = [_start(step, part, output, file) for part, file in enumerate(files, 1)]
    ended_in_time = [_wait(process, started + limit) for process in running]
    codes = [process.returncode for process in running]
    status = "ok" if not any(codes) else "failed" if all(ended_in_time) else "out of time"
    wrong = [file for file, code in zip(files, codes, strict=True) if code]
    error = "; ".join(dict.fromkeys(last_line(file) for file in wrong))
    if status == "ok" and step.parts > 1:
        error = "; ".join(last_line(file) for file in files)  # what pytest counts
    return {"step": step.name, "status": status, "seconds": round(time.monotonic() - started, 1), "error": error[:400]}


def ended_before(output: Path) -> dict[str, Ended]:
    """How each step ended the last time that it ran, in this call or one before."""
    path = output / STATE
    lines = path.read_text().splitlines() if path.exists() else []
    return {ended["step"]: ended for ended in map(json.loads, lines)}


def extra_paths(wheels: Iterable[Path]) -> list[str]:
    """Folders of those packages that this machine lacks: nothing that is installed is hidden by another version."""
    return [str(path) for path in sorted(wheels) if importlib.util.find_spec(path.name) is None]


def last_line(file: Path) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")


def _start(step: Step, part: int, output: Path, log: Path) -> subprocess.Popen[bytes]:
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    paths += extra_paths((ROOT / "wheels").glob("*"))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "SHARD": f"{part}/{step.parts}",
    }
    if (output / "tuned" / "launches.json").exists():
        environment["LIT_COMPRESS_MEASURED"] = str(output / "tuned")
    with log.open("wb") as file:
        return subprocess.Popen(
            [PYTHON, *step.command],
            cwd=ROOT,
            env=environment | step.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(process: subprocess.Popen[bytes], until: float) -> bool:
    """Whether the process ended by itself."""
    try:
        process.wait(max(until - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.wait()
        return False
    return True


def _append(path: Path, entry: Ended) -> None:
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
