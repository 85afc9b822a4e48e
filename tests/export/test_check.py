"""Integer exports are judged on examples, as their users judge them: predictions that stay the same, and the score."""

import json
from contextlib import nullcontext
from functools import partial
from shutil import copytree
from types import SimpleNamespace

import pytest
import torch
import yaml
from contracts.errors import error_of
from export.quantized import quantized, tiny_tokenizer
from models.families import build
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BigBirdConfig,
    BigBirdForSequenceClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
)

import lit_compress.export.check
import lit_compress.export.command
import lit_compress.export.examples
import lit_compress.export.onnx
from lit_compress.cli import main
from lit_compress.data import MaskedLanguageModeling, TextClassification
from lit_compress.data.tables import load_tokenizer
from lit_compress.errors import UserError
from lit_compress.export import from_student, write
from lit_compress.export.check import (
    Comparison,
    Examples,
    Reference,
    check_structure,
    compare,
    judge,
    reference,
    sample_inputs,
    sample_lengths,
)
from lit_compress.export.command import export
from lit_compress.export.examples import examples_of_data, examples_of_file
from lit_compress.export.graph_form import GraphForm
from lit_compress.export.onnx import IntegerOptions, advice, write_onnx_int8
from lit_compress.models.folded import Folded
from lit_compress.tasks import Batch, make_task

LABELS = ["0", "1"]


def examples(labels=(0, 1, 0, 1), task="classification"):
    ids = torch.arange(3, 3 + 5 * len(labels)).reshape(len(labels), 5) % 30
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {"labels": torch.tensor(labels)}, {})
    task = make_task(task, LABELS if task == "classification" else None)
    return Examples(batches=[batch], task=task, origin="a test", labelled=True)


def form(model=None):
    made = GraphForm(model or build("bert"), ["input_ids", "attention_mask"])
    made.outputs = ["logits"]
    return made


def compared(expected, found, given=None):
    given = given or examples()
    said = Reference(outputs=[{"logits": torch.tensor(expected)}], layers=[])
    return compare(form(), given, said, lambda inputs: [torch.tensor(found).numpy()])


def test_predictions_and_scores_are_compared_not_the_size_of_logits():
    # A single row of small logits, off by more than its largest one, with every prediction right.
    one = compared([[0.018, -0.003], [-2.0, 2.0], [3.0, -3.0], [-2.5, 2.5]],
                   [[0.048, -0.003], [-2.0, 2.0], [3.0, -3.0], [-2.5, 2.5]])  # fmt: skip
    assert (one.examples, one.equal, one.score) == (4, 1.0, ("accuracy", 1.0, 1.0))
    other = compared([[1.0, -1.0]] * 4, [[1.0, -1.0]] * 3 + [[-1.0, 1.0]])
    assert (other.equal, other.score) == (0.75, ("accuracy", 0.5, 0.75))


def test_tokens_that_are_padding_do_not_count():
    given = examples()
    given.batches[0].inputs["attention_mask"][:, 3:] = 0
    words = torch.zeros(4, 5, 30)
    words[..., 1] = 1.0
    found = words.clone()
    found[:, 3:] = torch.eye(30)[2]
    given = Examples(batches=given.batches, task=make_task("masked_lm", None), origin="a test", labelled=False)
    assert compared(words.tolist(), found.tolist(), given).equal == 1.0


def test_values_are_the_same_when_they_are_near():
    given = examples((0.0, 1.0, 2.0, 3.0), "regression")
    assert compared([[0.0], [1.0], [2.0], [3.0]], [[0.05], [1.0], [2.0], [2.0]], given).equal == 0.75


@pytest.mark.parametrize(
    ("equal", "score", "strict", "words"),
    [
        (1.0, (0.9, 0.9), True, "Compared: 100.0 %"),
        (0.97, None, False, "Warning: 97.0 %"),
        (0.97, None, True, None),
        (0.99, (0.9, 0.87), False, "Warning: 99.0 % of predictions as PyTorch's on 300 examples, accuracy 0.8700"),
        (0.7, (0.5, 0.5), False, "Warning: 70.0 %"),  # other answers, as good ones
        (0.7, None, False, None),
        (0.85, (0.9, 0.75), False, None),
        (float("nan"), None, False, None),
    ],
)
def test_what_is_worse_is_said_and_what_is_another_model_refused(equal, score, strict, words):
    given = Comparison(examples=300, equal=equal, score=None if score is None else ("accuracy", *score))
    with nullcontext() if words else pytest.raises(UserError, match="layer 2 of 3; do this; nothing was written"):
        said = judge(given, strict, lambda: "layer 2 of 3", "do this")
        assert said.startswith(words or "never")


