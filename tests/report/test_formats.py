"""A tiny run in every format that is installed, by the command; what each line says is checked against another way."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from contracts.labels import swapped
from contracts.own_data import use_own_rows
from torchmetrics import MetricCollection

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.export.command import _WRITERS
from lit_compress.report.formats import evaluate_cases, formats, recommendation
from lit_compress.report.measure import measure_run
from lit_compress.report.timing import Case
from lit_compress.runtimes.engines import Variant
from lit_compress.runtimes.worker import memory_now
from lit_compress.tasks import Batch, ClassificationTask, MaskedWordsTask, make_task


def test_every_format_side_by_side(finished, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    pytest.importorskip("compressed_tensors")
    # Three runtimes in one process are enough; that of the tests has seen more.
    given = [f"--run={finished}", f"--output={tmp_path / 'out'}", "--repetitions=2", "--batch_sizes=[2]"]
    done = subprocess.run([sys.executable, "-m", "lit_compress", "formats", *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    results = json.loads((tmp_path / "out" / "formats.json").read_text())
    assert results["left_out"] == {}
    table = (tmp_path / "out" / "formats.md").read_text().splitlines()
    names = [line.split("|")[1].strip() for line in table if line.startswith("|")]
    assert names == 2 * ["model", "---", "dense", *_WRITERS]  # what each is, and how fast
    cases = {case["model"]: case for case in results["cases"]}
    assert list(cases) == ["dense", *_WRITERS]
    assert [name for name in cases if name not in said] == []
    report = measure_run(finished, None, [1], 1)
    for name, measured in {"dense": "dense", "hf": "compressed"}.items():
        assert cases[name]["metrics"] == pytest.approx(report["models"][measured]["accuracy"])
    assert cases["dense"]["difference"] is None
    assert cases["hf"]["difference"] is None
    assert cases["sparse"]["difference"] == 0
    assert max(cases[name]["difference"] for name in ("packed", "onnx", "openvino")) < 1e-4
    # The others round inputs.
    assert max(case["difference"] or 0 for case in cases.values()) < 0.1
    assert set(cases["packed"]["times"]) == {"2x16"}
    assert cases["sparse"]["bytes"] < cases["hf"]["bytes"]
    # All of it may be replaced, also where an earlier version left no list of files.
    for name in _WRITERS:
        (tmp_path / "out" / name / ".lit_compress.json").unlink()
    with pytest.raises(UserError, match="nowhere"):
        formats("nowhere", str(tmp_path / "out"), overwrite=True)


def test_integers_are_for_the_processor_that_is_named(finished, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    for processor in ("any", "vnni"):
        places = [f"--run={finished}", f"--output={tmp_path / processor}", f"--processor={processor}"]
        main(["formats", *places, "--to=[onnx-int8]", "--repetitions=1", "--batch_sizes=[1]"])
        graph = onnx.load(tmp_path / processor / "onnx-int8" / "onnx" / "model_quantized.onnx")
        named = {each.key: each.value for each in graph.metadata_props}
        assert ("lit_compress.session" in named) == (processor == "any")
        figures = json.loads((tmp_path / processor / "formats.json").read_text())
        assert figures["settings"]["processor"] == processor


@pytest.mark.parametrize("lengths", [None, [5]])
def test_a_data_module_of_ones_own_has_the_length_of_its_longest_text(
    lengths, finished, tiny_data, tiny_teacher, tmp_path
):
    run = shutil.copytree(finished, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    use_own_rows(config, tiny_data, tiny_teacher)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    formats(str(run), str(tmp_path / "out"), to=["hf"], lengths=lengths, batch_sizes=[1], repetitions=1)
    figures = json.loads((tmp_path / "out/formats.json").read_text())
    assert figures["validation_rows"] == 16
    (length,) = figures["settings"]["lengths"]
    assert length == 5 if lengths else 5 < length <= 12


def evaluated(values, words, batches, folder, seen):
    """Results of models that give one value each for every word, and the memory of this process at each call."""
    rows, tokens = 8, 16

    class Texts:
        def val_dataloader(self):
            ids = torch.ones(rows, tokens, dtype=torch.long)
            return [Batch({"input_ids": ids, "attention_mask": ids}, {"labels": ids}, {}) for _ in range(batches)]

    def answering(value):
        def ask(command, inputs, outputs):
            np.savez(outputs, logits=np.full((rows, tokens, words), value, np.float32))
            seen.append(memory_now())

        return ask

    variant = Variant(engine="eager", file=folder, bytes=0)
    cases = [Case(model=name, source="", variant=variant, vocabulary=words, longest=None) for name in values]
    evaluate_cases(cases, [answering(value) for value in values.values()], Texts(), make_task("masked_lm", None), "hf")
    return {case.model: case.results["difference"] for case in cases}


def test_differences_are_shares_of_the_reference_and_nan_stays_nan(tmp_path):
    values = {"dense": 0.1, "hf": 0.5, "other": 0.75, "broken": math.nan}
    found = evaluated(values, 10, 2, tmp_path, [])
    assert math.isnan(found.pop("broken"))
    assert found == {"dense": None, "hf": None, "other": 0.5}


@pytest.mark.parametrize(("names", "found"), [(["logits"], 1.0), (["start_logits", "end_logits"], 0.0)])
def test_padding_is_left_out_where_there_is_a_value_of_each_token(names, found, tmp_path, monkeypatch):
    """Classes of a text are not tokens, also where there are as many."""
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 0], [1, 0, 0]])

    class Texts:
        def val_dataloader(self):
            return [Batch({"input_ids": ids, "attention_mask": mask}, {"labels": torch.tensor([0, 1])}, {})]

    def answering(at_padding):
        values = np.ones((2, 3), np.float32)
        values[:, 2] = at_padding
        return lambda command, inputs, outputs: np.savez(outputs, **dict.fromkeys(names, values))

    task = make_task("classification", ["a", "b", "c"])
    monkeypatch.setattr(task, "update", lambda *given: None)
    monkeypatch.setattr(task, "metrics", lambda prefix: MetricCollection({}))
    variant = Variant(engine="eager", file=tmp_path, bytes=0)
    cases = [Case(model=name, source="", variant=variant, vocabulary=9, longest=None) for name in ("hf", "other")]
    evaluate_cases(cases, [answering(1.0), answering(2.0)], Texts(), task, "hf")
    assert cases[1].results["difference"] == found


@pytest.mark.skipif(memory_now() == 0, reason="this system does not say how much memory a process has")
def test_outputs_of_one_batch_at_a_time_are_in_memory(tmp_path):
    words, batches, seen = 20000, 20, []
    evaluated({"hf": 0.5, "other": 0.75}, words, batches, tmp_path, seen)
    assert max(seen) - seen[0] < 10 * (8 * 16 * words * 4)  # of 40 that passed by


def test_a_format_that_cannot_hold_the_model_is_said(finished, tmp_path, capsys, monkeypatch):
    def refuse(folded, folder):
        raise UserError("no room for this model")

    monkeypatch.setattr("lit_compress.export.sparse_file.write_sparse", refuse)
    given = {"run": str(finished), "repetitions": 1, "batch_sizes": [1]}
    formats(output=str(tmp_path / "out"), to=["sparse", "packed"], **given)
    assert "sparse left out: no room for this model" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["formats.json", "formats.md", "packed"]
    with pytest.raises(UserError, match="no room"):
        formats(output=str(tmp_path / "none"), to=["sparse"], **given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"run": "nowhere"}, ["--run", "nowhere"]),
        ({"batch_sizes": [0]}, ["--batch_sizes"]),
        ({"repetitions": 0}, ["--repetitions"]),
        ({"warmup": -1}, ["--warmup", "-1"]),
        ({"lengths": [8, 129]}, ["--lengths: 129 is above 128", "--run"]),
        ({"output": "{run}", "to": ["hf"]}, ["--output", "--overwrite"]),
        ({"to": ["hf", "onnx"], "processor": "vnni"}, ["--processor", "hf, onnx", "onnx-int8"]),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(options, words, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "hf").mkdir()
    options = {name: str(copy) if value == "{run}" else value for name, value in options.items()}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        formats(**{"run": str(copy), "output": "out", **options})
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dense_model_with_its_classes_in_another_order(finished, tiny_teacher, tmp_path):
    given = {"run": str(finished), "to": ["hf"], "repetitions": 1, "batch_sizes": [1]}
    renamed = swapped(tiny_teacher, tmp_path / "renamed", ("HIGH", "LOW"))
    with pytest.raises(UserError, match="--label_map"):
        formats(output=str(tmp_path / "refused"), dense=str(renamed), **given)
    assert not (tmp_path / "refused").exists()
    formats(output=str(tmp_path / "out"), dense=str(renamed), label_map={"HIGH": 1, "LOW": 0}, **given)
    cases = json.loads((tmp_path / "out" / "formats.json").read_text())["cases"]
    expected = measure_run(finished, None, [1], 1)["models"]
    assert [case["metrics"] for case in cases] == [
        pytest.approx(expected[name]["accuracy"]) for name in ("dense", "compressed")
    ]


def case(model, milliseconds, **metrics):
    return {"model": model, "engine": "x", "times": {"1x8": {"median_ms": milliseconds}}, "metrics": metrics}


@pytest.mark.parametrize(
    ("cases", "task", "part"),
    [
        (
            [("a", 4.0, 0.9), ("b", 2.0, 0.895), ("c", 1.0, 0.88)],
            ClassificationTask,
            "b on x: 3.00x the speed of dense",
        ),
        ([("a", 8.0, 0.9)], ClassificationTask, "dense on x: none is faster at 1x8"),
        ([("a", 2.0, 0.8)], ClassificationTask, "dense on x: none that is faster loses at most a point at 1x8"),
        ([("a", 2.0, 0.8)], MaskedWordsTask, "a on x"),  # its first score is better when it is lower
    ],
)
def test_the_fastest_that_loses_at_most_a_point_is_recommended(cases, task, part):
    name = "accuracy" if task is ClassificationTask else "perplexity"
    measured = [case("dense", 6.0, **{name: 0.9}), *(case(model, ms, **{name: score}) for model, ms, score in cases)]
    made = task(["no", "yes"]) if task is ClassificationTask else task()
    assert f"Recommended: {part}" in recommendation(measured, made)
