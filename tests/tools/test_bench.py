import csv
import json
import math
from pathlib import Path

import pytest
from torch import nn
from transformers import AutoConfig, AutoModel

from lit_compress import cli
from lit_compress.export.activation_ranges import layers_of_static_inputs
from lit_compress.models.packed import packed_linears
from lit_compress.nn import CompressibleLinear
from lit_compress.planning import measure_latency
from tools.bench import baselines, import_time, latency_table, measure
from tools.bench import encoder as encoder_bench
from tools.bench.deployment import HALF, ROSITA, deployment
from tools.bench.encoder import DYNAMIC, Variant, batches, comparisons, encoder, gate, packed
from tools.bench.exports import exports
from tools.bench.hf_trainer import hf_trainer
from tools.bench.inverse_fisher import inverse_fisher
from tools.bench.mask_update import PATTERNS, check, mask_update
from tools.bench.measure import Row, interleave, model_source, publish, require_close, synthetic_batches
from tools.bench.memory import memory
from tools.bench.memory import ratios as memory_ratios
from tools.bench.targets import ENCODERS
from tools.bench.teacher_cache import teacher_cache
from tools.bench.training_step import rows, training_step

TINY = "random:2x32"


@pytest.fixture
def table(tmp_path):
    """Where a benchmark writes; called, it is what was written, checked for what every row must have."""
    path = tmp_path / "results.csv"

    def read():
        with path.open() as file:
            written = list(csv.DictReader(file))
        for row in written:
            low, median, high = (float(row[f"ratio_{name}"]) for name in ("min", "median", "max"))
            assert 0 < low <= median <= high < math.inf
            assert row["commit"]
            assert row["device"]
        return {row["case"]: row for row in written}

    read.path = path
    return read


def test_cases_take_turns():
    order = []

    def case(name):
        order.append(name)
        return len(order)

    measured = interleave({"a": lambda: case("a"), "b": lambda: case("b")}, 3)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert measured == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_row_has_median_and_spread(table, capsys):
    row = Row(benchmark="x", case="new", baseline="old", ratios=[3.0, 1.0, 1.5], target=1.2, settings={"rows": 4})
    publish([row], table.path)
    publish([row], table.path)
    written = table()["new"]
    assert (written["ratio_median"], written["ratio_min"], written["ratio_max"]) == ("1.5000", "1.0000", "3.0000")
    assert written["repetitions"] == "3"
    assert written["settings"] == '{"rows": 4}'
    assert len(table.path.read_text().splitlines()) == 3
    printed = capsys.readouterr().out
    assert "<= 1.2  MISSED" in printed
    assert "command: " in printed


def test_a_ratio_that_is_no_number_is_refused(table):
    with pytest.raises(SystemExit, match="no number"):
        publish([Row(benchmark="x", case="new", baseline="old", ratios=[math.nan])], table.path)
    assert not table.path.exists()


def test_gate_stops_on_a_difference():
    require_close("losses", [1.0, 2.0], [1.0, 2.0 + 1e-7], 1e-6)
    with pytest.raises(SystemExit, match="losses differ by more than 1e-06"):
        require_close("losses", [1.0, 2.0], [1.0, 2.1], 1e-6)


def test_model_source_passes_names_on_and_makes_random_models(tmp_path):
    assert model_source("bert-base-uncased", tmp_path) == "bert-base-uncased"
    path = model_source("random:1x64", tmp_path, vocabulary=50)
    assert path == model_source("random:1x64", tmp_path)
    assert synthetic_batches(2, 3, 4, 50)[1].inputs["input_ids"].shape == (3, 4)


def test_distillation_is_compared_less_the_teacher():
    seconds = {"plain": [1.0, 2.0], "distillation": [1.5, 3.0], "teacher forward": [0.4, 1.0]}
    seconds |= {"masks": [1.0, 2.0], "masks + qat": [1.0, 2.0], "structured": [1.0, 2.0]}
    beyond = {row.case: row for row in rows(seconds, {})}["distillation - teacher"]
    assert beyond.ratios == pytest.approx([1.1, 1.0])
    assert beyond.target == 1.05


def test_memory_ratio_leaves_the_interpreter_out():
    peaks = {"interpreter": [100.0], "student": [150.0], "teacher": [20.0], "both": [177.0]}
    assert memory_ratios(peaks, "both") == [1.1]


