"""A worker as a child process that is asked and answers."""

import contextlib
import json
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

from lit_compress.errors import UserError

__all__ = ["WorkerProcess"]


class WorkerProcess:
    """A process with one model; ends with the block that it is used in.

    Args:
        name: of what it runs, for errors.

    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lit_compress.runtimes.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream:
                # Closing writes what a process that was gone did not read: that it was gone is said already.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        """The answer to a request of :class:`lit_compress.runtimes.worker.Worker`.

        Raises:
            UserError: it has an error for an answer, or the process is gone.

        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **options}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(f"{self.name}: the process ended ({self._last_words()}); is there enough memory?")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        status = self._process.wait(timeout=60)
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return f"exit status {status}" + (f": {lines[-1]}" if lines else "")
