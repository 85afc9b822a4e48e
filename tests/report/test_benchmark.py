"""What is measured, that outputs agree before, and what is made of the times; engines are played by functions."""

import csv
import json
import re
import shutil
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.report import benchmark as module
from lit_compress.report import timing
from lit_compress.report.benchmark import agreement, allowed, benchmark
from lit_compress.report.benchmark_table import check_results, markdown, print_results, save_results, tables
from lit_compress.report.timing import Case, cases_of, measure
from lit_compress.runtimes.engines import Variant
from lit_compress.runtimes.worker import batch_of


def case(model="a", engine="eager", file="model.onnx", packed=False) -> Case:
    variant = Variant(engine=engine, file=Path(file), bytes=2_000_000, packed=packed)
    return Case(model=model, source=model, variant=variant, vocabulary=30, longest=128)


class Player:
    """Answers like a worker: the same outputs each time, and one time after another."""

    def __init__(self, name, log, seconds=(), outputs=((1.0, -2.0),)):
        self.name, self.log, self.seconds, self.values = name, log, iter(seconds), outputs

    def __call__(self, do, **options):
        self.log.append((self.name, do, options))
        if do == "outputs":
            return {"outputs": {"logits": [list(row) for row in self.values]}}
        return {"seconds": [next(self.seconds) for _ in range(options["calls"])]}


def test_times_and_turns(monkeypatch, pause_of_users):
    log: list = []
    monkeypatch.setattr(timing, "_QUIET", pause_of_users)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: log.append(("pause", seconds, {})) if seconds else None)
    cases = [case(), case("b")]
    asks = [Player("a", log, [0.004, 0.0041, 0.0043]), Player("b", log, [0.001, 0.001, 0.010])]
    measure(cases, asks, [(2, 16)], warmup=4, repetitions=3)
    a, b = (one.results["times"]["2x16"] for one in cases)
    assert (a["median_ms"], b["median_ms"]) == pytest.approx((4.1, 1.0))
    assert a["texts_per_second"] == pytest.approx(2 / 0.0041)
    assert b["p90_ms"] == pytest.approx(8.2)
    assert a["times_ms"] == pytest.approx([4, 4.1, 4.3])
    warm, turns = log[:2], log[2:]
    # Before each the threads of the one before get quiet.
    assert [name for name, *_ in turns[::2]] == ["pause"] * 6
    assert min(seconds for _, seconds, _ in turns[::2]) > 0.04
    turns = turns[1::2]
    assert [(name, options["warmup"], options["calls"]) for name, _, options in warm] == [("a", 4, 0), ("b", 4, 0)]
    # Each turn has both, and each call that counts follows one of the same model that does not.
    assert [sorted(name for name, *_ in turns[i : i + 2]) for i in (0, 2, 4)] == [["a", "b"]] * 3
    assert all((options["warmup"], options["calls"]) == (1, 1) for _, _, options in turns)


def test_a_busy_machine_is_told_to_those_who_write_reports():
    busy = [0.004, 0.008, 0.008]
    asks = [Player("a", [], [*busy, *[0.004] * 3]), Player("b", [], [*busy, *[0.004] * 3])]
    told = measure([case(), case("b")], asks, [(2, 16), (1, 16)], warmup=1, repetitions=3)
    assert told == {"busy at 2x16": "2 of 3 timed rounds were disturbed"}


def test_a_busy_machine_is_in_what_benchmark_prints_and_saves(folders, monkeypatch):
    told = {"busy at 1x8": "2 of 3 timed rounds were disturbed"}
    shown: list = []
    monkeypatch.setattr(module, "opened", lambda *_: nullcontext([]))
    monkeypatch.setattr(module, "agreement", lambda *_: None)
    monkeypatch.setattr(module, "keep_memory", lambda *_: None)
    monkeypatch.setattr(module, "measure", lambda *_: told)
    monkeypatch.setattr(module, "print_results", shown.append)
    benchmark([str(folders / "one/model")], engines=["eager"], lengths=[8])
    assert shown[0]["machine"].items() >= told.items()