def test_mask_gate_sees_a_wrong_pattern():
    layer = CompressibleLinear.from_linear(nn.Linear(8, 4))
    layer.add_mask()
    layer.weight_mask[:, ::2] = False
    layer.weight.data.mul_(layer.weight_mask)
    check(PATTERNS["2:4"], [layer])
    with pytest.raises(SystemExit, match="do not follow '1x4'"):
        check(PATTERNS["1x4"] | {"sparsity": 0.5}, [layer])
    layer.weight.data.fill_(1.0)
    with pytest.raises(SystemExit, match="is not 0"):
        check(PATTERNS["2:4"], [layer])


def test_training_step(table):
    training_step(model=TINY, batch_size=2, tokens=8, steps=3, skip=1, repetitions=1, output=table.path)
    written = table()
    assert set(written) == {
        "masks",
        "masks + qat",
        "structured",
        "distillation",
        "teacher forward",
        "distillation - teacher",
    }
    assert written["structured"]["baseline"] == "masks"


def test_mask_update(table, capsys):
    mask_update(model=TINY, batch_size=2, tokens=8, steps=2, scale=4.0, output=table.path)
    written = table()
    assert set(written) == set(PATTERNS)
    assert {row["baseline"] for row in written.values()} == {"training step x 4"}
    assert "at most 1 % of training when updated every" in capsys.readouterr().out


def test_hf_trainer(table, tiny_model, tiny_data):
    pytest.importorskip("accelerate")
    hf_trainer(
        model=str(tiny_model),
        train_file=str(tiny_data / "train.tsv"),
        text_columns=["sentence"],
        batch_size=4,
        tokens=16,
        steps=4,
        repetitions=1,
        output=table.path,
    )
    assert set(table()) == {"lit_compress"}


def test_teacher_cache(table, tiny_model, tiny_data):
    teacher_cache(
        model=str(tiny_model),
        train_file=str(tiny_data / "train.tsv"),
        text_columns=["sentence"],
        batch_size=4,
        tokens=16,
        steps=4,
        repetitions=1,
        output=table.path,
    )
    written = table()
    assert set(written) == {"cached teacher", "teacher asked"}
    assert {row["baseline"] for row in written.values()} == {"no teacher"}
    assert "seconds_until_first_step" in written["cached teacher"]["settings"]


def test_teacher_cache_with_more_labels_than_the_model(table, tiny_model, tmp_path):
    (tmp_path / "three.tsv").write_text("".join(["text\tlabel\n", *(f"a good film {i}\t{i % 3}\n" for i in range(30))]))
    options = {"batch_size": 4, "tokens": 16, "steps": 4, "repetitions": 1, "output": table.path}
    teacher_cache(model=str(tiny_model), train_file=str(tmp_path / "three.tsv"), **options)
    assert "cached teacher" in table()


