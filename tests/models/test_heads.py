"""Every head: what is loaded, what is new, what is refused; for BERT, RoBERTa and DistilBERT."""

from functools import partial

import pytest
import torch
from contracts import errors, tasks
from contracts.training import fit
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForPreTraining,
    DistilBertConfig,
    RobertaConfig,
    RobertaTokenizerFast,
)

from lit_compress.errors import UserError
from lit_compress.export import save_folder
from lit_compress.models import check_compatible, load_model
from lit_compress.models.load import load_config
from lit_compress.nn import compressible_layers
from lit_compress.strategies import MagnitudePruning
from lit_compress.tasks import make_task

KEY = "model.pretrained"
TAGS = ["O", "B-X", "I-X"]
HEADS = {
    "token_classification": (TAGS, "classifier.weight"),
    "question_answering": (None, "qa_outputs.weight"),
    "masked_lm": (None, "cls.predictions.transform.dense.weight"),
    "pretraining": (None, "cls.seq_relationship.weight"),
}


def load(source, task, labels):
    return load_model(str(source), make_task(task, labels), KEY)


error_of = partial(errors.error_of, load)


@pytest.mark.parametrize("task", HEADS)
def test_an_encoder_gets_a_new_head(task, tiny_model):
    model = load(tiny_model, task, HEADS[task][0])
    encoder = AutoModel.from_pretrained(tiny_model).state_dict()
    own = model.base_model.state_dict()
    assert all(torch.equal(encoder[name], value) for name, value in own.items())
    assert HEADS[task][1] in dict(model.named_parameters())


@pytest.mark.parametrize("task", HEADS)
def test_a_head_that_is_there_is_kept_and_its_loss_is_an_error(task, tiny_model, tmp_path):
    labels, weight = HEADS[task]
    torch.manual_seed(3)
    model = load(tiny_model, task, labels)
    model.save_pretrained(tmp_path)
    again = load(tmp_path, task, labels)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    weights = load_file(tmp_path / "model.safetensors")
    for lost in (weight, f"{model.base_model_prefix}.encoder.layer.1.output.dense.weight"):
        save_file(
            {name: value for name, value in weights.items() if name != lost},
            tmp_path / "model.safetensors",
            {"format": "pt"},
        )
        assert lost in error_of(str(tmp_path), task, labels)


def test_a_new_decoder_is_tied_to_the_words(tiny_model):
    for task in ("masked_lm", "pretraining"):
        model = load(tiny_model, task, None)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_masked_language_model_becomes_a_pretraining_model_and_back(tiny_model, tmp_path):
    language_model = AutoModelForMaskedLM.from_pretrained(tiny_model)
    language_model.save_pretrained(tmp_path / "mlm")
    both = load(tmp_path / "mlm", "pretraining", None)
    assert isinstance(both, BertForPreTraining)
    decoder = "cls.predictions.transform.dense.weight"
    assert torch.equal(both.state_dict()[decoder], language_model.state_dict()[decoder])
    both.save_pretrained(tmp_path / "both")
    again = load(tmp_path / "both", "masked_lm", None)
    assert torch.equal(again.state_dict()[decoder], language_model.state_dict()[decoder])
    weights = load_file(tmp_path / "mlm" / "model.safetensors")
    del weights[decoder]
    save_file(weights, tmp_path / "mlm" / "model.safetensors", {"format": "pt"})
    assert decoder in error_of(str(tmp_path / "mlm"), "pretraining", None)


def test_a_classifier_of_three_becomes_a_question_answerer_of_two(tiny_model, tmp_path):
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    classifier.config.problem_type = "single_label_classification"
    classifier.save_pretrained(tmp_path)
    model = load(tmp_path, "question_answering", None)
    assert model.qa_outputs.out_features == 2
    assert model.config.problem_type is None


@pytest.mark.parametrize("task", HEADS)
def test_a_head_without_a_problem_type_does_not_keep_that_of_a_classifier(task, tiny_model, tmp_path):
    config = load_config(str(tiny_model), KEY)
    config.problem_type = "single_label_classification"
    config.architectures = ["BertForSequenceClassification"]
    made = make_task(task, HEADS[task][0])
    made.configure(config)
    assert config.problem_type is None


