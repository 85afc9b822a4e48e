"""What ``import lit_compress`` costs beside what it needs anyway.

Measured: processor seconds (user and system) of a fresh interpreter that imports ``lit_compress``, relative to one that
imports ``lightning`` and ``transformers``; in turns.
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jsonargparse import auto_cli

from tools.bench.measure import RESULTS, Row, interleave, milliseconds, publish

OURS, THEIRS = "import lit_compress", "import lightning, transformers"


def main(repetitions: int = 7, output: Path = RESULTS) -> list[Row]:
    """Measure the cost of importing the package.

    Args:
        repetitions: fresh interpreters for each case.
        output: CSV that the row is added to.

    """
    cases: dict[str, Callable[[], float]] = {code: partial(processor_seconds, code) for code in (OURS, THEIRS)}
    interleave(cases, 1)  # fills the file cache
    seconds = interleave(cases, repetitions)
    ratios = [ours / theirs for ours, theirs in zip(seconds[OURS], seconds[THEIRS], strict=True)]
    row = Row(
        benchmark="import_time",
        case=OURS,
        baseline=THEIRS,
        ratios=ratios,
        target=1.2,
        settings={"milliseconds": milliseconds(seconds)},
    )
    publish([row], output)
    return [row]


def processor_seconds(code: str) -> float:
    """User and system seconds of a fresh interpreter that runs ``code``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
