"""Python processes that are forked from one which has imported everything already.

A process that imports torch, Lightning and Transformers works for seconds before its first line, and the suite starts
many of them. Each worker of pytest imports them once, in a server of its own (``multiprocessing``'s), and what
is forked from it is otherwise like new: it has its own process number, signals, directory, environment and streams.
Tests of what is imported, and of how a process is started, start one with ``subprocess``.
"""

import io
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lightning.pytorch.utilities import rank_zero_only

__all__ = ["Python", "run_python", "run_ranks"]

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    [
        "lightning.pytorch",
        "torchmetrics",
        "transformers.models.auto.modeling_auto",
        "transformers.models.bert.modeling_bert",
        "lit_compress.cli",
        "lit_compress.auto",
        "lit_compress.data",
        "lit_compress.export",
        "lit_compress.report",
        "lit_compress.strategies",
        "lit_compress.training.fit",
    ]
)


class Python:
    """What ``subprocess.Popen([sys.executable, *arguments], ...)`` is, as far as tests ask.

    Args:
        arguments: those of the interpreter: ``-m`` with a module or a script, and what follows.
        cwd: directory of the process.
        env: its environment, by default this one's.
        output: file that it writes its output and errors to, by default where this process does.
        errors: another one for its errors.
        start_new_session: begins one, so that it has a group of its own.

    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path | str = ".",
        env: Mapping[str, str] | None = None,
        output: io.IOBase | None = None,
        errors: io.IOBase | None = None,
        start_new_session: bool = False,
    ) -> None:
        out = output.fileno() if output else 1
        streams = [reduction.DupFd(fd) for fd in (out, errors.fileno() if errors else out if output else 2)]
        environment = dict(os.environ if env is None else env)
        given = [str(argument) for argument in arguments]
        options = (given, str(Path(cwd).resolve()), environment, streams, start_new_session)
        self._process = _FORKED.Process(target=_interpret, args=options)
        self._process.start()
        self.pid: int = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_python(arguments: Sequence[str], *, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
    """Wait for such a process; has its status, output and errors."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = Python(arguments, output=output, errors=errors, **options)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(list(arguments), status, output.read(), errors.read())


def run_ranks(arguments: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path) -> tuple[int, str]:
    """Two ranks of a training, started as ``torchrun`` does; has the status of the first and the errors of both."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = dict(os.environ if env is None else env) | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": "2", "NODE_RANK": "0"}
    with tempfile.TemporaryFile("w+") as said:
        ranks = [
            Python(arguments, cwd=cwd, env=common | {"LOCAL_RANK": str(rank)}, output=said, start_new_session=True)
            for rank in range(2)
        ]
        while all(rank.poll() is None for rank in ranks):
            time.sleep(0.02)
        # One that waits for a rank which has failed would wait for long.
        try:
            statuses = [rank.wait(60) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        said.seek(0)
        return statuses[0], said.read()


def _interpret(arguments: list[str], cwd: str, environment: dict[str, str], streams: list, session: bool) -> None:
    """Do in the new process what an interpreter does with its arguments."""
    # What it starts itself is started as by any other process.
    multiprocessing.set_start_method(None, force=True)
    if session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    # Lightning looks at the environment when it is imported.
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", 0))
    for stream, number in zip(streams, (1, 2), strict=True):
        fd = stream.detach()
        os.dup2(fd, number)
        os.close(fd)
    searched = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in searched if path and path not in sys.path]
    if arguments[0] == "-m":
        sys.path.insert(0, cwd)
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(arguments[0]).parent.resolve()))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
