"""`report`, `validate` and `test` say what someone else's metric says about the file that `predict` writes."""

import json
import random
import re
import string

import pytest
import scipy.stats
import seqeval.metrics
import sklearn.metrics
import yaml
from contracts.tasks import squad
from contracts.training import data_config
from transformers import AutoConfig, AutoModel, AutoTokenizer

from lit_compress.cli import main


def long_sentences(path, sentences, seed):
    """Sentences far longer than a row, most of whose words are part of an entity."""
    draw = random.Random(seed)
    lines = []
    for _ in range(sentences):
        for _ in range(draw.randrange(8, 20)):
            kind, length = draw.choice(["PER", "LOC"]), draw.randrange(1, 5)
            # One name for both kinds: what a tag is must stay a guess, or there is nothing to count.
            words = draw.choices(["good", "great", "film"], k=length)
            lines += [f"{word} {'I' if place else 'B'}-{kind}" for place, word in enumerate(words)]
            lines += ["the O"] * draw.randrange(2)
        lines.append("")
    path.write_text("\n".join(lines) + "\n")


def sentences_of(path):
    return [
        [line.split() for line in block.split("\n")] for block in path.read_text().strip().split("\n\n")
    ]  # words with their tags


def tags(folder):
    for number, name in enumerate(("train", "val")):
        long_sentences(folder / f"{name}.txt", 12, number)
    files = {f"{split}_file": str(folder / f"{name}.txt") for split, name in SPLITS.items()}
    return {"class_path": "TokenClassification", "init_args": files | {"max_length": 16, "batch_size": 4}}


def tags_outside(folder, predicted):
    true = [[tag for _, tag in sentence] for sentence in sentences_of(folder / "val.txt")]
    guess = [record["tags"] for record in predicted]
    assert [len(sentence) for sentence in guess] == [len(sentence) for sentence in true]
    return {
        "f1": seqeval.metrics.f1_score(true, guess),
        "precision": seqeval.metrics.precision_score(true, guess),
        "recall": seqeval.metrics.recall_score(true, guess),
        "accuracy": seqeval.metrics.accuracy_score(true, guess),
    }


def cut_tags(folder):
    section = tags(folder)
    section["init_args"]["long_sentences"] = "cut"
    return section