@pytest.mark.parametrize(
    ("off", "integers", "words"),
    [(0.0, False, None), (0.002, False, "differs"), (0.4, True, None), (0.6, True, "most random ids"),
     (float("nan"), True, "not finite"), (float("inf"), False, "not finite")],
)  # fmt: skip
def test_structure_is_checked_on_random_ids(off, integers, words):
    given = form()
    expected = [(torch.ones(len(ids), 2),) for ids, _ in sample_inputs(given)]
    with nullcontext() if words is None else pytest.raises(UserError, match=words):
        check_structure(given, expected, lambda inputs: [torch.ones(len(inputs["input_ids"]), 2) + off], integers)


def test_structure_takes_one_call_for_each_length():
    given, calls = form(), []
    given.outputs = ["start_logits", "end_logits"]
    expected = [(torch.ones(ids.shape), torch.zeros(ids.shape)) for ids, _ in sample_inputs(given)]

    def run(inputs):
        calls.append(inputs["input_ids"].shape[1])
        return list(expected[len(calls) - 1])

    check_structure(given, expected, run, integers=False)
    assert calls == sample_lengths(given)


def test_structure_is_checked_at_the_longest_input_too():
    assert sample_lengths(form()) == [3, 7, 20]
    assert sample_lengths(form(build("roberta"))) == [3, 7, 19]  # positions begin after the padding's index
    assert sample_lengths(form(build("bert", max_position_embeddings=512)))[-1] == 512


SIZES = {"vocab_size": 70, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    "model",
    [
        lambda: BigBirdForSequenceClassification(
            BigBirdConfig(**SIZES, max_position_embeddings=256, block_size=8, num_random_blocks=1)
        ),
        lambda: LongformerForSequenceClassification(
            LongformerConfig(**SIZES, max_position_embeddings=80, attention_window=16, pad_token_id=0)
        ),
        lambda: FunnelForSequenceClassification(
            FunnelConfig(
                vocab_size=70, d_model=16, n_head=2, d_head=8, d_inner=32, block_sizes=[1, 1], num_decoder_layers=1
            )
        ),
    ],
)
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_families_whose_graph_depends_on_the_length_are_refused(model, to, tmp_path):
    folded = from_student(model(), tiny_tokenizer(tmp_path))
    assert "in different ways" in error_of(write, folded, tmp_path / "new/out", to)
    assert list((tmp_path / "new").iterdir()) == []


def test_the_first_wrong_layer_is_named(tmp_path, monkeypatch):
    """One layer of the file is broken; the refusal says which."""
    model = build("bert", initializer_range=0.5)
    given = examples((0,) * 4 + (1,) * 4)
    trace = lit_compress.export.onnx.trace

    def broken(form, path, metadata):
        with torch.no_grad():
            form.model.bert.encoder.layer[1].output.LayerNorm.weight.mul_(-3)
            form.model.bert.encoder.layer[1].output.LayerNorm.bias.add_(2)
        trace(form, path, metadata)

    monkeypatch.setattr(lit_compress.export.onnx, "trace", broken)
    options = lit_compress.export.onnx.IntegerOptions(examples=given, strict=True)
    said = error_of(
        write,
        from_student(model, tiny_tokenizer(tmp_path)),
        tmp_path / "out",
        lambda *args: lit_compress.export.onnx.write_onnx_int8(*args, options),
    )
    assert "begins in layer 1 of 3" in said
    assert "--tables float" in said


def test_the_reference_is_what_the_model_was_before_rounding():
    model = build("bert")
    found = reference(form(model), examples())
    with torch.no_grad():
        expected = model(**examples().batches[0].inputs).logits
    torch.testing.assert_close(found.outputs[0]["logits"], expected)
    assert [layer.shape for layer in found.layers] == [(4, 5, 16)] * 3


