"""Vectors of texts: losses and metrics, settings of sentence-transformers, exports, predictions."""

import importlib.util
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contracts import tasks
from contracts.errors import error_of
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from scipy import stats
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.export import load_checkpoint, student_from_checkpoint
from lit_compress.models.load import load_config, load_model
from lit_compress.modules import EmbeddingDistillation, LitStudent, LitTeacher
from lit_compress.report.accuracy import evaluate_units
from lit_compress.sentence_settings import settings_of, write_settings
from lit_compress.strategies import StructuredPruning
from lit_compress.tasks import Batch, EmbeddingTask, task_class_of

needs_sentence_transformers = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)


PROMPTS = {"query": "the ", "document": ""}


def batch(texts, **targets):
    return Batch({}, targets, {"texts": texts})


def output(vectors):
    return SimpleNamespace(sentence_embedding=vectors)


def sentence_folder(folder, tiny_model, pooling="mean", normalize=True, **files):
    """A model as sentence-transformers saves it."""
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    content = {
        "modules.json": modules,
        "1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": pooling, "include_prompt": True},
        "sentence_bert_config.json": {"max_seq_length": 24, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": PROMPTS, "default_prompt_name": None},
    } | files
    for name, value in content.items():
        (folder / name).write_text(json.dumps(value))
    return folder


@pytest.fixture
def sentence_model(tmp_path, tiny_model):
    return sentence_folder(tmp_path / "sentence", tiny_model)