def test_a_question_answerer_that_was_saved_with_a_classifiers_problem_type_is_a_teacher(tiny_model, tmp_path):
    teacher = AutoModelForQuestionAnswering.from_pretrained(tiny_model)
    teacher.config.problem_type = "single_label_classification"
    teacher.save_pretrained(tmp_path)
    student, task = load_config(str(tiny_model), KEY), make_task("question_answering")
    check_compatible(student, load_config(str(tmp_path), "model.teacher"), "q", task)


def test_tags_that_are_not_the_models(tiny_model, tmp_path):
    model = load(tiny_model, "token_classification", TAGS)
    assert model.config.id2label == dict(enumerate(TAGS))
    model.save_pretrained(tmp_path)
    assert "has 3 labels and the data has 5" in error_of(str(tmp_path), "token_classification", [*TAGS, "a", "b"])


@pytest.mark.parametrize("task", ["masked_lm", "question_answering", "token_classification"])
def test_a_teacher_of_another_task(task, tiny_model, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(tiny_model).save_pretrained(tmp_path / "c")
    student, teacher = load_config(str(tiny_model), KEY), load_config(str(tmp_path / "c"), "model.teacher")
    with pytest.raises(UserError, match=r"^model\.teacher: .*BertForSequenceClassification without a head"):
        check_compatible(student, teacher, "c", make_task(task, HEADS.get(task, [None])[0]))
    AutoModelForQuestionAnswering.from_pretrained(tiny_model).save_pretrained(tmp_path / "q")
    check_compatible(student, load_config(str(tmp_path / "q"), "model.teacher"), "q", make_task("question_answering"))


# --- other families


@pytest.fixture(scope="session")
def families(tmp_path_factory, tiny_model):
    """A random RoBERTa with a byte-level tokenizer, and a random DistilBERT with BERT's."""
    roberta, distilbert = (tmp_path_factory.mktemp(name) for name in ("roberta", "distilbert"))
    letters = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: i for i, token in enumerate([*special, *letters, "th", "Ġt"])}
    tokenizer = RobertaTokenizerFast(vocab=vocabulary, merges=[("t", "h"), ("Ġ", "t")], model_max_length=64)
    tokenizer.save_pretrained(roberta)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=len(vocabulary), max_position_embeddings=68, pad_token_id=1, **sizes)
    AutoModel.from_config(config).save_pretrained(roberta)
    words = AutoTokenizer.from_pretrained(tiny_model)
    words.save_pretrained(distilbert)
    small = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    config = DistilBertConfig(vocab_size=len(words), max_position_embeddings=128, **small)
    AutoModel.from_config(config).save_pretrained(distilbert)
    return {"roberta": roberta, "distilbert": distilbert}


@pytest.mark.parametrize("task", ["masked_lm", "question_answering", "token_classification"])
@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_families_train_and_export(family, task, families, tmp_path):
    size = {"max_length": 48} | ({"doc_stride": 8} if task == "question_answering" else {})
    datamodule = tasks.data(task, tmp_path, families[family], **size)
    module = tasks.student(task, families[family], datamodule)
    run = fit(module, datamodule, [MagnitudePruning(sparsity=0.5, end="50%")], tmp_path, max_epochs=1)
    assert all(torch.isfinite(value) for value in run.callback_metrics.values())
    layers = [name for name, _ in compressible_layers(module.student)]
    assert len(layers) == 12
    assert all(".layer." in name for name in layers)
    batch = next(iter(datamodule.val_dataloader()))
    assert ("token_type_ids" in batch.inputs) == ("token_type_ids" in datamodule.tokenizer.model_input_names)
    save_folder(module.student, datamodule.tokenizer, tmp_path / "out")
    again = load(tmp_path / "out", task, datamodule.labels).eval()
    with torch.inference_mode():
        ours, theirs = module.student.eval()(**batch.inputs), again(**batch.inputs)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    if task == "masked_lm":
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_a_family_without_a_next_sentence_head(family, families):
    assert "data.packing" in error_of(str(families[family]), "pretraining", None)


def test_offsets_of_byte_level_tokens(families, tmp_path):
    datamodule = tasks.data("question_answering", tmp_path, families["roberta"], max_length=48, doc_stride=8)
    datamodule.setup("fit")
    found = 0
    for batch in datamodule.val_dataloader():
        for row, example in enumerate(batch.meta["examples"]):
            start, end = int(batch.targets["start_positions"][row]), int(batch.targets["end_positions"][row])
            if start:
                begin, stop = batch.meta["char_start"][row, start], batch.meta["char_end"][row, end]
                assert [example["context"][begin:stop].strip()] == example["answers"]
                found += 1
    assert found > 10