def test_a_model_trained_without_ranges_of_activations_is_compared_as_training_computed(tmp_path):
    torch.manual_seed(0)
    model = quantized("bert", inputs="none", bits=7)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            # A constant that nothing reads: it takes the whole range of a batch, and floating point does not mind.
            layer.intermediate.dense.bias[0] = 3000.0
            layer.output.dense.weight[:, 0] = 0.0
    ids = torch.randint(5, 30, (256, 12))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        labels = model(**given).logits.argmax(-1)
    texts = Examples(
        batches=[Batch(given, {"labels": labels}, {})],
        task=make_task("classification", [str(label) for label in range(model.config.num_labels)]),
        origin="a test",
        labelled=True,
    )
    folded = from_student(model, tiny_tokenizer(tmp_path))
    options = IntegerOptions(examples=texts, strict=True)
    with pytest.raises(UserError, match=r"PyTorch 1\.0000\).*--strict true asks for 98 %"):
        write(folded, tmp_path / "out", partial(write_onnx_int8, options=options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["onnx-int8", "openvino-int8"])
def test_a_run_is_compared_on_its_validation_data(to, finished, tmp_path, capsys):
    main(["export", f"--run={finished}", f"--output={tmp_path / 'out'}", f"--to={to}"])
    said = " ".join(capsys.readouterr().out.split())
    assert "of predictions as PyTorch's on 16 examples, accuracy" in said
    assert f"Examples: the validation data of {finished}." in said
    card = (tmp_path / "out/README.md").read_text()
    assert "Rounded at export: 3 embedding tables to 8 bits" in card
    assert "predictions as PyTorch's on 16 examples" in card
    assert len(json.loads((tmp_path / "out/compression.json").read_text())["embeddings"]) == 3


def test_a_model_is_compared_on_a_file(tiny_teacher, tiny_data, tmp_path, capsys):
    given = {"model": str(tiny_teacher), "to": "onnx-int8", "check": str(tiny_data / "val.tsv")}
    export(**given, output=str(tmp_path / "a"), data={"text_columns": ["sentence"], "max_length": 16})
    assert "on 16 examples. Examples:" in " ".join(capsys.readouterr().out.split())
    labelled = {"text_columns": ["sentence"], "label_column": "label", "max_length": 16}
    export(**given, output=str(tmp_path / "b"), data=labelled)
    assert "on 16 examples, accuracy 0." in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("labelled", [True, False])
def test_large_outputs_are_compared_on_examples_of_every_length(labelled, tiny_model, tmp_path, monkeypatch):
    """A file of 256 texts, and room for the outputs of an eighth of them."""
    words = [1 + row % 16 for row in range(256)]
    (tmp_path / "texts.txt").write_text("".join(f"{'good ' * count}\n" for count in words))
    tokenizer = load_tokenizer(str(tiny_model), "tokenizer")
    model = build("bert", AutoModelForMaskedLM, vocab_size=len(tokenizer))
    room = len(tokenizer) * sum(count + 2 for count in words) // 8
    monkeypatch.setattr(lit_compress.export.examples, "_MOST_VALUES", room)
    options = {"tokenizer": str(tiny_model), "max_length": 20, "batch_size": 64, "packing": "line"}
    if labelled:
        data = MaskedLanguageModeling(**options, train_file="none", val_file=str(tmp_path / "texts.txt"))
        data.setup("validate")
        found = examples_of_data(data, model, "texts")
    else:
        folded = Folded(model=model, manifest={}, tokenizer=tokenizer)
        found = examples_of_file(folded, "a model", str(tmp_path / "texts.txt"), options)
    assert 16 <= len(found) <= 32  # a file without labels is not sorted by length, and its padding counts
    lengths = torch.cat([batch.inputs["attention_mask"].sum(1) for batch in found.batches]) - 2
    assert lengths.min() <= 2
    assert lengths.max() >= 15
    assert 7.5 <= lengths.float().mean() <= 9.5
    assert sum(batch.inputs["input_ids"].numel() for batch in found.batches) * len(tokenizer) <= 1.2 * room


def test_examples_are_even_over_the_lengths(tiny_model, tmp_path):
    words = [1 + row % 16 for row in range(872)]
    rows = "".join(f"{'good ' * count}\t{count % 2}\n" for count in words)
    (tmp_path / "val.tsv").write_text(f"sentence\tlabel\n{rows}")
    data = TextClassification(
        tokenizer=str(tiny_model), text_columns=["sentence"], max_length=20, batch_size=256, train_file="none",
        val_file=str(tmp_path / "val.tsv")
    )  # fmt: skip
    data.use_labels(LABELS)
    data.setup("validate")
    found = examples_of_data(data, build("bert"), "rows")
    assert 248 <= len(found) <= 256
    lengths = torch.cat([batch.inputs["attention_mask"].sum(1) for batch in found.batches]) - 2
    assert (int(lengths.min()), int(lengths.max())) == (1, 16)
    assert 8 <= lengths.float().mean() <= 9


def test_a_run_with_a_data_module_of_ones_own_is_compared_on_a_file(finished, tiny_data, tmp_path, capsys):
    copytree(finished, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    config["data"] = {"class_path": "lightning.pytorch.demos.boring_classes.BoringDataModule"}
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    given = {"run": str(tmp_path / "run"), "to": "onnx-int8"}
    export(**given, output=str(tmp_path / "a"))
    assert "Not compared with PyTorch on examples; give --check" in " ".join(capsys.readouterr().out.split())
    options = {"text_columns": ["sentence"], "label_column": "label", "max_length": 16}
    export(**given, output=str(tmp_path / "b"), check=str(tiny_data / "val.tsv"), data=options)
    assert "on 16 examples, accuracy" in " ".join(capsys.readouterr().out.split())


def test_strict_without_examples_is_refused(tiny_teacher, tmp_path):
    said = error_of(export, model=str(tiny_teacher), output=str(tmp_path / "a"), to="onnx-int8", strict=True)
    assert said.startswith("--strict: asks for a comparison")
    assert not (tmp_path / "a").exists()


def test_without_examples_it_says_so(tiny_teacher, tmp_path, capsys):
    export(model=str(tiny_teacher), output=str(tmp_path / "a"), to="onnx-int8")
    assert "Not compared with PyTorch on examples; give --check" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "hf", "processor": "vnni"}, "--processor: has no effect on hf"),
        ({"to": "onnx", "tables": "float"}, "--tables: has no effect on onnx"),
        ({"to": "packed", "strict": True}, "--strict"),
        ({"to": "onnx-int8", "data": {"label_column": "label"}}, "--data: {'label_column': 'label'} has no effect"),
        ({"to": "openvino-int8", "data": {"max_length": 16}}, "without --check"),
        ({"to": "onnx-int8", "check": "missing.tsv"}, "--check: 'missing.tsv' does not exist"),
    ],
)
def test_options_without_effect_are_refused(options, words, tiny_teacher, tmp_path):
    assert words in error_of(export, model=str(tiny_teacher), output=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_tables_may_stay_in_floating_point(tmp_path):
    sizes = {}
    for tables in ("int8", "float"):
        model = build("bert", AutoModelForSequenceClassification, vocab_size=5000)
        options = lit_compress.export.onnx.IntegerOptions(tables=tables)
        write(
            from_student(model, tiny_tokenizer(tmp_path)),
            tmp_path / tables,
            lambda *args, options=options: lit_compress.export.onnx.write_onnx_int8(*args, options),
        )
        sizes[tables] = (tmp_path / tables / "onnx/model_quantized.onnx").stat().st_size
    assert sizes["float"] - sizes["int8"] > 5000 * 16 * 2


def test_answers_have_percent_and_are_judged_by_points():
    """One other answer of 256 is not a loss of ten points."""
    task = make_task("question_answering", None)
    found = lit_compress.export.check._score(
        task, *(SimpleNamespace(compute=lambda value=value: {"f1": torch.tensor(value)}) for value in (88.0, 87.85))
    )
    assert found == ("f1", pytest.approx(0.88), pytest.approx(0.8785))


def test_a_score_that_is_undefined_refuses_nothing():
    given = examples((1.0, 1.0, 1.0, 1.0), "regression")  # Pearson's correlation of equal values
    one = compared([[0.5], [0.5], [0.5], [0.5]], [[0.5], [0.5], [0.5], [0.5]], given)
    assert (one.equal, one.score) == (1.0, None)


def test_a_data_module_of_ones_own_is_no_reason_to_export_nothing(finished, tmp_path, monkeypatch, capsys):
    def broken(*given):
        raise AttributeError("'NoneType' object has no attribute 'world_size'")

    monkeypatch.setattr(lit_compress.export.command, "validation_data", broken)
    export(run=str(finished), output=str(tmp_path / "out"), to="onnx-int8")
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "was not compared on the run's validation examples: AttributeError: 'NoneType' object has no attribute" in said
    )


@pytest.mark.parametrize("tables", ["int8", "float"])
def test_a_model_that_was_quantized_in_training_is_not_told_to_train_so(tables):
    options = IntegerOptions(tables=tables)
    assert "train longer with QuantAwareTraining" in advice(options, trained=True)
    assert "train with QuantAwareTraining" in advice(options, trained=False)
    assert ("--tables float" in advice(options, trained=True)) == (tables == "int8")