@pytest.mark.skipif(not measure.Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory(table):
    memory(model=TINY, batch_size=2, tokens=8, steps=1, repetitions=1, output=table.path)
    assert set(table()) == {"student + teacher"}


@pytest.mark.skipif(not measure.Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_inverse_fisher(table):
    # Large enough that pages and what the allocator keeps do not matter.
    inverse_fisher(rows=1024, columns=512, gradients=9, repetitions=1, output=table.path)
    assert set(table()) == {"batched", "peak memory"}
    assert 0.9 < float(table()["peak memory"]["ratio_median"]) < 1.3


def test_encoder(table, tmp_path):
    encoder(
        model="random:2x64",
        shapes=["4x8"],
        fills=[1.0, 0.5],
        repetitions=1,
        output=table.path,
        plot=tmp_path / "bars.png",
    )
    assert set(table()) == {f"{variant}, 4x8, fill {fill}" for variant in (*ENCODERS, DYNAMIC) for fill in ("1", "0.5")}
    assert all("relative_error" in row["settings"] for row in table().values())
    assert (tmp_path / "bars.png").stat().st_size > 0


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_packed_encoders_have_the_static_scales_that_a_trained_one_has(dtype, tiny_model):
    model = AutoModel.from_pretrained(tiny_model).eval()
    static, dynamic = (
        {name for name, linear in packed_linears(packed(model, case, dtype)).items() if linear.input_scale is not None}
        for case in ("8 bit", DYNAMIC)
    )
    assert static == set(layers_of_static_inputs(model))
    assert len(static) == 2 * model.config.num_hidden_layers
    assert not dynamic


SECONDS = {"bf16, eager in a graph": [3.0], "bf16, compiled": [2.0], "torchao fp8": [1.5], "8 bit": [1.0]}
SHAPE = {"shape": "32x128", "fill": 1.0}


def test_encoder_is_compared_with_the_fastest_and_says_which():
    wrong = {"bf16, eager in a graph": [], "bf16, compiled": []}
    found = {row.case: row for row in comparisons(SECONDS, wrong, ["torchao fp8"], SHAPE, {"8 bit": 0.01})}
    assert {row.baseline for row in found.values()} == {"bf16, compiled"}
    assert found["8 bit, 32x128, fill 1"].ratios == [0.5]
    assert found["8 bit, 32x128, fill 1"].target == 1 / ENCODERS["8 bit"]["32x128"]
    assert set(found) == {f"{case}, 32x128, fill 1" for case in ("bf16, eager in a graph", "torchao fp8", "8 bit")}


def test_a_baseline_with_slow_attention_is_refused_aloud():
    wrong = {"bf16, eager in a graph": [], "bf16, compiled": ["attention in fp32: x"]}
    found = {row.case: row for row in comparisons(SECONDS, wrong, [], SHAPE, {"8 bit": 0.01})}
    assert found["8 bit, 32x128, fill 1"].baseline == "bf16, eager in a graph"
    assert found["REFUSED bf16, compiled, 32x128, fill 1"].settings["refused"] == ["attention in fp32: x"]
    with pytest.raises(SystemExit, match="no fair baseline"):
        list(comparisons(SECONDS, {case: ["attention in fp32"] for case in wrong}, [], SHAPE, {}))


def test_half_full_batches_are_compared_with_both_kinds():
    seconds = {"padded bf16, compiled": [4.0], "unpadded bf16, compiled": [2.0], "8 bit": [1.0]}
    wrong = {"padded bf16, compiled": [], "unpadded bf16, compiled": []}
    found = list(comparisons(seconds, wrong, [], SHAPE | {"fill": 0.5}, {"8 bit": 0.01}))
    ours = [(row.baseline, row.median, row.target) for row in found if row.case.startswith("8 bit")]
    assert ours == [("unpadded bf16, compiled", 0.5, 1 / 1.4), ("padded bf16, compiled", 0.25, None)]
    with pytest.raises(SystemExit, match="no fair baseline"):
        list(comparisons(seconds, wrong | {"unpadded bf16, compiled": ["no flash attention"]}, [], SHAPE, {}))


@pytest.mark.parametrize("fill", [1.0, 0.5])
def test_what_a_gpu_measures_runs(fill, tiny_model, monkeypatch):
    """Everything but graphs, compilation and profiles, of which there are none on a CPU."""
    monkeypatch.setattr(baselines, "captured", lambda run, _: run)
    monkeypatch.setattr(baselines, "compiled", lambda run: run)
    monkeypatch.setattr(encoder_bench, "captured", lambda run, _: run)
    monkeypatch.setattr(encoder_bench, "kernel_names", lambda run: [run() is None, "flash_fwd_kernel"][1:])
    monkeypatch.setattr(encoder_bench, "in_place", lambda model, _: model.eval())
    dense = AutoModel.from_pretrained(tiny_model).eval()
    variants = encoder_bench.make_variants(dense, "fp8", "cpu")
    given = batches("4x8", fill, 30, "cpu")
    settings = {"shape": "32x128", "fill": fill}
    found = encoder_bench.beside_bf16(dense, variants, given, 1, settings, dict.fromkeys(ENCODERS, 0.0), torchao=False)
    kinds = {"unpadded bf16", "padded bf16"} if fill < 1 else {"bf16"}
    assert {row.baseline.split(",")[0] for row in found if row.case.startswith("8 bit")} == kinds
    assert found[0].settings["kernels"]["8 bit"] == 1
    assert not any("REFUSED" in row.case for row in found)
    assert not found[0].settings["failed"]


@pytest.mark.parametrize("error", ["no such operator", "its hidden states are off by"])
def test_a_baseline_that_fails_stops_nothing(error, tiny_model, monkeypatch, capsys):
    def broken(run):
        if error == "no such operator":
            raise RuntimeError(f"{error}\nand more")
        return lambda batch: 2 * run(batch)

    monkeypatch.setattr(baselines, "captured", lambda run, _: run)
    monkeypatch.setattr(baselines, "compiled", broken)
    monkeypatch.setattr(encoder_bench, "captured", lambda run, _: run)
    monkeypatch.setattr(encoder_bench, "kernel_names", lambda run: ["flash_fwd_kernel"])
    monkeypatch.setattr(encoder_bench, "in_place", lambda model, _: model.eval())
    dense = AutoModel.from_pretrained(tiny_model).eval()
    variants = encoder_bench.make_variants(dense, "fp8", "cpu")[:1]
    given = batches("4x8", 1.0, 30, "cpu")
    found = encoder_bench.beside_bf16(dense, variants, given, 1, SHAPE, {"8 bit": 0.0}, torchao=False)
    assert {row.baseline for row in found} == {"bf16, eager in a graph"}
    assert [row.case.partition(", 32x128")[0] for row in found] == [encoder_bench.BY_HAND, "8 bit"]
    assert found[0].settings["failed"]["bf16, compiled"].startswith(error)
    assert f"REFUSED bf16, compiled: {error}" in capsys.readouterr().err


def test_encoder_gate_sees_a_wrong_model(tiny_model):
    right, wrong = (AutoModel.from_pretrained(tiny_model).eval() for _ in range(2))
    wrong.encoder.layer[0].output.dense.weight.data.mul_(50)
    batch = batches("4x8", 0.5, 30, "cpu")[0]
    assert sorted(batch["attention_mask"].sum(1).tolist()) == [1, 3, 5, 8]
    assert gate(Variant(name="same", folded=right, packed=right), batch) == 0
    with pytest.raises(SystemExit, match="other differs from its folded model"):
        gate(Variant(name="other", folded=right, packed=wrong), batch)


def test_deployment(table):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    deployment(model="random:3x64", batch_sizes=[1], tokens=8, repetitions=2, output=table.path)
    found = table()
    assert list(found) == [
        f"{name}, 1 x 8" for name in (f"{ROSITA}: onnxruntime", f"{ROSITA}: openvino", f"{HALF}: onnxruntime")
    ]
    settings = json.loads(found[f"{HALF}: onnxruntime, 1 x 8"]["settings"])
    assert settings["engines"][0] == "dense: eager"
    assert set(settings["ms"]) == set(settings["engines"])


def test_exports(table):
    exports(model="random:2x64", to=["sparse"], output=table.path)
    found = table()
    assert set(found) == {"memory, sparse", "time, sparse", "file, sparse"}
    # A tenth of the layers' weights in a byte, a bit for each, tables in a byte.
    assert 0.2 < float(found["file, sparse"]["ratio_median"]) < 0.3


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertForMaskedLM"])
def test_latency_table_sets_what_is_predicted_beside_what_is_measured(head, table, tiny_teacher, tmp_path, monkeypatch):
    AutoConfig.from_pretrained(tiny_teacher, architectures=[head]).save_pretrained(tmp_path / "model")

    def taking(seconds):
        def measured(config, structures, *_):
            times = {name: seconds * (1 + len(each.kept)) for name, each in structures.items()}
            return measure_latency.Measured(times)

        return measured

    monkeypatch.setattr(measure_latency, "HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setattr(measure_latency, "measure_structures", taking(1e-3))
    monkeypatch.setattr(latency_table, "measure_structures", taking(5e-4))
    latency_table.latency_table(str(tmp_path / "model"), ["hf"], "1x16", structures=3, threads=1, output=table.path)
    (row,) = table().values()
    assert float(row["ratio_median"]) == pytest.approx(2.0)
    settings = json.loads(row["settings"])
    assert settings["largest error"] == pytest.approx(1.0)
    assert len(settings["measured ms"]) == 3


def test_import_time_divides_each_start_by_its_own_baseline(table, monkeypatch):
    seconds = {import_time.PARSING: 0.1, import_time.TORCH: 1.0, import_time.THEIRS: 5.0}

    def measured(arguments, folder):
        assert (Path(folder) / "texts.tsv").is_file()
        if arguments[0] == "-c":
            return seconds.get(arguments[1], 6.0)  # the package, and a model's loading
        return {"fit": 0.2, "report": 0.5}.get(arguments[2], 0.1) if arguments[-1] == "--help" else 9.0

    monkeypatch.setattr(import_time, "processor_seconds", measured)
    import_time.main(2, table.path)
    assert {case: float(row["ratio_median"]) for case, row in table().items()} == {
        "lit_compress --help": 1.0,
        "lit_compress COMMAND --help": 0.5,  # the slowest of them
        "lit_compress fit up to its first batch": 1.5,
        "import lit_compress": 1.2,
    }


def test_import_time_measures_every_command():
    assert {*import_time.COMMANDS} == {*cli._COMMANDS, *cli._TRAINING}


def test_help_of_a_command_costs_less_than_torch():
    """The bench says how much less; here is room for a busy machine."""

    def cost(*arguments: str) -> float:
        return min(import_time.processor_seconds(arguments, ".") for _ in range(2))

    assert cost("-m", "lit_compress", "export", "--help") < 0.7 * cost("-c", "import torch")
