"""Rerankers: losses by hand, scores of queries, wrong files, folders that CrossEncoder reads, a teacher's margins."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from contracts import tasks
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.cli import main
from lit_compress.data import RankedPairs
from lit_compress.errors import UserError
from lit_compress.models.load import load_model
from lit_compress.modules import LitStudent, LitTeacher, MarginDistillation
from lit_compress.tasks import Batch, RegressionTask, RerankingTask, task_class_of
from lit_compress.tasks.reranking import RankingScore


def batch(documents, targets, rows=6):
    ids = torch.ones(rows, 4, dtype=torch.long)
    return Batch({"input_ids": ids, "attention_mask": ids}, targets, {"texts": documents})


def output(*logits):
    return SimpleNamespace(logits=torch.tensor(logits, dtype=torch.float32)[:, None])


def test_each_document_alone_has_a_score():
    labels = torch.tensor([1.0, 0.25])
    found = RerankingTask().loss(output(2.0, -1.0), batch(1, {"labels": labels}, 2))
    p = torch.tensor([2.0, -1.0]).sigmoid()
    by_hand = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    assert found.item() == pytest.approx(by_hand.item())


def test_the_first_document_is_better_than_the_others():
    """Rows are the first documents of both examples, then the second, then the third."""
    task, given = RerankingTask("listwise"), batch(3, {"query": torch.tensor([1, 2])})
    found = task.loss(output(3.0, 0.0, 1.0, 2.0, 0.0, -1.0), given)
    first, second = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([0.0, 2.0, -1.0])
    by_hand = -(first.log_softmax(0)[0] + second.log_softmax(0)[0]) / 2
    assert found.item() == pytest.approx(by_hand.item())
    assert task.count(given) == 2


def test_queries_are_scored_over_all_batches_and_those_without_a_relevant_document_are_left_out():
    metric = RankingScore()
    # Query 7: relevant document second of three. Query 3: both relevant. Query 5: none.
    metric.update(torch.tensor([0.1, 0.9]), torch.tensor([True, False]), torch.tensor([7, 7]))
    metric.update(torch.tensor([0.5, 0.4, 9.0]), torch.tensor([True, True, False]), torch.tensor([3, 3, 5]))
    metric.update(torch.tensor([-2.0]), torch.tensor([False]), torch.tensor([7]))
    found = metric.compute()
    assert found["mrr_at_10"].item() == pytest.approx((0.5 + 1) / 2)
    assert found["ndcg_at_10"].item() == pytest.approx((1 / np.log2(3) + 1) / 2)
    assert found["recall_at_10"].item() == 1
    metric.reset()
    metric.update(torch.tensor([0.1]), torch.tensor([False]), torch.tensor([1]))
    with pytest.raises(UserError, match="no query has a relevant document"):
        metric.compute()


@pytest.mark.parametrize("task", ["reranking", "reranking_lists"])
def test_the_report_scores_what_the_validation_does(task, tiny_model, tmp_path):
    data = tasks.data(task, tmp_path, tiny_model)
    data.prepare_data()
    data.setup("validate")
    kind = data.task
    metrics, columns = kind.metrics(""), []
    for given in data.val_dataloader():
        torch.manual_seed(len(columns))
        answer = SimpleNamespace(logits=torch.randn(given.rows, 1))
        kind.update(metrics, answer, given)
        columns.append(kind.outcome_columns(answer, given))
    joined: dict[str, Any] = {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
    outcomes = kind.outcomes(joined)
    assert outcomes.examples is not None
    units = len(outcomes.examples)
    scores = outcomes.score(np.ones((1, units)))
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(
        {name: value[0] for name, value in scores.items()}
    )
    assert len(outcomes.lengths) == units
    assert outcomes.lengths.sum() <= joined["lengths"].sum()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_column": None}, "must be query, relevant document and one or more others"),
        ({"text_columns": ["query", "nothing"]}, "'nothing'"),
        ({"score_range": (0, 1)}, "is not from 0 to 1"),
        ({"text_columns": ["query"]}, "two columns, whose texts a score compares"),
    ],
)
def test_wrong_files_and_options_are_one_line(options, words, tiny_model, tmp_path):
    given = {"score_range": (0, 3)} | options
    with pytest.raises(UserError, match=words):
        RankedPairs(
            str(tasks.documents(tmp_path / "a.tsv")), tokenizer=str(tiny_model), max_length=24, **given
        ).check_sources()


def test_a_reranker_is_told_from_a_regression(tiny_model):
    config = AutoConfig.from_pretrained(tiny_model)
    config.architectures, config.num_labels = ["BertForSequenceClassification"], 1
    RerankingTask().configure(config)
    assert task_class_of(config) is RerankingTask
    RegressionTask().configure(config)
    assert task_class_of(config) is RegressionTask


def test_a_cross_encoder_says_its_task(tiny_model, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model, num_labels=1)
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    module = LitTeacher(str(tmp_path))
    assert isinstance(module.task, RerankingTask)
    assert isinstance(LitTeacher(str(tiny_model)).task, RegressionTask)  # as before, of a model that says nothing


def test_what_a_cross_encoder_does_with_its_logits_is_kept(tiny_model):
    config = AutoConfig.from_pretrained(tiny_model)
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0.0"}
    RerankingTask().configure(config)
    assert config.sentence_transformers["activation_fn"] == "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize("where", ["file", "key of version 3"])
def test_what_other_versions_keep_in_other_places_is_kept_too(tiny_model, tmp_path, where):
    config = AutoConfig.from_pretrained(tiny_model, num_labels=1)
    if where != "file":
        config.sbert_ce_default_activation_function = "torch.nn.modules.linear.Identity"
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    if where == "file":
        saved = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity", "prompts": {}}
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(saved))
    assert task_class_of(AutoConfig.from_pretrained(tmp_path)) is RerankingTask
    model = load_model(str(tmp_path), RerankingTask(), "model.pretrained")
    assert model.config.sentence_transformers["activation_fn"] == "torch.nn.modules.linear.Identity"


def test_a_folder_of_cross_encoder_scores_the_same_after_an_export(tiny_model, tmp_path):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    given, written = tmp_path / "given", tmp_path / "written"
    before = sentence_transformers.CrossEncoder(str(tiny_model), num_labels=1, activation_fn=torch.nn.Identity())
    before.save_pretrained(str(given))
    main(["export", f"--model={given}", "--to=hf", f"--output={written}"])
    pairs = [("a query", "a document"), ("another query", "words")]
    after = sentence_transformers.CrossEncoder(str(written))
    assert isinstance(after.activation_fn, torch.nn.Identity)
    np.testing.assert_allclose(after.predict(pairs), before.predict(pairs), atol=1e-6)


def test_a_prompt_before_every_pair_is_refused(tiny_model, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    saved = {"model_type": "CrossEncoder", "default_prompt_name": "web", "prompts": {"web": "web: "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="default_prompt_name 'web'"):
        task_class_of(AutoConfig.from_pretrained(tmp_path))


def test_one_text_is_no_pair(tiny_model, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model, num_labels=1)
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="--text: the model reads 2 texts, query, document; give --file"):
        main(["predict", f"--model={tmp_path}", "--text=a film"])


def queries_of(data, split):
    return [row["query"] for row in data.table(split)]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("limit", [None, 5])
def test_all_documents_of_a_query_are_held_out_or_none(labelled, limit, tiny_model, tmp_path):
    """A query with some of its documents only would be ranked far too well."""
    rows = [{"query": f"q{i % 7}", "document": f"d{i}", "other": "x", "label": float(i % 3 == 0)} for i in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {} if labelled else {"label_column": None, "text_columns": ["query", "document", "other"]}
    data = RankedPairs(
        str(tmp_path / "a.jsonl"), tokenizer=str(tiny_model), max_length=24, val_fraction=0.2, eval_limit=limit, **more
    )
    train, val = queries_of(data, "train"), queries_of(data, "val")
    assert not {*train} & {*val}
    assert {*train} | {*val} == {f"q{i}" for i in range(7)} or limit
    every = [row["query"] for row in rows]
    assert all(val.count(query) == every.count(query) for query in val)
    assert 0 < len(val) <= max(limit or 10, 8)  # a query has 7 or 8
    assert {*train} or limit


@pytest.mark.parametrize("options", [{"val_fraction": 0.1}, {"eval_limit": 10}])
def test_what_is_drawn_measures_something_and_leaves_something(options, tiny_model, tmp_path):
    """One query has nearly all documents, and one no relevant document."""
    rows = [{"query": "large", "document": f"d{i}", "label": 1.0} for i in range(90)]
    rows += [{"query": "small", "document": f"d{i}", "label": float(i == 0)} for i in range(8)]
    rows += [{"query": "none", "document": f"d{i}", "label": 0.0} for i in range(2)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(5):
        data = RankedPairs(
            str(tmp_path / "a.jsonl"), tokenizer=str(tiny_model), max_length=24, split_seed=seed,
            **({"val_file": str(tmp_path / "a.jsonl")} if "eval_limit" in options else {}), **options,
        )  # fmt: skip
        assert {*queries_of(data, "val")} == {"small"}


@pytest.mark.parametrize("option", [{"prompts": ["a ", "b "]}, {"pooling": "mean"}, {"normalize": True}])
def test_options_of_vectors_are_not_taken(option, tiny_model):
    with pytest.raises(UserError, match="has no effect on a reranker"):
        RankedPairs("a.tsv", tokenizer=str(tiny_model), max_length=24, **option)


def test_a_document_is_read_as_far_as_a_cross_encoder_reads_it(tiny_model, tmp_path):
    st: Any = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    before = st.CrossEncoder(str(tiny_model), num_labels=1, device="cpu")
    before.save_pretrained(str(tmp_path / "ce"))
    pair = {"query": "the film", "document": " ".join(["good plot"] * 40 + ["very cold"] * 20)}
    (tmp_path / "a.jsonl").write_text(json.dumps(pair) + "\n")
    before = st.CrossEncoder(str(tmp_path / "ce"), device="cpu")
    scores = tmp_path / "scores.jsonl"
    main(["predict", f"--model={tmp_path / 'ce'}", f"--file={tmp_path / 'a.jsonl'}", f"--output={scores}"])
    assert json.loads(scores.read_text())["score"] == pytest.approx(
        float(before.predict([(*pair.values(),)])[0]), abs=1e-5
    )


def test_the_documents_of_one_query_are_validated_on_and_trained_on(tiny_model, tmp_path, caplog):
    rows = [{"query": "q", "document": f"d{i}", "label": float(i % 3 == 0)} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = RankedPairs(str(tmp_path / "a.jsonl"), tokenizer=str(tiny_model), max_length=24, val_fraction=0.2)
    assert len(queries_of(data, "val")) == 4
    assert "all documents are for one query" in caplog.text


def run_of(tiny_model, folder, *more):
    files = [str(tasks.documents(folder / f"{split}.tsv", seed=seed)) for seed, split in enumerate(("train", "val"))]
    options = {"train_file": files[0], "val_file": files[1], "score_range": [0, 3], "max_length": 24, "batch_size": 8}
    config = {
        "run": str(folder / "run"),
        "model": {"class_path": "LitStudent", "init_args": {"pretrained": str(tiny_model)}},
        "data": {"class_path": "RankedPairs", "init_args": options},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False},
    }
    (folder / "a.json").write_text(json.dumps(config))
    main(["fit", f"--config={folder / 'a.json'}", *more])
    return folder / "run"


def test_a_folder_is_a_cross_encoder(tiny_model, tmp_path):
    st: Any = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    run = run_of(tiny_model, tmp_path)
    main(["export", f"--run={run}", f"--output={tmp_path / 'out'}"])
    main(["predict", f"--file={tmp_path / 'val.tsv'}", f"--run={run}", f"--output={tmp_path / 'scores.jsonl'}"])
    ours = [json.loads(line)["score"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    card = (tmp_path / "out/README.md").read_text()
    assert "pipeline_tag: text-ranking" in card
    assert "CrossEncoder(folder)" in card
    rows = [line.split("\t")[:2] for line in (tmp_path / "val.tsv").read_text().splitlines()[1:]]
    theirs = st.CrossEncoder(str(tmp_path / "out"), device="cpu").predict(rows)
    assert ours == pytest.approx(theirs.tolist(), abs=1e-4)


def test_predictions_need_no_scores_and_are_of_the_folder_alone(tiny_model, tmp_path):
    run = run_of(tiny_model, tmp_path)
    main(["export", f"--run={run}", f"--output={tmp_path / 'out'}"])
    (tmp_path / "ask.tsv").write_text("query\tdocument\nthe film\ta good film\nthe film\tvery cold\n")
    main(
        [
            "predict",
            f"--file={tmp_path / 'ask.tsv'}",
            f"--model={tmp_path / 'out'}",
            f"--output={tmp_path / 'scores.jsonl'}",
        ]
    )
    found = [json.loads(line)["score"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    read = AutoTokenizer.from_pretrained(tmp_path / "out")(["the film"] * 2, ["a good film", "very cold"], padding=True)
    with torch.no_grad():
        expected = model(**{name: torch.tensor(value) for name, value in read.items()}).logits.sigmoid()
    assert found == pytest.approx(expected.flatten().tolist(), abs=1e-4)


def test_margins_are_those_between_the_first_document_and_the_others():
    student, teacher = output(3.0, 0.0, 1.0, 2.0), output(1.0, 1.0, 0.0, -1.0)
    found = MarginDistillation()(student, teacher, batch(2, {}, 4))
    assert found.item() == pytest.approx(((2 - 1) ** 2 + (-2 - 2) ** 2) / 2)
    with pytest.raises(UserError, match="an example has one document and no margin"):
        MarginDistillation()(student, teacher, batch(1, {}, 4))


@pytest.mark.parametrize("cached", [False, True])
def test_a_student_learns_the_margins_of_its_teacher(cached, tiny_model, tmp_path):
    from contracts.training import fit

    data = tasks.data("reranking_lists", tmp_path / "files", tiny_model)
    torch.manual_seed(3)
    teacher = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    teacher.save_pretrained(tmp_path / "teacher")
    data.tokenizer.save_pretrained(tmp_path / "teacher")
    module = LitStudent(
        str(tiny_model),
        teacher=str(tmp_path / "teacher"),
        distillation={"margin": MarginDistillation()},
        task=data.task,
        teacher_cache=str(tmp_path / "cache") if cached else None,
    )
    fit(module, data, [], tmp_path / "run")
    assert module.trainer.callback_metrics["train/margin"].isfinite()