def texts(folder, labels, task):
    draw = random.Random(0)
    for name, rows in (("train", 48), ("val", 29)):
        lines = ["sentence\tlabel"]
        for _ in range(rows):
            words = draw.choices(["good", "bad", "film", "the", "very", "not", "a", "is"], k=draw.randrange(1, 40))
            lines.append(f"{' '.join(words)}\t{draw.choice(labels)}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    section = data_config(folder)
    section["init_args"] |= {f"{split}_file": str(folder / f"{name}.tsv") for split, name in SPLITS.items()}
    section["init_args"] |= {"task": task, "max_length": 16}
    return section


def classes(folder):
    return texts(folder, ["x", "y", "z"], "classification")


def two_classes(folder):
    return texts(folder, ["no", "yes"], "classification")


def values(folder):
    return texts(folder, [0.0, 1.5, 2.0, 3.25, 5.0], "regression")


def column(folder):
    return [line.split("\t")[1] for line in (folder / "val.tsv").read_text().splitlines()[1:]]


def classes_outside(folder, predicted):
    true, guess = column(folder), [record["label"] for record in predicted]
    average = {"average": "macro"} if len(set(true)) > 2 else {"average": "binary", "pos_label": "yes"}
    return {
        "accuracy": sklearn.metrics.accuracy_score(true, guess),
        "f1": sklearn.metrics.f1_score(true, guess, **average),
        "matthews": sklearn.metrics.matthews_corrcoef(true, guess),
    }


def values_outside(folder, predicted):
    true, guess = [float(value) for value in column(folder)], [record["value"] for record in predicted]
    return {
        "pearson": scipy.stats.pearsonr(true, guess).statistic,
        "spearman": scipy.stats.spearmanr(true, guess).statistic,
    }


def answers(folder, impossible=False):
    for number, name in enumerate(("train", "val")):
        squad(folder / f"{name}.json", 30, impossible, seed=number)
    # Answers of several words, alternatives, articles and punctuation, and one that is an article alone.
    content = json.loads((folder / "val.json").read_text())
    for number, article in enumerate(content["data"][0]["paragraphs"]):
        (question,) = article["qas"]
        if question["answers"]:
            (first,) = question["answers"]
            start = article["context"].find("the")
            others = [{"text": article["context"][start:][:7], "answer_start": start}] if start >= 0 else []
            first["text"] += "," * (number % 2)
            question["answers"] = [{"text": "The", "answer_start": -1}] if number == 4 else [first, *others]
    (folder / "val.json").write_text(json.dumps(content))
    files = {f"{split}_file": str(folder / f"{name}.json") for split, name in SPLITS.items()}
    settings = {"max_length": 16, "doc_stride": 4, "batch_size": 8, "no_answer": impossible}
    return {"class_path": "QuestionAnswering", "init_args": files | settings}


def answers_or_none(folder):
    return answers(folder, impossible=True)


def bare(text):
    """A text as SQuAD compares it: lower case, without punctuation and articles."""
    letters = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(?:a|an|the)\b", " ", letters).split()


def overlap(guess, gold, none):
    """F1 of two bags of words; two empty ones agree in SQuAD 2.0 alone."""
    shared = sum(min(guess.count(word), gold.count(word)) for word in set(guess))
    if shared == 0:
        return float(none and guess == gold)
    precision, recall = shared / len(guess), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def answers_outside(folder, predicted, none=False):
    exact, f1 = [], []
    said = {record["id"]: bare(record["answer"]) for record in predicted}
    for article in json.loads((folder / "val.json").read_text())["data"][0]["paragraphs"]:
        (question,) = article["qas"]
        gold = [bare(answer["text"]) for answer in question["answers"]]
        gold = ([words for words in gold if words] or [[]]) if none else gold
        exact.append(max(said[question["id"]] == words for words in gold))
        f1.append(max(overlap(said[question["id"]], words, none) for words in gold))
    return {"f1": 100 * sum(f1) / len(f1), "exact_match": 100 * sum(exact) / len(exact)}


def answers_or_none_outside(folder, predicted):
    return answers_outside(folder, predicted, none=True)


def best_outside(folder, spans):
    """As `find_best_thresh` of SQuAD 2.0's script finds them, from the best span of each question."""
    paragraphs = json.loads((folder / "val.json").read_text())["data"][0]["paragraphs"]
    golds = {question["id"]: question["answers"] for paragraph in paragraphs for question in paragraph["qas"]}
    margins = {record["id"]: record["score_no_answer"] - record["score"] for record in spans}
    said = {record["id"]: record["answer"] for record in spans}
    found = {}
    for name in ("best_exact", "best_f1"):
        current = best = sum(not gold for gold in golds.values())
        found[f"{name}_threshold"] = 0.0
        for question in sorted(margins, key=lambda question: margins[question]):
            words = bare(said[question])
            gold = [bare(answer["text"]) for answer in golds[question]]
            gold = [each for each in gold if each] or [[]]
            exact, f1 = words in gold, max(overlap(words, each, none=True) for each in gold)
            current += (exact if name == "best_exact" else f1) if golds[question] else -bool(said[question])
            if current > best:
                best, found[f"{name}_threshold"] = current, margins[question]
        found[name] = 100 * best / len(golds)
    return found


def test_the_best_threshold_of_none_is_that_of_an_outside_evaluation(varied_model, tmp_path, capsys):
    section = answers_or_none(tmp_path)
    content = json.loads((tmp_path / "val.json").read_text())
    (article,) = content["data"]
    # One question without an answer: a random model must win something by answering the others.
    article["paragraphs"] = [article["paragraphs"][0], *(p for p in article["paragraphs"] if p["qas"][0]["answers"])]
    (tmp_path / "val.json").write_text(json.dumps(content))
    config = {
        "model": {"class_path": "LitTeacher", "init_args": {"pretrained": str(varied_model)}},
        "data": section,
        "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    run, file = tmp_path / "run", section["init_args"]["val_file"]

    def predicted(threshold):
        output = tmp_path / f"{threshold}.jsonl"
        option = f"--data.null_threshold={threshold}"
        main(["predict", f"--run={run}", f"--file={file}", f"--output={output}", option])
        return [json.loads(line) for line in output.read_text().splitlines()]

    def scored(*options):
        capsys.readouterr()
        main(["validate", f"--config={run / 'config.yaml'}", "--ckpt_path=last", *options])
        return {name: float(value) for name, value in re.findall(r"val/(\w+) +│ +([-0-9.e]+)", capsys.readouterr().out)}

    main(["fit", f"--config={tmp_path / 'task.yaml'}", f"--run={run}"])
    best = best_outside(tmp_path, predicted(1e9))
    found = scored()
    assert {name: found[name] for name in ("best_f1", "best_exact", "best_f1_threshold")} == pytest.approx(
        {name: best[name] for name in ("best_f1", "best_exact", "best_f1_threshold")}, rel=1e-5
    )
    assert found["best_f1"] >= found["f1"] * (1 - 1e-9)  # both are sums, in another order
    # With the threshold that was found, F1 is the best one: in validation, prediction and report.
    threshold = best["best_f1_threshold"] + 1e-4  # rows are padded to other lengths
    assert scored(f"--data.null_threshold={threshold}")["f1"] == pytest.approx(best["best_f1"])
    assert answers_or_none_outside(tmp_path, predicted(threshold))["f1"] == pytest.approx(best["best_f1"])
    main(["report", f"--run={run}", "--repetitions=1", "--batch_sizes=[1]"])
    results = json.loads((run / "report" / "report.json").read_text())
    assert results["tuned"]["null_threshold"] == pytest.approx(best["best_f1_threshold"], abs=1e-4)
    assert results["models"]["model"]["accuracy"]["best_exact"] == pytest.approx(best["best_exact"])
    assert "data.null_threshold" in (run / "report" / "report.md").read_text()
    main(["export", f"--run={run}", f"--output={tmp_path / 'hf'}"])
    assert "more than 0 above that of the best span" in (tmp_path / "hf" / "README.md").read_text()


SPLITS = {"train": "train", "val": "val", "test": "val"}
CASES = {
    "token_classification": (tags, tags_outside),
    "token_classification, training examples cut": (cut_tags, tags_outside),
    "classification": (classes, classes_outside),
    "two classes": (two_classes, classes_outside),
    "regression": (values, values_outside),
    "SQuAD 1.1": (answers, answers_outside),
    "SQuAD 2.0": (answers_or_none, answers_or_none_outside),
}


@pytest.fixture(scope="module")
def varied_model(tmp_path_factory, tiny_model):
    """A model with large random weights, as its new heads will have: its answers differ without any training."""
    folder = tmp_path_factory.mktemp("varied-model")
    config = AutoConfig.from_pretrained(tiny_model, initializer_range=0.5)
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("data", "outside"), CASES.values(), ids=CASES)
def test_our_figures_are_those_of_an_outside_evaluation(data, outside, varied_model, tmp_path, capsys):
    section = data(tmp_path)
    config = {
        "model": {"class_path": "LitTeacher", "init_args": {"pretrained": str(varied_model)}},
        "data": section,
        "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    run, output = tmp_path / "run", tmp_path / "predicted.jsonl"
    main(["fit", f"--config={tmp_path / 'task.yaml'}", f"--run={run}"])
    main(["predict", f"--run={run}", f"--file={section['init_args']['val_file']}", f"--output={output}"])
    expected = outside(tmp_path, [json.loads(line) for line in output.read_text().splitlines()])
    assert set(expected.values()) - {0, 1, 100}, "a model that is never or always right tells nothing"

    main(["report", f"--run={run}", "--repetitions=1", "--batch_sizes=[1]"])
    (measured,) = json.loads((run / "report" / "report.json").read_text())["models"].values()
    # Rows are padded to other lengths in a report than in a prediction: numbers differ by rounding, labels do not.
    exact = 1e-5 if "pearson" in expected else 1e-12
    ours = {name: value for name, value in measured["accuracy"].items() if not name.startswith("best_")}
    assert ours == pytest.approx(expected, rel=exact, abs=exact)

    capsys.readouterr()
    for command, prefix in (("validate", "val"), ("test", "test")):
        main([command, f"--config={run / 'config.yaml'}", "--ckpt_path=last"])
        shown = capsys.readouterr().out
        for name, value in expected.items():
            (found,) = re.findall(rf"{prefix}/{name} +│ +([-0-9.e]+)", shown)
            assert float(found) == pytest.approx(value, rel=exact, abs=exact), shown
