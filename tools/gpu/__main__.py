"""Everything that needs a GPU, in the minutes that one is at hand.

``python -m tools.gpu --minutes 8`` tests the kernels, tunes their launches, and measures products, whole encoders,
training and the commands, the most valuable first. Each step is a process of its own with a limit; what fails or does
not fit is in the summary and stops nothing. Every figure is in ``results.csv`` the moment it is measured, and a second
call with the same ``--output`` goes on with the steps that are missing.

``--simulate`` goes through all of it on a CPU with tiny shapes. ``make gpu-kit`` builds a folder that holds what a
machine without network lacks.

Only the standard library is imported here: the machine may have no more.
"""

import argparse
from pathlib import Path

from tools.gpu.run import run_all
from tools.gpu.steps import steps, write_texts
from tools.gpu.summary import summary


def main() -> None:
    """Run, and print the summary."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8, help="after which nothing runs any more (8)")
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), help="folder of the results (gpu-results)")
    parser.add_argument("--work", type=Path, help="folder of a run and its models, which are large (OUTPUT-work)")
    parser.add_argument("--simulate", action="store_true", help="tiny shapes on a CPU; the times mean nothing")
    given = parser.parse_args()
    output = given.output.absolute()
    work = (given.work or output.with_name(f"{output.name}-work")).absolute()
    output.mkdir(parents=True, exist_ok=True)
    write_texts(output, 64 if given.simulate else 4000)

    def write(ended: list[dict[str, object]]) -> None:
        (output / "summary.md").write_text(summary(output, ended) + "\n")

    run_all(steps(output, work, given.simulate), output, given.minutes, write)
    print((output / "summary.md").read_text() if (output / "summary.md").exists() else "nothing was left to run")


if __name__ == "__main__":
    main()
