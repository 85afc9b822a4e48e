"""Families that people deploy beside BERT, with tokenizers of their kind, through every command."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DebertaV2TokenizerFast,
    PreTrainedTokenizerFast,
    XLMRobertaTokenizerFast,
)

from lit_compress.cli import main

WORDS = {"up": ["good", "great", "lovely", "warm", "clever"], "down": ["bad", "awful", "dull", "cold", "boring"]}
OTHER = ["the", "film", "story", "was", "very", "and", "plot", "actor", "scene", "it"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}


def examples(count):
    draw = random.Random(count)
    labels = [("up", "down")[number % 2] for number in range(count)]
    return [(" ".join([*draw.choices(OTHER, k=5), draw.choice(WORDS[label])]), label) for label in labels]


def texts():
    return [text for text, _ in examples(64)]


def sentencepiece(special):
    """Pieces and their log-probabilities, the special ones first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        texts(), trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token=special[3])
    )
    return [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]


def modernbert_tokenizer():
    names = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=[*names.values()], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts(), trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    named = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def deberta_tokenizer():
    return DebertaV2TokenizerFast(vocab=sentencepiece(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]))


def xlm_roberta_tokenizer():
    return XLMRobertaTokenizerFast(vocab=sentencepiece(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]))


# As the models on the hub are configured, apart from their size.
DEBERTA_V3 = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "position_biased_input": False, "type_vocab_size": 0, "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES = {
    "modernbert": (modernbert_tokenizer, {"local_attention": 8, "global_attn_every_n_layers": 2}),
    "deberta-v2": (deberta_tokenizer, DEBERTA_V3),
    "xlm-roberta": (xlm_roberta_tokenizer, {"max_position_embeddings": 66, "type_vocab_size": 1}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def place(request, tmp_path_factory):
    """A folder with train.csv, val.csv and a dense model."""
    folder = tmp_path_factory.mktemp(request.param)
    for name, count in (("train", 64), ("val", 32)):
        lines = [f"{text},{label}\n" for text, label in examples(count)]
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    make, settings = FAMILIES[request.param]
    tokenizer = make()
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder / "dense")
    ids = {"pad": tokenizer.pad_token_id, "cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id}
    ids |= {"bos": ids["cls"], "eos": ids["sep"]}
    settings = SIZES | settings | {f"{name}_token_id": value for name, value in ids.items()}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        request.param,
        vocab_size=len(tokenizer),
        id2label={0: "down", 1: "up"},
        label2id={"down": 0, "up": 1},
        **settings,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "dense")
    return folder


@pytest.fixture
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("lit_compress.auto.time_budget._LEAST", 6)
    return place


def run(command):
    main(command.split())


def scores(name):
    """Of a file of predictions."""
    lines = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
    return np.array([line["probability_up"] for line in lines])


@pytest.fixture(scope="module")
def trained(place):
    """The same with runs: a fit that drops a layer, prunes and quantizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run("init train.csv --val=val.csv --model=dense --output=configs")
        student = yaml.safe_load(Path("configs/student.yaml").read_text())
        student["model"]["init_args"] |= {"pretrained": "dense", "teacher": "dense"}
        student["run"] = "student"
        student["compression"] = [
            {"class_path": "LayerDropping", "init_args": {"keep": [0, 1, 3]}},
            {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.5, "end": "50%"}},
            {"class_path": "QuantAwareTraining", "init_args": {"start": "50%"}},
        ]
        student["trainer"] = {"max_epochs": 2, "accelerator": "cpu", "enable_model_summary": False}
        Path("student.yaml").write_text(yaml.safe_dump(student))
        run("check dense")
        run("check student.yaml")
        run("fit --config=student.yaml")
    return place


def test_a_student_is_trained_and_evaluated(trained, inside, capsys):
    run("validate --config=student/config.yaml --ckpt_path=last")
    run("test --config=student/config.yaml --ckpt_path=last --data.test_file=val.csv")
    shown = capsys.readouterr().out
    assert "val/accuracy" in shown
    assert "test/accuracy" in shown
    assert json.loads(Path("student/model/config.json").read_text())["num_hidden_layers"] == 3


def test_engines_predict_the_same(trained, inside):
    run("export --run=student --to=onnx --output=onnx")
    run("pack --run=student --output=packed")
    for name, model in (("torch", "student/model"), ("ort", "onnx"), ("fused", "packed")):
        run(f"predict --file=val.csv --model={model} --output={name}.jsonl")
    assert len(scores("torch")) == 32
    np.testing.assert_allclose(scores("ort"), scores("torch"), atol=1e-4)
    np.testing.assert_allclose(scores("fused"), scores("torch"), atol=0.02)


def test_a_vocabulary_is_trimmed(trained, inside):
    run("trim-vocabulary --model=student/model --corpus=val.csv --output=trimmed --characters=false")
    whole, fewer = (AutoModelForSequenceClassification.from_pretrained(name) for name in ("student/model", "trimmed"))
    assert fewer.config.vocab_size < whole.config.vocab_size
    run("predict --file=val.csv --model=student/model --output=whole.jsonl")
    run("predict --file=val.csv --model=trimmed --output=fewer.jsonl")
    np.testing.assert_allclose(scores("fewer"), scores("whole"), atol=1e-5)


def test_reports_and_kernels(trained, inside):
    run("report --run=student --dense=dense --batch_sizes=[1] --repetitions=1")
    run("compare student --output=compared --dense=dense")
    run("export --run=student --to=packed --output=explained")
    run("explain explained")
    for written in ("student/report/report.html", "compared/report.html"):
        assert Path(written).is_file()


@pytest.mark.slow
def test_speed_is_measured(trained, inside):
    options = "--batch_sizes=[1] --lengths=[16] --threads=1 --warmup=0 --repetitions=1"
    run(f"formats --run=student --output=formats {options}")
    run(f"benchmark dense student/model {options}")
    run("latency dense --shape=1x16 --threads=1 --output=latency")
    assert Path("formats/formats.json").is_file()
    assert Path("latency/latency.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("inside", "_timed_here")
def test_a_family_is_made():
    options = "--speedup=1.3 --minutes=0.01 --threads=1 --shape=4x16"
    run(f"compress --model=dense --train=train.csv --val=val.csv --run=fast {options}")
    members = json.loads(Path("fast/report.json").read_text())["members"]
    assert [member["name"] for member in members] == ["int8", "1_3x"]