def test_forms_of_one_model_must_agree():
    cases = [case("a"), case("a", "onnxruntime"), case("b")]
    log: list = []
    asks = [Player("1", log), Player("2", log, outputs=((1.0, -2.01),)), Player("3", log, outputs=((9.0, 9.0),))]
    agreement(cases, asks, [0.01] * 3)
    assert [one.results["difference"] for one in cases] == [None, pytest.approx(0.005), None]
    with pytest.raises(UserError, match=r"a: onnxruntime model differs from eager by 0\.005") as caught:
        agreement(cases, asks, [0.001] * 3)
    assert "nothing was measured" in str(caught.value)


def test_8_bits_may_differ_by_more_and_that_is_said_before_anything_is_loaded(folders, monkeypatch, capsys):
    monkeypatch.setattr(timing, "installed", lambda engine: True)
    answers: dict[str, tuple] = {"eager": ((1.0, -2.0),), "onnxruntime model_quantized": ((1.3, -2.0),)}

    @contextmanager
    def played(cases, threads, device):
        sys.stdout.write("loading")
        yield [Player(one.label, [], [0.001] * 20, answers[one.label]) for one in cases]

    monkeypatch.setattr(module, "opened", played)
    monkeypatch.setattr(module, "keep_memory", lambda cases, asks: [c.results.update(memory_bytes=1) for c in cases])
    options = {"lengths": [8], "batch_sizes": [1], "warmup": 0, "repetitions": 1}
    benchmark([str(folders / "two/model")], **options)
    said, loaded, _ = capsys.readouterr().out.partition("loading")
    assert loaded
    assert "model, onnxruntime model_quantized differ by 0.5 of the largest output (--int8_tolerance)" in said
    with pytest.raises(UserError, match=r"by 0\.15 of the largest output; --int8_tolerance allows 0\.1"):
        benchmark([str(folders / "two/model")], **options, int8_tolerance=0.1)
    # As before there was an option of its own: a wide tolerance is for all.
    benchmark([str(folders / "two/model")], **options, int8_tolerance=0.1, tolerance=0.2)


def test_what_counts_as_8_bits():
    names = {"model_quantized": True, "openvino_model_qint8_quantized": True, "model": False}
    for stem, expected in names.items():
        assert case(engine="openvino", file=f"openvino/{stem}.xml").is_int8 is expected
    assert case(packed=True).is_int8
    assert not case(file="runs/int8").is_int8  # a folder of fp32 weights, whatever it is called
    cases = [case(), case(engine="openvino", file="model_int8.xml"), case(engine="onnxruntime"), case("b", packed=True)]
    assert allowed(cases, 0.05, 0.5) == [0.05, 0.5, 0.05, 0.05]
    assert allowed(cases[1:], 0.05, 0.5) == [0.05, 0.5, 0.05]


@pytest.mark.parametrize(
    ("outputs", "words"),
    [(((float("nan"), 0.0),), "not a finite number"), (((1.0,),), "shape"), (((1.0, -9.0),), "differs")],
)
def test_wrong_outputs_stop_everything(outputs, words):
    asks = [Player("1", []), Player("2", [], outputs=outputs)]
    with pytest.raises(UserError, match=words):
        agreement([case(), case(engine="openvino")], asks, [0.1] * 2)


def test_scores_of_words_beyond_the_smaller_table_are_left_out():
    cases = [case(), replace(case(engine="onnxruntime"), vocabulary=32)]
    scores = [float(word) for word in range(32)]
    agreement(cases, [Player("1", [], outputs=(scores[:30],)), Player("2", [], outputs=(scores,))], [0.01] * 2)
    assert cases[1].results["difference"] == 0


@pytest.mark.parametrize(
    ("name", "shape", "difference"),
    [("last_hidden_state", (2,), 0.0), ("start_logits", (), 0.0), ("logits", (), 0.5)],
)
def test_padding_is_not_compared(name, shape, difference):
    """Fused layers give 0 there; scores of as many classes as there are tokens are none of padding."""

    def answering(at_padding):
        def ask(command, rows, tokens, vocabulary):
            mask = batch_of(rows, tokens, vocabulary, padded=True)["attention_mask"]
            values = np.where(mask, 2.0, at_padding).reshape(rows, tokens, *(1 for _ in shape))
            return {"outputs": {name: np.broadcast_to(values, (rows, tokens, *shape)).tolist()}}

        return ask

    cases = [case(), case(packed=True)]
    agreement(cases, [answering(2.0), answering(1.0)], [0.6, 0.6])
    assert cases[1].results["difference"] == difference


