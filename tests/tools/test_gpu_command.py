"""``python -m tools.gpu``: what does not fit, fails or takes too long stops nothing, and a second call goes on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.bench.measure import Row, publish
from tools.gpu import run as run_module
from tools.gpu import shard
from tools.gpu.run import ended_before, extra_paths, run_all
from tools.gpu.steps import Step, steps, write_texts
from tools.gpu.summary import summary


def step(name, code, **settings):
    return Step(name=name, command=("-c", code), **{"needs": 0.0} | settings)


def test_a_failing_step_stops_nothing_and_says_why_in_one_line(tmp_path):
    seen = []
    todo = [step("wrong", "raise SystemExit('no such thing')"), step("right", "print('fine')")]
    run_all(todo, tmp_path, 1, seen.append)
    assert [(ended["step"], ended["status"], ended["error"]) for ended in seen[-1]] == [
        ("wrong", "failed", "no such thing"),
        ("right", "ok", ""),
    ]
    assert len(seen) == 2  # the summary is written after each
    assert (tmp_path / "logs" / "right-1.txt").read_text() == "fine\n"


def test_a_step_is_ended_at_its_limit_with_what_it_started(tmp_path):
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {SLOW!r}]); time.sleep(60)"
    started = time.monotonic()
    run_all([step("slow", code, limit=4), step("next", "pass")], tmp_path, 1, lambda _: None)
    assert time.monotonic() - started < 30
    assert [ended["status"] for ended in ended_before(tmp_path).values()] == ["out of time", "ok"]
    time.sleep(6)
    assert not Path(tmp_path / "late").exists()


SLOW = "import time, pathlib; time.sleep(8); pathlib.Path('late').touch()"


def test_a_step_without_room_is_left_out_and_a_second_call_goes_on(tmp_path):
    marks = [
        step(name, f"open({str(tmp_path / 'order')!r}, 'a').write({name!r}); raise SystemExit({code})", needs=needs)
        for name, code, needs in (("a", 0, 0), ("b", 1, 0), ("c", 0, 50))
    ]
    seen = []
    run_all(marks, tmp_path, 0.5, seen.append)
    assert [ended["status"] for ended in seen[-1]] == ["ok", "failed", "left out"]
    assert "needs 50 s" in seen[-1][2]["error"]
    run_all(marks, tmp_path, 2, seen.append)
    assert (tmp_path / "order").read_text() == "abcb"  # what is done is not done again, what failed comes last
    assert [ended["status"] for ended in seen[-1]] == ["ok", "failed", "ok"]


def test_parts_run_side_by_side_and_know_which_they_are(tmp_path):
    code = "import os, time; time.sleep(1); print(os.environ['SHARD'], os.environ['MORE'])"
    run_all([step("parts", code, parts=2, environment={"MORE": "yes"})], tmp_path, 1, lambda _: None)
    assert ended_before(tmp_path)["parts"]["error"] == "1/2 yes; 2/2 yes"


def test_shards_hold_every_case_once(monkeypatch):
    found = []
    for part in range(1, 4):
        items = list(range(10))
        monkeypatch.setenv("SHARD", f"{part}/3")
        shard.pytest_collection_modifyitems(items)
        found += items
    assert sorted(found) == list(range(10))


def test_only_packages_that_are_missing_come_from_the_kit(tmp_path):
    assert extra_paths([tmp_path / "torch", tmp_path / "not_installed_here"]) == [str(tmp_path / "not_installed_here")]


def test_results_of_a_tuner_are_used_by_what_comes_after_it(tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "launches.json").write_text("[]")
    code = "import os; print(os.environ['LIT_COMPRESS_MEASURED'])"
    run_all([step("after", code)], tmp_path, 1, lambda _: None)
    assert (tmp_path / "logs" / "after-1.txt").read_text().strip() == str(tmp_path / "tuned")


def test_names_of_steps_are_told_apart(tmp_path):
    for simulate in (True, False):
        names = [step.name for step in steps(tmp_path, tmp_path, simulate)]
        assert len(set(names)) == len(names)
        assert names[:2] == ["machine", "kernel tests"]
        assert names[-4:] == ["fit", "report", "pack", "benchmark"]


def test_the_summary_says_what_was_reached_and_what_was_not_measured(tmp_path):
    def row(benchmark, case, baseline, ratio, **settings):
        settings = {"dtype": "fp8", "ms": {"lit_compress": 20.0}} | settings
        return Row(benchmark=benchmark, case=case, baseline=baseline, ratios=[ratio], settings=settings)

    rows = [
        row("encoder", "8 bit, 256x128, fill 1", "bf16, compiled", 0.5),
        row("encoder", "8 bit, 32x128, fill 1", "bf16, compiled", 0.8),
        row("encoder", "8 bit, 64x384, fill 0.5", "unpadded bf16, compiled", 0.5),
        row("encoder", "8 bit, 64x384, fill 0.5", "padded bf16, compiled", 0.25),
        row("kernels", "up 32768 dense 0%", "_scaled_mm fp8", 0.9),
        row("kernels", "up 32768 dense 0%", "_scaled_mm fp8, fast accumulation", 1.5),
        row("kernels", "up 32768 dense 0%", "_scaled_mm fp8", 1.1, dtype="int8"),
        row("hf_trainer", "lit_compress", "transformers.Trainer", 1.01),
    ]
    publish(rows, tmp_path / "results.csv")
    (tmp_path / "machine.json").write_text(
        json.dumps({"device": "a GPU", "cuda": "13", "python": "3.12", "versions": {"torch": "2"}, "missing": ["rich"]})
    )
    text = summary(tmp_path, [{"step": "fit", "status": "failed", "seconds": 3.0, "error": "a | b"}])
    unpadded = "not measured / 1.2 | not measured / 1.4 | not measured / 1.5 | 2.00 / 1.5 ok"
    for words in (
        "# a GPU",
        "torch 2. Missing: rich.",
        "| 8 bit | not measured / 1.5 | 1.25 / 1.6 missed | 2.00 / 1.7 ok | not measured / 1.6 |",
        f"| half full, against unpadded bf16 | {unpadded} |",
        "| half full, against padded bf16 | not measured | not measured | not measured | 4.00 |",
        "| fp8 dense 0% / _scaled_mm | 1.50 / 1.05 missed | not measured / 1.05 |",  # the faster one counts
        "| int8 dense 0% / _scaled_mm | 1.10 / 1.2 ok | not measured / 1.2 |",
        "Training with lit_compress: 50.0 steps a second.",
        "| fit | failed | 3.0 | a / b |",
    ):
        assert words in text


def test_the_command_needs_no_package():
    """A bare machine may have none of ours before the kit's are found."""
    code = "import sys, tools.gpu.__main__; print({'torch', 'jsonargparse', 'lit_compress'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=run_module.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_texts_are_the_same_in_every_call(tmp_path):
    write_texts(tmp_path, 20)
    first = (tmp_path / "texts.tsv").read_text()
    write_texts(tmp_path, 20)
    assert (tmp_path / "texts.tsv").read_text() == first
    assert len(first.splitlines()) == 21


@pytest.mark.slow
def test_the_kit_is_small_and_runs_alone(tmp_path):
    folder = tmp_path / "kit"
    build = [sys.executable, "-m", "tools.gpu.kit", "--output", str(folder)]
    made = subprocess.run(build, cwd=run_module.ROOT, capture_output=True, text=True, check=False)
    if "No matching distribution" in made.stderr or "ConnectionError" in made.stderr:
        pytest.skip(f"no package index: {made.stderr.splitlines()[-1]}")
    assert made.returncode == 0, made.stderr[-2000:]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 60 * 2**20
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "tools.gpu", "--simulate", "--minutes", "10"]
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    ended = ended_before(folder / "gpu-results")
    assert {name: entry["error"] for name, entry in ended.items() if entry["status"] != "ok"} == {}
    assert set(ended) == {step.name for step in steps(tmp_path, tmp_path, simulate=True)}
    assert "Training with lit_compress" in (folder / "gpu-results" / "summary.md").read_text()