@pytest.fixture
def texts_file(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("a good film\n\nthe plot is very dull and the actor was not in it\n")
    return path


# --- losses and metrics


def test_the_loss_of_scored_pairs_is_that_of_their_cosines():
    vectors, scores = torch.randn(6, 4), torch.rand(3)
    expected = F.mse_loss(F.cosine_similarity(vectors[:3], vectors[3:]), scores)
    assert EmbeddingTask(loss="cosine").loss(output(vectors), batch(2, labels=scores)).item() == pytest.approx(expected)


def test_the_loss_of_a_ranking_has_the_others_and_the_hard_ones_as_negatives():
    unit = F.normalize(torch.randn(9, 5), dim=-1)
    first, right, wrong = unit.split(3)
    logits = 20 * torch.cat([first @ right.T, first @ wrong.T], dim=1)
    expected = F.cross_entropy(logits, torch.arange(3))
    task = EmbeddingTask(loss="ranking")
    found = task.loss(output(3 * unit), batch(3, document=torch.arange(3)))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    # A document that two of them share is not a negative of either.
    logits[0, 1] = logits[1, 0] = -torch.inf
    found = task.loss(output(unit), batch(3, document=torch.tensor([7, 7, 9])))
    assert found.item() == pytest.approx(F.cross_entropy(logits, torch.arange(3)).item(), rel=1e-5)


def test_the_loss_of_a_ranking_is_in_fp32_whatever_the_precision():
    task, given = EmbeddingTask(loss="ranking"), batch(3, document=torch.arange(3))
    vectors = torch.randn(9, 5)
    expected = task.loss(output(vectors), given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.loss(output(vectors), given), expected)


def test_a_batch_counts_examples_and_not_texts():
    task, given = EmbeddingTask(), batch(2, labels=torch.rand(3))
    assert task.count(given._replace(inputs={"input_ids": torch.zeros(6, 4)})) == 3


@pytest.mark.parametrize("parts", [1, 4])
def test_correlations_are_of_cosines(parts):
    first, second, scores = torch.randn(40, 6), torch.randn(40, 6), torch.rand(40).mul(4).round() / 4
    task = EmbeddingTask()
    metrics = task.metrics("val/")
    for a, b, labels in zip(first.chunk(parts), second.chunk(parts), scores.chunk(parts), strict=True):
        task.update(metrics, output(torch.cat([a, b])), batch(2, labels=labels))
    cosines = F.cosine_similarity(first, second)
    found = metrics.compute()
    assert [*found] == ["val/spearman", "val/pearson"]  # the first is what tables show
    assert float(found["val/spearman"]) == pytest.approx(stats.spearmanr(cosines, scores).statistic, abs=1e-5)
    assert float(found["val/pearson"]) == pytest.approx(stats.pearsonr(cosines, scores).statistic, abs=1e-5)


def test_each_query_is_compared_with_the_documents_of_all():
    """Of three queries on two documents one is nearer to the other document, and one text is asked twice."""
    documents = torch.eye(3)
    first = torch.stack([documents[0], documents[0] + 2 * documents[1], documents[1], documents[0]])
    second = torch.stack([documents[0], documents[0], documents[1], documents[2]])
    ids = {"query": torch.tensor([5, 3, 9, 5]), "document": torch.tensor([-4, -4, 8, 1])}
    task = EmbeddingTask(loss="ranking")
    metrics = task.metrics("")
    task.update(metrics, output(torch.cat([first, second])), batch(2, **ids))
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["mrr_at_10"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert found["recall_at_10"] == pytest.approx(1.0)


# --- what a folder says


def test_a_folder_of_sentence_transformers_is_known(sentence_model, tmp_path):
    config = AutoConfig.from_pretrained(sentence_model)
    assert task_class_of(config) is EmbeddingTask
    settings = settings_of(config)
    assert (settings.pooling, settings.normalize, settings.max_length) == ("mean", True, 24)
    assert settings.prompts == PROMPTS
    model = load_model(str(sentence_model), EmbeddingTask(), "model")
    written = tmp_path / "written"
    model.save_pretrained(written)
    write_settings(model.config, written)
    own = settings_of(AutoConfig.from_pretrained(written))
    assert own == settings
    config = json.loads((written / "config.json").read_text())
    del config["sentence_embedding"]  # the files of sentence-transformers say the same
    (written / "config.json").write_text(json.dumps(config))
    assert settings_of(AutoConfig.from_pretrained(written)) == settings


def test_a_plain_encoder_is_none(tiny_model):
    assert task_class_of(AutoConfig.from_pretrained(tiny_model)) is None
    assert "data.pooling: missing" in error_of(load_model, str(tiny_model), EmbeddingTask(), "model")


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", True), ("max", False), ("mean", False)])
def test_a_model_pools_as_its_folder_says_whatever_the_data_says(pooling, normalize, tmp_path, tiny_model):
    folder = sentence_folder(tmp_path / "model", tiny_model, pooling, normalize)
    model = load_model(str(folder), EmbeddingTask(pooling="max", normalize=not normalize), "model").eval()
    inputs = AutoTokenizer.from_pretrained(folder)(["a good film", "dull"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden, found = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state, model(**inputs)
    mask = inputs["attention_mask"][..., None]
    expected = {
        "mean": (hidden * mask).sum(1) / mask.sum(1),
        "cls": hidden[:, 0],
        "max": hidden.masked_fill(mask == 0, -1e9).amax(1),
    }[pooling]
    expected = F.normalize(expected, dim=-1) if normalize else expected
    assert torch.allclose(found.sentence_embedding, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"modules.json": [{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "1_Pooling"}, {"type": "a.CNN"}]},
         "has Transformer, Pooling, CNN"),
        ({"1_Pooling/config.json": {"pooling_mode": "weightedmean"}}, "its pooling is weightedmean"),
        ({"1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}},
         "its pooling is mean and max"),
        ({"1_Pooling/config.json": {}}, "its pooling is not named"),
        ({"1_Pooling/config.json": []}, "is not a mapping"),
        ({"1_Pooling/config.json": None}, "it has no 1_Pooling/config.json, which its modules.json names"),
        ({"modules.json": {"type": "Transformer"}}, "is not a list of modules"),
        ({"1_Pooling/config.json": {"pooling_mode": 3}}, "its pooling is 3"),
        ({"sentence_bert_config.json": {"max_seq_length": "long"}}, "max_length 'long'"),
        ({"config_sentence_transformers.json": {"prompts": ["a"]}}, "prompts \\['a'\\]"),
        ({"config_sentence_transformers.json": {"default_prompt_name": ["q"]}}, "default_prompt_name \\['q'\\]"),
        ({"1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": False}}, "include_prompt"),
        ({"modules.json": [{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "../other"}]},
         "not the name of a folder"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(files, said, tmp_path, tiny_model):
    folder = sentence_folder(tmp_path / "model", tiny_model, **files)
    assert re.search(said, error_of(load_model, str(folder), EmbeddingTask(), "model"))
    with pytest.raises(SystemExit, match=said):
        main(["export", f"--model={folder}", f"--output={tmp_path / 'out'}"])


def test_weights_that_an_encoder_lacks_are_not_made_up(sentence_model):
    from safetensors.torch import load_file, save_file

    state = load_file(sentence_model / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, sentence_model / "model.safetensors", {"format": "pt"})
    assert "lack 'encoder.layer.1.output.dense.weight'" in error_of(
        load_model, str(sentence_model), EmbeddingTask(), "model"
    )


def test_a_classifier_keeps_nothing_of_it(sentence_model):
    model = load_model(str(sentence_model), tasks_of_two(), "model")
    assert not hasattr(model.config, "sentence_embedding")


def tasks_of_two():
    from lit_compress.tasks import ClassificationTask

    return ClassificationTask(["0", "1"])


def test_a_folder_of_sentence_transformers_says_its_task(sentence_model):
    module = LitTeacher(str(sentence_model))
    assert isinstance(module.task, EmbeddingTask)
    assert module.hparams["task"] == "embedding"


# --- teachers


def student(pretrained, datamodule, **options):
    return LitStudent(str(pretrained), task=datamodule.task, tokenizer=str(pretrained), **options)


def test_texts_alone_need_a_teacher(tmp_path, sentence_model, tiny_model):
    import lit_compress

    datamodule = tasks.sentence_texts(tmp_path, tiny_model)
    module = LitTeacher(str(sentence_model), task=datamodule.task, tokenizer=str(tiny_model))
    with pytest.raises(UserError, match=r"model.teacher: missing"):
        lit_compress.fit(model=module, data=datamodule, run=tmp_path / "run", trainer={"accelerator": "cpu"})


def test_another_pooling_of_the_teacher(tmp_path, sentence_model, tiny_model):
    """Each pools as its own folder says; the default term is then 0 only for the same."""
    datamodule = tasks.sentence_texts(tmp_path / "data", tiny_model)
    datamodule.setup("fit")
    given = next(iter(datamodule.train_dataloader()))
    other = sentence_folder(tmp_path / "other", tiny_model, "cls")
    losses = {}
    for name, teacher in (("same", sentence_model), ("other", other)):
        module = student(sentence_model, datamodule, teacher=str(teacher)).eval()
        assert isinstance(module.distillation["kd"], EmbeddingDistillation)
        losses[name] = {part: float(value) for part, value in module.losses(given).items()}
    assert losses["same"]["loss"] == pytest.approx(0, abs=1e-6)
    assert losses["other"]["kd"] > 1e-4
    assert losses["other"]["task"] == 0


@pytest.mark.parametrize("kind", ["texts", "pairs"])
def test_a_cached_teacher_says_the_same(kind, tmp_path, tiny_model, sentence_model):
    from contracts.training import fit

    def train(name, **options):
        torch.manual_seed(0)
        make = tasks.sentence_texts if kind == "texts" else lambda *files: tasks.data("embedding", *files)
        datamodule = make(tmp_path / "data", tiny_model)
        module = student(tiny_model, datamodule, teacher=str(sentence_model), **options)
        fit(module, datamodule, [], tmp_path / name, max_epochs=1)
        return module.student.state_dict()

    plain, cached = train("plain"), train("cached", teacher_cache=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir())
    assert all(torch.allclose(plain[name], cached[name], atol=1e-5) for name in plain)


def test_a_head_of_another_task_is_no_teacher(tmp_path, sentence_model, tiny_model, tiny_teacher):
    datamodule = tasks.sentence_texts(tmp_path / "data", tiny_model)
    said = error_of(lambda: student(sentence_model, datamodule, teacher=str(tiny_teacher)))
    assert "BertForSequenceClassification without a head for embedding" in said


def test_a_model_of_masked_words_is_a_teacher_where_the_data_says_how_it_pools(tmp_path, tiny_model):
    BertForMaskedLM(AutoConfig.from_pretrained(tiny_model)).save_pretrained(tmp_path / "mlm")
    datamodule = tasks.sentence_texts(tmp_path / "data", tiny_model)
    module = student(tiny_model, datamodule, teacher=str(tmp_path / "mlm"))
    datamodule.setup("fit")
    assert float(module.losses(next(iter(datamodule.train_dataloader())))["kd"]) > 1e-4


def test_a_model_of_masked_words_has_no_vectors_of_its_own(tmp_path, tiny_model):
    """So `compress` trains it first, and times the encoder without its decoder; a SPLADE model keeps its head."""
    BertForMaskedLM(AutoConfig.from_pretrained(tiny_model)).save_pretrained(tmp_path / "mlm")
    assert not EmbeddingTask.has_head(load_config(str(tmp_path / "mlm"), "model"))
    settings = {"sentence_bert_config.json": {"max_seq_length": 24, "transformer_task": "fill-mask"}}
    splade = sentence_folder(tmp_path / "splade", tiny_model, **settings)
    config = json.loads((splade / "config.json").read_text())
    (splade / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    assert load_config(str(splade), "model").architectures == ["BertForMaskedLM"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_gives_the_same_vectors(dtype, sentence_model, texts_file, tmp_path):
    main(["export", f"--model={sentence_model}", f"--output={tmp_path / 'half'}", "--to=hf", f"--dtype={dtype}"])
    before, after = (
        np.load(predicted(folder, texts_file, tmp_path / f"{name}.npy"))
        for name, folder in (("before", sentence_model), ("after", tmp_path / "half"))
    )
    assert float((before * after).sum(1).min()) > 0.999


def test_an_encoder_that_names_the_model_it_began_from(tmp_path, tiny_model, sentence_model, texts_file):
    """all-mpnet-base-v2 says MPNetForMaskedLM, and its weights are an encoder's."""
    named = sentence_folder(tmp_path / "named", tiny_model)
    config = json.loads((named / "config.json").read_text())
    (named / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    assert isinstance(LitTeacher(str(named)).task, EmbeddingTask)
    datamodule = tasks.sentence_texts(tmp_path / "data", tiny_model)
    assert isinstance(student(sentence_model, datamodule, teacher=str(named)).task, EmbeddingTask)
    vectors = [
        np.load(predicted(model, texts_file, tmp_path / f"{model.name}.npy")) for model in (sentence_model, named)
    ]
    assert np.array_equal(*vectors)
    main(["export", f"--model={named}", f"--output={tmp_path / 'out'}", "--to=onnx"])
    assert np.allclose(np.load(predicted(tmp_path / "out", texts_file, tmp_path / "out.npy")), vectors[0], atol=1e-5)


@pytest.mark.parametrize("to", ["hf", "onnx", "compressed-tensors"])
def test_a_pooler_that_is_not_there_is_not_made_up(to, sentence_model, texts_file, tmp_path):
    weights = load_file(sentence_model / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, sentence_model / "model.safetensors", metadata={"format": "pt"})
    main(["export", f"--model={sentence_model}", f"--output={tmp_path / 'out'}", f"--to={to}"])
    before, after = (
        np.load(predicted(folder, texts_file, tmp_path / f"{name}.npy"))
        for name, folder in (("before", sentence_model), ("after", tmp_path / "out"))
    )
    assert np.allclose(before, after, atol=1e-5 if to != "compressed-tensors" else 0.1)
    if to == "hf":
        assert load_file(tmp_path / "out/model.safetensors").keys() == kept.keys()


def test_the_pooler_is_left_alone(tmp_path, tiny_model, sentence_model):
    from contracts.training import fit

    datamodule = tasks.data("embedding", tmp_path / "data", tiny_model)
    module = student(sentence_model, datamodule)
    before = {name: value.clone() for name, value in module.student.state_dict().items()}
    fit(module, datamodule, [], tmp_path / "run", max_epochs=1)
    after = module.student.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("pooler" in name for name in changed)


# --- exports and predictions


def predicted(folder, texts_file, output, *options):
    main(["predict", f"--model={folder}", f"--file={texts_file}", f"--output={output}", *options])
    return output


@pytest.mark.parametrize("to", ["hf", "packed", "onnx", "openvino", "compressed-tensors", "sparse"])
def test_every_format_gives_the_vectors_of_the_model(to, sentence_model, texts_file, tmp_path, capsys):
    main(["export", f"--model={sentence_model}", f"--output={tmp_path / 'out'}", f"--to={to}"])
    names = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.json")}
    assert {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"} <= names
    before, after = (
        np.load(predicted(folder, texts_file, tmp_path / f"{name}.npy"))
        for name, folder in (("before", sentence_model), ("after", tmp_path / "out"))
    )
    assert before.shape == after.shape == (3, 32)
    lowest = float((before * after).sum(1).min())
    assert lowest > (0.95 if to == "packed" else 1 - 1e-5)
    assert settings_of(AutoConfig.from_pretrained(tmp_path / "out")).prompts == PROMPTS


def test_integers_are_compared_by_their_vectors(sentence_model, texts_file, tmp_path, capsys):
    options = [f"--check={texts_file}", "--to=onnx-int8"]
    main(["export", f"--model={sentence_model}", f"--output={tmp_path / 'out'}", *options])
    assert "of predictions as PyTorch's on 3 examples" in capsys.readouterr().out


def test_kinds_of_files(sentence_model, texts_file, tmp_path):
    vectors = np.load(predicted(sentence_model, texts_file, tmp_path / "v.npy"))
    rows = [json.loads(line) for line in predicted(sentence_model, texts_file, tmp_path / "v.jsonl").open()]
    assert [row["row"] for row in rows] == [0, 1, 2]
    assert np.array_equal(np.array([row["embedding"] for row in rows], dtype=np.float32), vectors)
    table = parquet.read_table(predicted(sentence_model, texts_file, tmp_path / "v.parquet"))
    assert str(table.schema.field("embedding").type) in ("list<item: float>", "list<element: float>")
    assert np.array_equal(np.array(table["embedding"].to_pylist(), dtype=np.float32), vectors)
    csv = predicted(sentence_model, texts_file, tmp_path / "v.csv").read_text().splitlines()
    assert csv[0] == "row,embedding"
    # In parts of two rows, and again over what is there.
    predicted(sentence_model, texts_file, tmp_path / "v.npy", "--part_rows=2", "--overwrite=true")
    assert np.array_equal(np.load(tmp_path / "v.npy"), vectors)
    np.save(tmp_path / "other.npy", np.arange(3))
    with pytest.raises(SystemExit, match="did not write"):
        predicted(sentence_model, texts_file, tmp_path / "other.npy", "--overwrite=true")


def test_numbers_are_no_vectors(tiny_teacher, tiny_data, tmp_path):
    given = [f"--model={tiny_teacher}", f"--file={tiny_data / 'val.tsv'}", "--data.text_columns=sentence"]
    with pytest.raises(SystemExit, match="holds vectors alone"):
        main(["predict", *given, f"--output={tmp_path / 'v.npy'}"])


def test_the_longest_text_of_a_model_stays_its_own(sentence_model, tiny_model):
    for folder, expected in ((sentence_model, 24), (tiny_model, 12)):
        config = load_config(str(folder), "model")
        EmbeddingTask(pooling="mean", max_length=12).configure(config)
        assert settings_of(config).max_length == expected


@pytest.mark.parametrize("similarity", ["dot", "cosine", None])
def test_how_vectors_are_compared_is_kept(similarity, tmp_path, tiny_model):
    asks = {"config_sentence_transformers.json": {"similarity_fn_name": similarity}}
    folder = sentence_folder(tmp_path / "sentence", tiny_model, **asks)
    main(["export", f"--model={folder}", f"--output={tmp_path / 'out'}", "--to=hf"])
    saved = json.loads((tmp_path / "out/config_sentence_transformers.json").read_text())
    assert saved["similarity_fn_name"] == (similarity or "cosine")


@pytest.mark.parametrize("lowers", [True, False])
def test_capitals_that_a_model_lowers_before_its_tokenizer(lowers, tmp_path, tiny_model):
    folder = sentence_folder(
        tmp_path / "sentence", tiny_model, **{"sentence_bert_config.json": {"do_lower_case": True}}
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"} if lowers else None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": lowers}))
    if lowers:
        assert settings_of(load_config(str(folder), "model")) is not None
    else:
        assert "has do_lower_case" in error_of(settings_of, load_config(str(folder), "model"))


@pytest.mark.parametrize("to", ["hf", "onnx"])
def test_a_classifier_that_began_as_one_is_a_classifier(to, sentence_model, tmp_path):
    main(["export", f"--model={sentence_model}", f"--output={tmp_path / 'encoder'}", "--to=hf"])
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder", num_labels=2).save_pretrained(
        tmp_path / "classifier"
    )
    AutoTokenizer.from_pretrained(sentence_model).save_pretrained(tmp_path / "classifier")
    main(["export", f"--model={tmp_path / 'classifier'}", f"--output={tmp_path / 'out'}", f"--to={to}"])
    assert not (tmp_path / "out/modules.json").exists()
    card = (tmp_path / "out/README.md").read_text()
    assert "sentence" not in card.partition("# ")[0]
    assert "vectors" not in card


def test_a_plain_encoder_predicts_with_a_pooling(tiny_model, texts_file, tmp_path):
    folder = tmp_path / "plain"
    AutoModel.from_pretrained(tiny_model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    with pytest.raises(SystemExit, match=r"--data\.pooling mean, cls or max"):
        predicted(folder, texts_file, tmp_path / "v.npy")
    found = [
        np.load(predicted(folder, texts_file, tmp_path / f"{pooling}.npy", f"--data.pooling={pooling}"))
        for pooling in ("mean", "cls")
    ]
    assert found[0].shape == (3, 32)
    assert not np.allclose(*found)


def test_one_text(sentence_model, capsys):
    main(["predict", f"--model={sentence_model}", "--text=a good film"])
    assert len(json.loads(capsys.readouterr().out.strip().splitlines()[-1])["embedding"]) == 32


def test_a_checkpoint_gives_vectors(tmp_path, tiny_model, sentence_model):
    from contracts.training import fit

    datamodule = tasks.data("embedding", tmp_path / "data", tiny_model)
    module = student(sentence_model, datamodule)
    fit(module, datamodule, [], tmp_path / "run", max_epochs=1)
    again = student_from_checkpoint(load_checkpoint(tmp_path / "run" / f"step={module.trainer.global_step}.ckpt"))
    ours, theirs = (evaluate_units(model, datamodule, datamodule.task)[0] for model in (module.student.eval(), again))
    assert ours == theirs


def test_a_compiled_model_gives_the_same_vectors(sentence_model):
    inputs = AutoTokenizer.from_pretrained(sentence_model)(["a good film", "dull"], padding=True, return_tensors="pt")
    model = load_model(str(sentence_model), EmbeddingTask(), "model").eval()
    with torch.no_grad():
        expected = model(**inputs).sentence_embedding
        model.compile(backend="eager")
        assert torch.allclose(model(**inputs).sentence_embedding, expected, atol=1e-6)


@needs_sentence_transformers
@pytest.mark.parametrize("to", ["hf", "packed"])
def test_sentence_transformers_reads_an_export(to, sentence_model, texts_file, tmp_path):
    from sentence_transformers import SentenceTransformer

    main(["export", f"--model={sentence_model}", f"--output={tmp_path / 'out'}", f"--to={to}"])
    loaded = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert loaded.max_seq_length == 24
    assert loaded.prompts == PROMPTS
    theirs = loaded.encode(texts_file.read_text().splitlines())
    ours = np.load(predicted(tmp_path / "out", texts_file, tmp_path / "v.npy"))
    assert np.abs(theirs - ours).max() < 1e-5


@needs_sentence_transformers
@pytest.mark.parametrize(
    ("to", "backend", "default", "options"),
    [
        ("onnx", "ONNX", "model.onnx", {}),
        ("onnx-int8", "ONNX", "model.onnx", {"file_name": "model_quantized.onnx"}),
        ("openvino", "OpenVINO", "openvino_model.xml", {}),
        (
            "openvino-int8", "OpenVINO", "openvino_model.xml",
            {"file_name": "openvino_model_qint8_quantized.xml"},
        ),
    ],
)  # fmt: skip
def test_graphs_are_where_the_backends_of_sentence_transformers_look(
    to, backend, default, options, sentence_model, tmp_path
):
    """Its own search, without Optimum: the name is the one that Optimum gives the file."""
    from sentence_transformers.backend.utils import backend_should_export

    main(["export", f"--model={sentence_model}", f"--output={tmp_path / 'out'}", f"--to={to}"])
    pattern = {"ONNX": "*.onnx", "OpenVINO": "openvino*.xml"}[backend]
    searched = backend_should_export(tmp_path / "out", True, dict(options), default, pattern, backend)
    assert searched == (False, {"subfolder": backend.lower(), "file_name": options.get("file_name", default)})


@needs_sentence_transformers
@pytest.mark.parametrize("to", ["hf", "compressed-tensors", "packed", "onnx", "openvino"])
def test_the_code_of_the_card_runs(to, tiny_model, tmp_path, monkeypatch):
    from sentence_transformers import SentenceTransformer

    asks = {"config_sentence_transformers.json": {"prompts": PROMPTS, "default_prompt_name": "query"}}
    sentence_model = sentence_folder(tmp_path / "sentence", tiny_model, **asks)
    main(["export", f"--model={sentence_model}", f"--output={tmp_path / 'out'}", f"--to={to}"])
    monkeypatch.chdir(tmp_path / "out")
    code = (tmp_path / "out/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    found: dict = {}
    exec(code, found)
    expected = SentenceTransformer(str(sentence_model), device="cpu").encode(["a text"])
    assert np.abs(found["vectors"] - expected).max() < (1e-4 if to in ("hf", "onnx", "openvino") else 0.1)


@needs_sentence_transformers
def test_a_prompt_that_a_model_puts_there_by_itself(tmp_path, tiny_model, texts_file):
    from sentence_transformers import SentenceTransformer

    asks = {"config_sentence_transformers.json": {"prompts": PROMPTS, "default_prompt_name": "query"}}
    folder = sentence_folder(tmp_path / "sentence", tiny_model, **asks)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts_file.read_text().splitlines())
    found = np.load(predicted(folder, texts_file, tmp_path / "v.npy"))
    assert np.abs(theirs - found).max() < 1e-5
    bare = np.load(predicted(folder, texts_file, tmp_path / "bare.npy", "--data.prompt=''"))
    assert np.abs(bare - found).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "named", "default"),
    [
        ({"prompts": ["q: ", "p: "]}, {"query": "q: ", "document": "p: "}, None),
        ({"prompts": ["q: ", "p: "], "label_column": "score"}, {"a": "q: ", "b": "p: "}, None),
        ({"prompts": ["q: ", "q: "], "label_column": "score"}, {"query": "q: ", "document": "q: "}, "query"),
        ({"prompts": ["", "p: "]}, {"query": "", "document": "p: "}, None),
        ({"prompts": ["", ""]}, {"query": "", "document": ""}, None),
        ({}, {}, None),
    ],
)  # fmt: skip
def test_prompts_of_the_data_are_saved_with_the_model(options, named, default, tmp_path, sentence_model):
    from lit_compress.data import SentencePairs

    data = SentencePairs(
        val_file="a.tsv", text_columns=["a", "b"], tokenizer=str(sentence_model), max_length=24, **options
    )
    config = load_config(str(sentence_model), "model")
    data.task.configure(config)
    write_settings(config, tmp_path)
    saved = json.loads((tmp_path / "config_sentence_transformers.json").read_text())
    assert saved["prompts"] == PROMPTS | named
    assert saved["default_prompt_name"] == default


def test_a_default_prompt_that_the_data_leaves_out_is_said(tmp_path, tiny_model, caplog):
    from lit_compress.data import SentenceTexts

    asks = {"config_sentence_transformers.json": {"prompts": PROMPTS, "default_prompt_name": "query"}}
    folder = sentence_folder(tmp_path / "sentence", tiny_model, **asks)
    for prompt, said, kept in (("the ", 0, "query"), ("", 0, None), (None, 1, "query")):
        config = load_config(str(folder), "model")
        SentenceTexts(val_file="a.tsv", tokenizer=str(folder), prompt=prompt).task.configure(config)
        assert caplog.text.count("has prompts {'query': 'the '}") == said
        assert settings_of(config).default_prompt == kept


@needs_sentence_transformers
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_what_sentence_transformers_saves_is_read(pooling, tmp_path, tiny_model):
    from sentence_transformers import SentenceTransformer

    folder = sentence_folder(tmp_path / "first", tiny_model, pooling)
    loaded = SentenceTransformer(str(folder), device="cpu")
    loaded.save_pretrained(str(tmp_path / "second"))
    model = load_model(str(tmp_path / "second"), EmbeddingTask(), "model").eval()
    inputs = AutoTokenizer.from_pretrained(folder)(["a good film"], return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs).sentence_embedding.numpy()
    assert np.abs(loaded.encode(["a good film"]) - found).max() < 1e-5


def test_one_text_of_a_run_on_pairs(tmp_path, tiny_model, sentence_model, capsys):
    from contracts.training import fit

    datamodule = tasks.data("embedding", tmp_path / "data", tiny_model)
    fit(student(sentence_model, datamodule), datamodule, [], tmp_path, max_epochs=1)
    capsys.readouterr()
    main(["predict", f"--run={tmp_path / 'run'}", "--text=a good film"])
    assert len(json.loads(capsys.readouterr().out.strip().splitlines()[-1])["embedding"]) == 32


@needs_sentence_transformers
def test_sentence_transformers_reads_a_student_of_other_shapes(tmp_path, tiny_model, sentence_model, texts_file):
    from contracts.training import fit
    from sentence_transformers import SentenceTransformer

    datamodule = tasks.data("embedding", tmp_path / "data", tiny_model)
    strategy = StructuredPruning(heads=1, neurons=24, pruning_steps=2, end="50%")
    fit(student(sentence_model, datamodule), datamodule, [strategy], tmp_path, max_epochs=1)
    folder = tmp_path / "run" / "model"
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts_file.read_text().splitlines())
    ours = np.load(predicted(folder, texts_file, tmp_path / "v.npy"))
    assert np.abs(theirs - ours).max() < 1e-5


def test_formats_side_by_side(tmp_path, tiny_model, sentence_model):
    """Each format measured by its vectors: PyTorch's, and what runtimes give from two outputs."""
    from contracts.training import fit

    datamodule = tasks.data("embedding", tmp_path / "data", tiny_model)
    fit(student(sentence_model, datamodule), datamodule, [], tmp_path, max_epochs=1)
    options = ["--to=[hf,onnx,openvino]", "--repetitions=1", "--batch_sizes=[1]", f"--dense={sentence_model}"]
    main(["formats", f"--run={tmp_path / 'run'}", f"--output={tmp_path / 'out'}", *options])
    results = json.loads((tmp_path / "out" / "formats.json").read_text())
    assert results["score"] == "spearman"
    scores = {case["model"]: case["metrics"]["spearman"] for case in results["cases"]}
    assert scores["onnx"] == pytest.approx(scores["hf"], abs=1e-3)
    assert scores["openvino"] == pytest.approx(scores["hf"], abs=1e-3)
