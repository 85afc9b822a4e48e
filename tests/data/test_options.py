"""The options that all data modules share are keys of each, as they were when each had them as arguments of its own."""

import inspect

import pytest
from contracts import tasks
from contracts.training import data_config
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

import lit_compress.data
from lit_compress.data.options import TextOptions

# As version 0.1 wrote them into the config.yaml of a run.
WRITTEN = {
    "test_file": None,
    "predict_file": None,
    "hub": None,
    "hub_config": None,
    "hub_val_split": "validation",
    "encoding": "utf-8-sig",
    "encoding_errors": "strict",
    "max_length": 24,
    "batch_size": 8,
    "eval_batch_size": None,
    "limit": None,
    "val_fraction": 0.1,
    "split_seed": 0,
    "num_workers": 0,
    "cache_dir": None,
}
OWN = {
    "TextClassification": {"task": "classification", "columns": None, "augmentation": None, "label_column": "label"},
    "TokenClassification": {"token_column": None, "tag_column": None, "scheme": "keep", "long_sentences": "window"},
    "QuestionAnswering": {"no_answer": False, "answer_marks": None, "doc_stride": 4},
    "MaskedLanguageModeling": {
        **{"text_column": "text", "packing": "full_sentences", "documents": "line", "mask_probability": 0.15},
        **{"random_next_probability": 0.5, "short_sequence_probability": 0.1, "streaming": False},
    },
}


def parser():
    made = ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(LightningDataModule, "data")
    return made


@pytest.mark.parametrize("name", OWN)
def test_the_configuration_of_an_older_run(name, tiny_model, tiny_data, tmp_path):
    files = data_config(tiny_data)["init_args"] if name == "TextClassification" else {}
    if not files:
        kind = next(task for task in tasks.TASKS if type(tasks.data(task, tmp_path, tiny_model)).__name__ == name)
        files = {f"{split}_file": tasks.data(kind, tmp_path, tiny_model).files[split] for split in ("train", "val")}
    options = files | {"tokenizer": str(tiny_model)} | WRITTEN | OWN[name]
    config = parser().parse_object({"data": {"class_path": name, "init_args": options}})
    module = parser().instantiate(config)["data"]
    read = dict(config.data.init_args)
    assert {key: read[key] for key in options} == options
    assert (module.max_length, module.batch_size, module.options.split_seed) == (24, 8, 0)
    module.setup("validate")
    assert next(iter(module.val_dataloader())).rows


@pytest.mark.parametrize("name", [*OWN, "MultiLabelClassification"])
def test_every_option_has_a_help(name, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args([f"--data.help={name}"])
    shown = capsys.readouterr().out
    own = [key for key in inspect.signature(getattr(lit_compress.data, name)).parameters if key != "options"]
    for key in (*inspect.signature(TextOptions).parameters, *own):
        (text,) = [part for part in shown.split("  --data.")[1:] if part.split()[0].rstrip(",") == key]
        said = " ".join(text.split()).partition("(type:")[0]
        assert len(said.split()) > 2, key
        assert "likewise" not in said, key
