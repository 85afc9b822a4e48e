"""`lit_compress check`: what a training or an export would refuse is said before either, with the key to change."""

import json
import re
import shutil

import pytest
import yaml
from contracts.labels import swapped
from contracts.training import student_config
from models.families import build
from transformers import AutoTokenizer

from lit_compress.cli import main


@pytest.fixture
def checked(capsys):
    """Exit status, lines by level, and the last line of a check."""

    def run(*args):
        status, end = 0, ""
        capsys.readouterr()
        try:
            main(["check", *map(str, args)])
        except SystemExit as error:
            status, end = (1, error.code) if isinstance(error.code, str) else (error.code, "")
        lines = capsys.readouterr().out.splitlines()
        if not end:
            *lines, end = lines
        by_level = {
            level: [line[8:] for line in lines if line.startswith(level)] for level in ("ok", "warning", "error")
        }
        assert sum(map(len, by_level.values())) == len(lines)
        return status, by_level, end

    return run


@pytest.fixture
def folder(tmp_path, tiny_teacher):
    return shutil.copytree(tiny_teacher, tmp_path / "model")


@pytest.fixture
def config(tmp_path, tiny_teacher, tiny_data):
    """Writes a configuration of a student, with changed sections."""

    def write(**sections):
        made = student_config(tiny_teacher, tiny_data, **sections) | {"run": str(tmp_path / "run")}
        path = tmp_path / "student.yaml"
        path.write_text(yaml.safe_dump(made))
        return path

    return write


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_model(checked, folder):
    status, lines, end = checked(folder)
    assert status == 0
    assert not lines["error"] + lines["warning"]
    text = "\n".join(lines["ok"])
    assert "a head for classification: 0, 1" in text
    assert "128 tokens at most" in text
    assert "StructuredPruning of heads" in text
    assert "its layers are fused" in text
    assert "0.1 MB in fp32" in text
    assert end.startswith("Nothing to change.")


def no_padding(folder):
    change(folder / "tokenizer_config.json", pad_token=None)


def no_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


def no_names(folder):
    change(folder / "config.json", id2label={"0": "LABEL_0", "1": "LABEL_1"}, label2id={"LABEL_0": 0, "LABEL_1": 1})


def sentence_encoder(folder, **pooling):
    kinds = {"0": "Transformer", "1": "Pooling"}
    modules = [
        {"idx": int(i), "name": i, "path": f"{i}_{kind}" if i > "0" else "", "type": f"sentence_transformers.{kind}"}
        for i, kind in kinds.items()
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling or {"pooling_mode": "cls"}))
    change(folder / "config.json", architectures=["BertModel"])


def damaged_pooling(folder):
    sentence_encoder(folder)
    (folder / "1_Pooling/config.json").write_text("{")


def unknown_pooling(folder):
    sentence_encoder(folder, pooling_mode="weightedmean")


def more_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["brand", "new"])
    tokenizer.save_pretrained(folder)


def other_padding(folder):
    change(folder / "config.json", pad_token_id=1)


def no_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE = {
    no_padding: ("error", "has no padding token; name it in its tokenizer_config.json"),
    no_tokenizer: ("error", "data.tokenizer names one from elsewhere"),
    no_names: ("warning", "have no names and are taken in the order of the data; model.label_map"),
    damaged_pooling: ("warning", "its 1_Pooling/config.json cannot be read"),
    unknown_pooling: ("warning", "its pooling is weightedmean"),
    more_tokens: ("error", "rows of word embeddings"),
    other_padding: ("warning", "pads with 0, and pad_token_id of"),
    no_weights: ("error", "has no model.safetensors"),
    cut_off: ("error", "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_what_is_wrong_with_a_model(damage, checked, folder):
    level, said = DAMAGE[damage]
    damage(folder)
    status, lines, end = checked(folder)
    assert status == (level == "error")
    assert any(said in line for line in lines[level])
    assert f"1 {level}" in end


@pytest.mark.parametrize("pooling", [{"pooling_mode": "cls"}, {"pooling_mode_cls_token": True}])
def test_a_sentence_encoder_says_how_it_pools(checked, folder, pooling):
    sentence_encoder(folder, **pooling)
    status, lines, _ = checked(folder)
    assert not status
    assert any("a sentence encoder (cls pooling" in line for line in lines["ok"])


def test_a_packed_model_does_not_learn(checked, folder, tmp_path, config):
    main(["export", f"--model={folder}", "--to=packed", f"--output={tmp_path / 'packed'}"])
    for args in ([tmp_path / "packed"], [config(), f"--model.pretrained={tmp_path / 'packed'}"]):
        status, lines, _ = checked(*args)
        assert status == 1
        assert any("is packed, and integers do not learn" in line for line in lines["error"])


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("xlnet", "no pruning of weights"),
        ("mpnet", "no QuantAwareTraining of attention"),
        ("deberta-v2", "no QuantAwareTraining of attention"),
        ("albert", "no GradualLayerDropping"),
        ("albert", "are not fused"),
        ("deberta-v2", "a convolution after the first layer"),
    ],
)
def test_what_a_family_does_not_allow(family, said, checked, tmp_path, tiny_model):
    build(family, vocab_size=60).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    _, lines, _ = checked(tmp_path / "model")
    assert any(said in line for line in lines["warning"])