def test_the_gate_has_padding():
    log: list = []
    agreement([case()], [Player("1", log)], [0.1])
    assert {(options["rows"], options["tokens"]) for _, _, options in log} == {(1, 7), (3, 16)}


@pytest.fixture
def folders(tmp_path, tiny_teacher):
    for name in ("run/one/model", "run/two/model"):
        shutil.copytree(tiny_teacher, tmp_path / name)
    (tmp_path / "run/two/model/onnx").mkdir()
    (tmp_path / "run/two/model/onnx/model_quantized.onnx").write_bytes(b"x" * 10)
    return tmp_path / "run"


def test_what_is_measured(folders, monkeypatch):
    monkeypatch.setattr(timing, "installed", lambda engine: True)
    found = cases_of([str(folders / "one/model"), f"mine={folders / 'two/model'}", str(folders / "two/model")], None)
    assert [(one.model, one.label) for one in found] == [
        ("one/model", "eager"),
        ("mine", "eager"),
        ("mine", "onnxruntime model_quantized"),
        ("two/model", "eager"),
        ("two/model", "onnxruntime model_quantized"),
    ]
    assert {(one.vocabulary > 10, one.longest) for one in found} == {(True, 128)}
    only = cases_of([str(folders / "one/model")], ["compile"])
    assert [one.label for one in only] == ["compile"]
    assert case(packed=True).label == "packed, eager"


@pytest.mark.parametrize(
    ("models", "engines", "there", "words"),
    [
        ([], None, True, "one or more models"),
        (["one/model"], ["onnxruntime"], True, "runs on none of"),
        (["one/model"], ["openvino"], False, "pip install"),
        (["one"], None, True, "config.json"),
        (["nothing"], None, True, "does not exist|neither"),
        (["one/model", "two/model"], ["eager", "openvino"], True, "openvino has nothing to run"),
    ],
)
def test_mistakes(folders, monkeypatch, models, engines, there, words):
    monkeypatch.setattr(timing, "installed", lambda engine: there)
    with pytest.raises(UserError, match=words):
        cases_of([str(folders / name) for name in models], engines)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_sizes": []}, "batch_sizes"),
        ({"lengths": [0]}, "lengths"),
        ({"repetitions": 0}, "repetitions"),
        ({"threads": -1}, "threads"),
        ({"warmup": -1}, "warmup"),
        ({"tolerance": 0.0}, "--tolerance: 0.0"),
        ({"int8_tolerance": -0.1}, "--int8_tolerance: -0.1"),
        ({"output": "x.txt"}, ".json or .csv"),
        ({"lengths": [129]}, "129 is above 128"),
    ],
)
def test_wrong_settings(folders, options, words):
    with pytest.raises(UserError, match=words):
        benchmark([str(folders / "one/model")], **{"engines": ["eager"], **options})


def test_a_name_with_a_bar_stays_in_its_cell():
    named = results()
    for case_ in named["cases"]:
        case_["model"] = "a|b"
    lines = [line for line in markdown(named).splitlines() if line.startswith("|")]
    assert any("a\\|b" in line for line in lines)
    assert not any(" a|b " in line for line in lines)


def results() -> dict:
    times = {"median_ms": 4.0, "p90_ms": 5.0, "texts_per_second": 250.0, "times_ms": [4.0]}
    first = {"model": "dense", "source": "d", "engine": "eager", "bytes": 4_000_000, "memory_bytes": 10_000_000}
    other = first | {"model": "small", "engine": "onnxruntime model", "memory_bytes": None, "difference": 0.001}
    faster = times | {"median_ms": 1.0}
    return {
        "command": "lit_compress benchmark d s",
        "machine": {"device": "a processor", "threads": "2", "torch": "2.13"},
        "settings": {"repetitions": 1},
        "cases": [
            first | {"difference": None, "times": {"1x16": times, "8x16": times}},
            other | {"times": {"1x16": faster, "8x16": times}},
        ],
    }


