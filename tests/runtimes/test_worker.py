"""The process that runs one model: its answers, its errors and its end."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_compress.errors import UserError
from lit_compress.export.command import export
from lit_compress.runtimes.worker import Worker, peak_memory
from lit_compress.runtimes.worker_process import WorkerProcess


def open_request(folder, engine="eager") -> dict:
    return {"engine": engine, "file": str(folder), "size": 1, "packed": False, "threads": 1, "device": "cpu"}


def test_answers(tiny_teacher):
    worker = Worker()
    opened = worker.answer({"do": "open", **open_request(tiny_teacher)})
    assert opened == {"inputs": ["input_ids", "attention_mask", "token_type_ids"]}
    outputs = worker.answer({"do": "outputs", "rows": 2, "tokens": 5, "vocabulary": 30})["outputs"]
    assert [len(row) for row in outputs["logits"]] == [2, 2]
    timed = worker.answer({"do": "time", "rows": 1, "tokens": 5, "vocabulary": 30, "warmup": 2, "calls": 3})
    assert len(timed["seconds"]) == 3
    assert all(value > 0 for value in timed["seconds"])
    memory = worker.answer({"do": "memory"})["bytes"]
    assert memory is None if peak_memory() is None else memory >= 0


def test_what_goes_wrong_is_an_answer(tmp_path):
    assert "config.json" in Worker().answer({"do": "open", **open_request(tmp_path)})["error"]
    assert "no_such" in Worker().answer({"do": "no_such"})["error"]


def test_a_process_answers_and_its_end_is_one_line(tmp_path):
    with WorkerProcess("mine") as worker:
        with pytest.raises(UserError, match=r"mine: .*config\.json"):
            worker.ask("open", **open_request(tmp_path))
        worker._process.kill()
        worker._process.wait()  # nobody reads the next request
        with pytest.raises(UserError, match="mine: the process ended"):
            worker.ask("memory")


def test_a_process_for_a_file_imports_no_torch(tmp_path, tiny_teacher):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    export(model=str(tiny_teacher), output=str(tmp_path / "made"), to="onnx")
    file = tmp_path / "made/onnx/model.onnx"
    requests = [{"do": "open", **open_request(file, "onnxruntime")}, {"do": "memory"}]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lit_compress.runtimes.worker"],
        input="".join(f"{json.dumps(request)}\n" for request in requests),
        capture_output=True,
        text=True,
        check=True,
    )
    opened, memory = (json.loads(line) for line in done.stdout.splitlines())
    assert opened == {"inputs": ["input_ids", "attention_mask", "token_type_ids"]}
    assert memory["bytes"] is None or memory["bytes"] > 0
    names = set(re.findall(r"^import time:.*\| +([^\s.]+)", done.stderr, re.MULTILINE))
    assert "onnxruntime" in names
    assert names & {"torch", "transformers", "lightning", "datasets"} == set()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_that_of_the_process_and_not_of_who_started_it(tiny_teacher):
    large = bytearray(2**30)
    large[::4096] = b"x" * len(large[::4096])
    with WorkerProcess("mine") as worker:
        worker.ask("open", **open_request(tiny_teacher))
        assert worker.ask("memory")["bytes"] < 2**28
    del large