COMPRESSION = [
    {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75, "end": "50%"}},
    {"class_path": "QuantAwareTraining", "init_args": {"start": "50%"}},
]


def test_a_configuration(checked, config, tmp_path):
    status, lines, end = checked(config(compression=COMPRESSION))
    text = "\n".join(lines["ok"])
    assert (status, lines["error"], lines["warning"]) == (0, [], [])
    assert "data.train_file: 64 examples" in text
    assert "8 optimizer steps on a device, 4 in an epoch" in text
    assert "MagnitudePruning: 75 % zeros by step 4 of 8" in text
    assert "QuantAwareTraining: 8-bit weights by step 5 of 8" in text
    assert f"Next: lit_compress fit --config {tmp_path / 'student.yaml'}" in end
    assert not (tmp_path / "run").exists()


def test_sizes_are_those_that_a_fit_leaves(checked, config, tmp_path, capsys):
    path = config(compression=COMPRESSION)
    _, lines, _ = checked(path)
    main(["fit", "--config", str(path)])
    main(["report", "--run", str(tmp_path / "run"), "--batch_sizes", "[1]", "--repetitions", "1"])
    size = json.loads((tmp_path / "run/report/report.json").read_text())["models"]["compressed"]["size"]["model"]
    said = next(line for line in lines["ok"] if "will be left" in line)
    assert f"{size['parameters']:,} parameters" in said
    about = int(re.findall(r"about ([\d,]+) of them", said)[0].replace(",", ""))
    assert about == pytest.approx(size["nonzeros"], rel=0.01)  # the row of the padding token is zero, too


WRONG = {
    "a column": (["--data.label_column=lable"], "error", "data.label_column: 'lable' is not a column"),
    "a file": (["--data.train_file=missing.tsv"], "error", "'missing.tsv' does not exist"),
    "a window": (["--compression+=QuantAwareTraining", "--compression.start=9 steps"], "error", "after training ends"),
    "a late end": (
        ["--compression+=QuantAwareTraining", "--compression.start=7 steps", "--compression.freeze_observers=null"],
        "warning",
        "little training is left",
    ),
    "positions": (["--data.max_length=600"], "error", "data.max_length: 600 is above 128"),
    "the trainer": (["--trainer.accumulate_grad_batches=0"], "error", "accumulate_grad_batches"),
}


@pytest.mark.parametrize(("options", "level", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_configuration(options, level, said, checked, config):
    status, lines, _ = checked(config(), *options)
    assert status == (level == "error")
    assert any(said in line for line in lines[level]), lines


def test_model_and_data_are_both_looked_at(checked, config):
    status, lines, _ = checked(config(), "--data.max_length=600", "--data.label_column=lable")
    assert status == 1
    assert {line.partition(":")[0] for line in lines["error"]} == {"data.max_length", "data.label_column"}


def test_another_order_of_labels_is_said(checked, config, tmp_path, tiny_teacher):
    other = swapped(tiny_teacher, tmp_path / "other")
    status, lines, _ = checked(config(), f"--model.teacher={other}")
    assert status == 0
    assert any("its head was brought into that of the data" in line for line in lines["warning"])


def test_a_folder_that_is_taken_and_files_that_compose(checked, config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious.txt").write_text("years of work")
    status, lines, _ = checked(config(), "@compression/qat_int8")
    assert status == 1
    assert any("run" in line for line in lines["error"])
    assert any("7-bit weights" in line for line in lines["ok"])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("args", [[], ["a.yaml", "folder"], ["one", "two"], ["one", "--data.max_length=3"]])
def test_what_can_be_checked(args, checked):
    status, _, end = checked(*args)
    assert status == 1
    assert "\n" not in end
    assert "check: " in end