def test_the_tables_say_what_was_measured(capsys):
    (untitled, about), *by_shape = tables(results())
    assert untitled == ""
    assert about[1:] == [
        ("dense", "eager", "4.0 MB", "10 MB", ""),
        ("small", "onnxruntime model", "4.0 MB", "", "1.0e-03"),
    ]
    assert [title for title, _ in by_shape] == [f"{n} x 16 tokens; 1.00x is dense, eager" for n in (1, 8)]
    assert [[row[-1] for row in rows[1:]] for _, rows in by_shape] == [["1.00x", "4.00x"], ["1.00x", "1.00x"]]
    for _, rows in tables(results()):
        assert {len(row) for row in rows} == {len(rows[0])}
    print_results(results())
    assert "a processor, 2 threads; torch 2.13" in capsys.readouterr().out


def test_speeds_are_to_the_fastest_form_of_the_first_model():
    given = results()
    graph = given["cases"][1] | {"model": "dense", "engine": "openvino openvino_model"}
    graph["times"] = {name: times | {"median_ms": 2.0} for name, times in graph["times"].items()}
    given["cases"].insert(1, graph)
    _, (title, rows), _ = tables(given)
    assert title == "1 x 16 tokens; 1.00x is dense, openvino model"
    assert [row[-1] for row in rows[1:]] == ["0.50x", "1.00x", "2.00x"]


@pytest.mark.parametrize("width", ["30", "80", "300"])
def test_tables_fit_a_window_and_nothing_is_cut(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    given = results() | {"score": "exact_match"}
    given["cases"][1] |= {"model": "compressed-tensors", "engine": "openvino openvino_model_qint8_quantized"}
    for one in given["cases"]:
        one |= {"bytes": 1_438_100_000, "memory_bytes": 12_345_000_000, "metrics": {"exact_match": 57.0119}}
        for times in one["times"].values():
            times |= {"median_ms": 12345.67, "p90_ms": 23456.78, "texts_per_second": 12345.6}
    print_results(given)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= max(int(width), 60)
    printed = re.sub(r"\s+", " ", " ".join(lines))
    for text in ("1438.1 MB", "12345 MB", "57.0119", "1.0e-03", "12345.67", "23456.78", "12345.6", "1.00x"):
        assert text in printed
    if width != "30":
        for text in ("compressed-tensors", "openvino", "model_qint8_quantized", "1 x 16 tokens; 1.00x is dense, eager"):
            assert text in printed


def test_figures_as_files(tmp_path):
    save_results(results(), tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == results()
    save_results(results(), tmp_path / "b.csv")
    with (tmp_path / "b.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["model"], line["batch_size"], line["length"], line["speedup"]) for line in lines] == [
        ("dense", "1", "16", "1.0"),
        ("dense", "8", "16", "1.0"),
        ("small", "1", "16", "4.0"),
        ("small", "8", "16", "1.0"),
    ]
    for name in ("b.json", "b.csv"):
        check_results(tmp_path / name)  # may be replaced
        (tmp_path / name).write_text("model,source,mine")
        with pytest.raises(UserError, match="did not write"):
            check_results(tmp_path / name)


@pytest.mark.slow
def test_two_models_in_processes_of_their_own(folders, tmp_path, capsys):
    shutil.rmtree(folders / "two/model/onnx")
    main(
        [
            *("benchmark", f"dense={folders / 'one/model'}", f"dense={folders / 'two/model'}", "--engines=[eager]"),
            *("--batch_sizes=[1,2]", "--lengths=[8]", "--repetitions=2", f"--output={tmp_path / 'out.json'}"),
        ]
    )
    measured = json.loads((tmp_path / "out.json").read_text())
    assert [one["difference"] for one in measured["cases"]] == [None, 0.0]
    for one in measured["cases"]:
        assert set(one["times"]) == {"1x8", "2x8"}
        assert all(len(times["times_ms"]) == 2 and times["median_ms"] > 0 for times in one["times"].values())
    assert "dense" in capsys.readouterr().out
