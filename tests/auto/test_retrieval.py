"""Which rows of a file are queries and texts, and how they are read beside the training data of a family."""

from tasks.test_embedding import sentence_folder

from lit_compress.auto.request import Request
from lit_compress.auto.retrieval import retrieval_section
from lit_compress.export.run_folder import task_of, validation_data
from lit_compress.models.load import load_config, load_model
from lit_compress.report.accuracy import evaluate_units


def test_texts_are_read_as_the_model_says_and_ranked(tmp_path, tiny_model):
    model = str(sentence_folder(tmp_path / "model", tiny_model))
    file = tmp_path / "asked.jsonl"
    texts = ["good film", "great story", "lovely scene", "a funny actor"]
    file.write_text("".join(f'{{"query": "{text}", "passage": "{text} was"}}\n' for text in texts))
    request = Request(model=model, train="none", task="embedding", retrieval=str(file), data={"prompts": ["a ", ""]})
    section = retrieval_section(request)
    options = section["init_args"]
    assert options["max_length"] == 24  # of the model, and not of these short texts
    assert options["prompts"] == ["a ", ""]
    assert options["val_file"] == str(file)
    options["tokenizer"] = model
    data = validation_data(section, load_config(model, "--model"))
    task = task_of(data)
    scores, outcomes = evaluate_units(load_model(model, task, "model").eval(), data, task)
    assert [*scores] == ["ndcg_at_10", "mrr_at_10", "recall_at_10"]
    assert len(outcomes.lengths) == len(texts)
