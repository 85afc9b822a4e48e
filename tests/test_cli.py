"""The command line as a user meets it: runs, composition, resumption, and every kind of wrong input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from contracts.labels import swapped
from contracts.training import differences, student_config
from processes import Python, run_python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.cli import main
from lit_compress.export import load_checkpoint

REPOSITORY = Path(__file__).parent.parent
PRUNE = REPOSITORY / "configs/compression/magnitude_80.yaml"
QUANTIZE = REPOSITORY / "configs/compression/qat_int8.yaml"


@pytest.fixture(scope="session")
def task(tmp_path_factory, tiny_teacher, tiny_data) -> Path:
    """A complete small configuration of a student, without strategies."""
    path = tmp_path_factory.mktemp("task") / "task.yaml"
    path.write_text(yaml.safe_dump(student_config(tiny_teacher, tiny_data)))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, task) -> Path:
    """A finished run with pruning and quantization."""
    run = tmp_path_factory.mktemp("finished") / "run"
    main(["fit", f"--config={task}", f"--config={PRUNE}", f"--config={QUANTIZE}", f"--run={run}"])
    return run


def fails(capsys, *args) -> tuple[int, str]:
    """Exit status and the one line that a failing command prints."""
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    code = caught.value.code
    if isinstance(code, str):  # sys.exit(text): Python prints it and exits with 1
        return 1, code
    return code, capsys.readouterr().err.strip().splitlines()[-1]


def test_a_run_leaves_everything_in_its_folder(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    names = [entry["class_path"].rpartition(".")[2] for entry in config["compression"]]
    assert names == ["MagnitudePruning", "QuantAwareTraining"]
    assert (finished / "checkpoints" / "last.ckpt").is_file()
    assert list(finished.glob("events.out.tfevents*"))
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["last.ckpt"]


def test_the_exported_model_loads_with_stock_transformers(finished):
    model = AutoModelForSequenceClassification.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert model(**tokenizer("a good film", return_tensors="pt")).logits.shape == (1, 2)
    weight = model.bert.encoder.layer[0].output.dense.weight
    assert int((weight == 0).sum()) >= round(0.8 * weight.numel())
    assert model.config.id2label == {0: "0", 1: "1"}


def test_a_saved_config_repeats_the_run(finished, tmp_path, capsys):
    main(["fit", f"--config={finished / 'config.yaml'}", f"--run={tmp_path / 'again'}"])
    last = capsys.readouterr().out.split("The model is in ")[1]
    assert re.match(rf"{re.escape(str(tmp_path))}/again/model; val/accuracy 0\.\d{{4}}\. Next:\n", last)
    assert f"lit_compress report --run {tmp_path / 'again'}" in last
    states = [load_checkpoint(run / "checkpoints/last.ckpt")["state_dict"] for run in (finished, tmp_path / "again")]
    assert differences(*states) == []


def test_a_configuration_called_config_keeps_its_run(task, tmp_path, capsys):
    # Only a run's own configuration is of the folder that it is in.
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(task, tmp_path / "config.yaml")
    with (tmp_path / "config.yaml").open("a") as file:
        file.write("run: runs/mine\n")
    with pytest.raises(SystemExit):
        main(["fit", f"--config={tmp_path / 'config.yaml'}", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["run"] == "runs/mine"


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_trained_model_is_evaluated_with_its_file_alone(command, finished, tiny_data, tmp_path, capsys):
    name = {"validate": "val"}.get(command, command)
    given = ["--model=LitTeacher", f"--model.pretrained={finished / 'model'}", "--data=TextClassification"]
    given += [f"--data.{name}_file={tiny_data / 'val.tsv'}", "--data.text_columns=[sentence]", "--data.max_length=16"]
    main([command, *given, f"--run={tmp_path / command}"])
    assert f"{name}/accuracy" in capsys.readouterr().out
    line = fails(capsys, "fit", *given, f"--run={tmp_path / 'fit'}")[1]
    assert line == "lit_compress: error: data.train_file: missing; give the file to train on, or data.hub"
    assert not (tmp_path / "fit").exists()


def test_validate_and_predict_from_a_run(finished, tiny_data, capsys):
    main(["validate", f"--config={finished / 'config.yaml'}", "--ckpt_path=last"])
    assert "val/accuracy" in capsys.readouterr().out
    main(
        [
            "predict",
            f"--config={finished / 'config.yaml'}",
            "--ckpt_path=last",
            f"--data.predict_file={tiny_data / 'val.tsv'}",
        ]
    )


@pytest.mark.parametrize(
    "option", [["-c", "none.yaml"], ["-c=none.yaml"], ["--config", "none.yaml"], ["--config=none.yaml"]]
)
def test_predict_takes_a_configuration_in_every_spelling(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["predict", *option])
    assert "none.yaml" in f"{caught.value.code}{capsys.readouterr().err}"


def test_switching_parts_of_the_trainer_off(task, tmp_path):
    off = ["--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false", "--trainer.logger=false"]
    main(["fit", f"--config={task}", f"--run={tmp_path / 'bare'}", "--trainer.max_epochs=1", *off])
    assert (tmp_path / "bare/model/model.safetensors").is_file()
    main(["fit", f"--config={task}", f"--run={tmp_path / 'quick'}", "--trainer.fast_dev_run=true"])
    assert not (tmp_path / "quick").exists()


@pytest.mark.parametrize("spelling", ["compression", "compression+"])
def test_later_configs_append_strategies(task, tmp_path, capsys, spelling):
    more = tmp_path / "more.yaml"
    more.write_text(f"{spelling}:\n  - class_path: FreezeEmbeddings\n")
    with pytest.raises(SystemExit):
        main(["fit", f"--config={task}", f"--config={PRUNE}", f"--config={more}", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    names = [entry["class_path"].rpartition(".")[2] for entry in config["compression"]]
    assert names == ["MagnitudePruning", "FreezeEmbeddings"]


CONFIGS = sorted(path for path in REPOSITORY.glob("configs/**/*.yaml") if "recipes" not in path.parts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY / "configs")))
def test_every_shipped_config_parses(path, task, capsys):
    base = [] if "run:" in path.read_text() else [f"--config={task}"]
    fit = ["fit", *base, f"--config={path}", "--data.train_file=train.tsv", "--print_config"]
    compresses = "compress" in (path.parent.name, path.stem)
    with pytest.raises(SystemExit) as caught:
        main(["compress", f"--config={path}", "--print_config"] if compresses else fit)
    assert caught.value.code == 0
    assert ("speedup" if compresses else "class_path") in capsys.readouterr().out


def test_a_killed_process_resumes_to_the_same_bits(task, tmp_path, finished):
    (tmp_path / "killer.py").write_text(
        "import os, signal\n"
        "from lightning.pytorch import Callback\n\n\n"
        "class KillAt(Callback):\n"
        "    def __init__(self, step: int):\n"
        "        self.step = step\n\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        if trainer.global_step == self.step:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = ["-m", "lit_compress", "fit", f"--config={task}", f"--config={PRUNE}"]
    command += [f"--config={QUANTIZE}", "--run=run", "--checkpoint_every=2"]
    kill = ["--trainer.callbacks+=killer.KillAt", "--trainer.callbacks.step=7"]  # in the middle of the second epoch
    assert run_python([*command, *kill], cwd=tmp_path).returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 6
    # As a user starts it: with another hash seed, and nothing that the first process has left.
    subprocess.run([sys.executable, *command, "--ckpt_path=last"], cwd=tmp_path, check=True, capture_output=True)
    assert run_python([*command[:-2], "--run=whole"], cwd=tmp_path).returncode == 0
    whole, resumed = (load_checkpoint(tmp_path / run / "checkpoints/last.ckpt") for run in ("whole", "run"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "lit_compress", "global_step"):
        assert differences(whole[part], resumed[part]) == []
    # The saved configuration repeats the run; it does not try to resume again.
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["ckpt_path"] is None


def test_export_and_report_from_a_run(finished, tmp_path, capsys):
    main(["export", f"--run={finished}", f"--output={tmp_path / 'out'}"])
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "compression.json"} <= files
    main(["report", f"--run={finished}", "--repetitions=1"])
    assert "whole model: values + index" in capsys.readouterr().out
    assert (finished / "report" / "report.md").is_file()
    code, line = fails(capsys, "export", f"--run={finished}", f"--output={tmp_path / 'out'}")
    assert code == 1
    assert "--overwrite" in line


def a_file(tmp_path, name, text) -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


# What is wrong -> options made from the temporary folder, exit status, words that the line must have.
MISTAKES = {
    "no such file": (lambda t: ["--data.train_file=missing.tsv"], 1, ["data.train_file", "missing.tsv"]),
    "empty file": (lambda t: ["--data.train_file=" + a_file(t, "e.tsv", "")], 1, ["data.train_file", "empty"]),
    "missing column": (lambda t: ["--data.label_column=target"], 1, ["data.label_column", "target"]),
    "unseen label": (
        lambda t: ["--data.val_file=" + a_file(t, "v.tsv", "sentence\tlabel\ngood\t7\n")],
        1,
        ["data.val_file", "'7'", "row 1"],
    ),
    "no target": (lambda t: ["--compression.targets=['*.nothing.*']"], 1, ["targets", "*.nothing.*"]),
    "sparsity of one": (lambda t: ["--compression.sparsity=1.0"], 1, ["sparsity", "1.0", "[0, 1)"]),
    "end before start": (lambda t: ["--compression.start=80%", "--compression.end=20%"], 1, ["end", "20%", "80%"]),
    "end before start in other units": (
        lambda t: ["--compression.start=7 steps", "--compression.end=1 epochs"],
        1,
        ["end", "step 4", "step 7"],
    ),
    "no unit": (lambda t: ["--compression.start=5"], 1, ["start", "'5'", "steps"]),
    "teacher missing": (lambda t: ["--model.teacher=/nowhere/at/all"], 1, ["model.teacher", "/nowhere/at/all"]),
    "teacher without config": (lambda t: [f"--model.teacher={t}"], 1, ["model.teacher", "config.json"]),
    "unknown option": (lambda t: ["--model.teachr=x"], 2, ["teachr", "did you mean 'teacher'"]),
    "unknown group": (lambda t: ["--modle.teacher=x"], 2, ["modle.teacher"]),
    "unknown class": (lambda t: ["--model=LitStudnt"], 2, ["LitStudnt", "LitStudent"]),
    "wrong type": (lambda t: ["--model.optimization.learning_rate=fast"], 2, ["learning_rate", "fast"]),
    "no such config": (lambda t: ["--config=nothing.yaml"], 2, ["nothing.yaml"]),
    "nothing to resume": (lambda t: ["--ckpt_path=last"], 1, ["run"]),
    "no such checkpoint": (lambda t: ["--ckpt_path=none.ckpt"], 1, ["none.ckpt"]),
    "broken checkpoint": (
        lambda t: ["--ckpt_path=" + a_file(t, "b.ckpt", "PK\x03\x04 half")],
        1,
        ["b.ckpt", "damaged"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(name, task, tmp_path, capsys):
    make, status, words = MISTAKES[name]
    run = tmp_path / "run"
    code, line = fails(capsys, "fit", f"--config={task}", f"--config={PRUNE}", f"--run={run}", *make(tmp_path))
    assert code == status
    assert line.startswith("lit_compress: error: ")
    assert "\n" not in line
    assert [word for word in words if word not in line] == []
    assert not run.exists()


def test_a_target_that_is_no_number(task, tmp_path, capsys, tiny_model):
    train = a_file(tmp_path, "n.tsv", "sentence\tlabel\ngood\t1.5\nbad\tnan\n")
    options = ["--data.task=regression", f"--data.train_file={train}", f"--model.pretrained={tiny_model}"]
    run = tmp_path / "run"
    code, line = fails(capsys, "fit", f"--config={task}", f"--run={run}", "--model.teacher=null", *options)
    assert (code, "data.label_column" in line, "row 2" in line, run.exists()) == (1, True, True, False)


def test_a_teacher_with_other_labels_or_vocabulary(task, tmp_path, capsys, tiny_teacher):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher, num_labels=3, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path / "three")
    code, line = fails(
        capsys, "fit", f"--config={task}", f"--run={tmp_path / 'run'}", f"--model.teacher={tmp_path / 'three'}"
    )
    assert (code, "3 labels" in line) == (1, True)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    model.resize_token_embeddings(200)
    model.save_pretrained(tmp_path / "words")
    code, line = fails(
        capsys, "fit", f"--config={task}", f"--run={tmp_path / 'run'}", f"--model.teacher={tmp_path / 'words'}"
    )
    assert (code, "vocabulary of 200" in line) == (1, True)


@pytest.mark.parametrize("command", ["fit", "validate"])
@pytest.mark.parametrize("key", ["pretrained", "teacher", "teachers.one"])
def test_a_model_without_positions_for_the_longest_input(command, key, task, tmp_path, capsys, short_teacher):
    given = [f"--run={tmp_path / 'run'}", f"--model.{key}={short_teacher}"]
    code, line = fails(capsys, command, f"--config={task}", *given)
    assert code == 1
    assert f"data.max_length: 16 is above 12, the longest input of model.{key}" in line
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_a_padding_token(task, tmp_path, capsys, tiny_teacher):
    model = shutil.copytree(tiny_teacher, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    fit = ["fit", f"--config={task}", f"--run={tmp_path / 'run'}", f"--model.pretrained={model}"]
    answer = ["predict", f"--model={model}", "--file=rows.tsv", f"--output={tmp_path / 'out.csv'}"]
    by_default = "model.pretrained, whose tokenizer data.tokenizer is by default"
    for command, key in ((fit, by_default), (answer, "data.tokenizer")):
        code, line = fails(capsys, *command)
        assert (code, "no padding token" in line) == (1, True)
        assert line.startswith(f"lit_compress: error: {key}: ")
    assert not (tmp_path / "run").exists()


MAPPED = ["--model.label_map", "{HIGH: 1, LOW: 0}"]


@pytest.mark.parametrize(("names", "options"), [(("1", "0"), []), (("HIGH", "LOW"), MAPPED)])
def test_a_model_with_its_classes_in_another_order(names, options, task, tmp_path, capsys, caplog, tiny_teacher):
    """Validated, and as student and teacher of a fit, it is the model that it is."""
    other = swapped(tiny_teacher, tmp_path / "other", names)
    shown = []
    for model, given in ((tiny_teacher, []), (other, options)):
        models = [f"--model.pretrained={model}", f"--model.teacher={model}"]
        main(["validate", f"--config={task}", f"--run={tmp_path / 'run'}", *models, *given])
        lines = capsys.readouterr().out.splitlines()
        shown.append([line for line in lines if "val/" in line])
        run = tmp_path / f"run-{model.name}"
        main(["fit", "--trainer.max_epochs=1", f"--config={task}", f"--run={run}", *models, *given])
        capsys.readouterr()
    assert shown[0]
    assert shown[0] == shown[1]
    runs = [tmp_path / f"run-{model.name}" for model in (tiny_teacher, other)]
    first, second = (load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in runs)
    assert differences(first, second) == []
    said = [record.getMessage() for record in caplog.records if str(other) in record.getMessage()]
    assert [message.split(":")[0] for message in said] == ["model.pretrained", "model.teacher"] * 2


def test_a_model_with_other_names_for_its_classes(task, tmp_path, capsys, tiny_teacher):
    other = swapped(tiny_teacher, tmp_path / "other", ("HIGH", "LOW"))
    for command, key in (("validate", "pretrained"), ("fit", "pretrained"), ("fit", "teacher")):
        code, line = fails(capsys, command, f"--config={task}", f"--run={tmp_path / 'run'}", f"--model.{key}={other}")
        assert code == 1
        assert [word for word in (f"model.{key}", "HIGH", "'0'", "model.label_map") if word not in line] == []
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_before_names_were_compared_goes_on(finished, tmp_path, tiny_teacher, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    other = swapped(tiny_teacher, tmp_path / "other", ("HIGH", "LOW"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["pretrained"] = str(other)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shown = []
    for folder in (finished, run):
        main(["validate", f"--config={folder / 'config.yaml'}", f"--run={folder}", "--ckpt_path=last"])
        shown.append([line for line in capsys.readouterr().out.splitlines() if "val/" in line])
    assert shown[0]
    assert shown[0] == shown[1]


def test_a_map_of_labels_without_labels(task, tmp_path, capsys, tiny_model):
    options = ["--data.task=regression", f"--model.pretrained={tiny_model}", "--model.teacher=null", *MAPPED]
    code, line = fails(capsys, "fit", f"--config={task}", f"--run={tmp_path / 'run'}", *options)
    assert (code, "model.label_map" in line) == (1, True)


def test_truncated_weights(task, tmp_path, capsys, tiny_teacher):
    for file in tiny_teacher.iterdir():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, line = fails(
        capsys, "fit", f"--config={task}", f"--run={tmp_path / 'run'}", f"--model.pretrained={tmp_path / 'model'}"
    )
    assert (code, "model.pretrained" in line, "damaged" in line) == (1, True, True)


def test_an_existing_run_is_not_touched(task, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    code, line = fails(capsys, "fit", f"--config={task}", f"--run={finished}")
    assert (code, "--ckpt_path last" in line) == (1, True)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


WAIT = """
import time
from pathlib import Path
from lightning.pytorch import Callback


class Wait(Callback):
    def on_train_start(self, trainer, module):
        Path("started").touch()
        while not Path("go").exists():
            time.sleep(0.05)
"""


def test_the_same_fit_started_twice(task, tmp_path, capsys):
    (tmp_path / "waiting.py").write_text(WAIT)
    command = ["-m", "lit_compress", "fit", f"--config={task}", "--run=run", "--trainer.max_epochs=1"]
    with Python([*command, "--trainer.callbacks+=waiting.Wait"], cwd=tmp_path) as first:
        while not (tmp_path / "started").exists():
            assert first.poll() is None
            time.sleep(0.05)
        run = tmp_path / "run"
        for options in ([], ["--ckpt_path=last"]):
            code, line = fails(capsys, "fit", f"--config={task}", f"--run={run}", *options)
            assert (code, f"process {first.pid} on" in line, "in use" in line) == (1, not options, not options)
        (tmp_path / "go").touch()
        assert first.wait(60) == 0
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "checkpoints", "model"} <= names
    assert "fit.lock" not in names


def test_a_run_folder_below_a_file(task, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, line = fails(capsys, "fit", f"--config={task}", f"--run={tmp_path / 'file' / 'run'}")
    assert (code, "run: " in line, "cannot be written" in line) == (1, True, True)


@pytest.mark.parametrize("every", [1, 500])
def test_a_loss_that_is_not_finite_stops_the_run(every, task, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["fit", f"--config={task}", f"--run={run}", "--model.optimization.warmup=0%", "--trainer.max_epochs=1"]
    diverging = ["--model.optimization.learning_rate=1e30", "--trainer.gradient_clip_val=null"]
    code, line = fails(capsys, *command, *diverging, f"--checkpoint_every={every}")
    assert code == 1
    assert "step" in line
    assert "train" in line
    assert "task" in line or "kd" in line
    if every == 1:
        assert "the last checkpoint is from before it" in line
        assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] >= 1
    else:
        assert "no checkpoint was saved yet" in line
        main(command)  # and nothing is in its way
        assert len(list(run.glob("events.out.tfevents*"))) == 1


def test_a_class_of_the_users_own_file(task, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef keep_the_small(weight: torch.Tensor) -> torch.Tensor:\n    return -weight.abs()\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "compression:\n  - class_path: MagnitudePruning\n    init_args: {sparsity: 0.5, schedule: constant, "
        "end: 0%, criterion: mine.keep_the_small}\n"
    )
    monkeypatch.chdir(tmp_path)
    main(["fit", f"--config={task}", "--config=mine.yaml", "--run=run", "--model.optimization.learning_rate=1e-9"])
    state = load_checkpoint("run/checkpoints/last.ckpt")["state_dict"]
    original = AutoModelForSequenceClassification.from_pretrained(
        yaml.safe_load(task.read_text())["model"]["init_args"]["pretrained"]
    )
    name = "bert.encoder.layer.0.output.dense.weight"
    magnitude, mask = original.state_dict()[name].abs(), state[f"student.{name}_mask"]
    assert magnitude[mask].max() <= magnitude[~mask].min() + 1e-6
    assert torch.count_nonzero(mask) == round(0.5 * mask.numel())


def test_text_classification_is_the_data_of_a_fit_unless_another_is_named(tiny_teacher, tiny_data, tmp_path):
    given = [f"--data.train_file={tiny_data / 'train.tsv'}", "--data.text_columns", "sentence", "--trainer.max_steps=1"]
    main(["fit", "--model=LitTeacher", f"--model.pretrained={tiny_teacher}", *given, f"--run={tmp_path / 'run'}"])
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]
    assert saved["class_path"].endswith("TextClassification")
    assert saved["init_args"]["text_columns"] in ("sentence", ["sentence"])


def test_a_package_names_a_model_in_every_command(finished, tiny_teacher, tiny_data, tmp_path, monkeypatch, capsys):
    package = tmp_path / "installed" / "package_with_a_model"
    shutil.copytree(tiny_teacher, package / "inner" / "model")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    source, rows, out = f"package:{package.name}/inner/model", tiny_data / "val.tsv", tmp_path / "out"
    small = ["--batch_sizes=[1]", "--repetitions=1"]
    sentence = "--data.text_columns=[sentence]"
    commands = [
        ["export", f"--model={source}", f"--output={out}/hf"],
        ["pack", f"--model={source}", f"--output={package}/packed"],
        ["trim-vocabulary", f"--model={source}", f"--corpus={rows}", f"--output={out}/trimmed"],
        ["predict", f"--model={source}", f"--file={rows}", f"--output={out}/rows.csv", sentence],
        ["predict", f"--model={source}", "--text=a good film"],
        ["check", source],
        ["explain", f"package:{package.name}/packed"],
        ["init", str(rows), f"--model={source}", f"--output={out}/init"],
        ["report", f"--run={finished}", f"--dense={source}", f"--output={out}/report", *small],
        ["benchmark", source, f"mine={source}", "--engines=[eager]", "--lengths=[8]", *small],
        ["formats", f"--run={finished}", f"--dense={source}", f"--output={out}/formats", "--to=[hf]", *small],
    ]
    out.mkdir()
    for command in commands:
        main(command)
    code, line = fails(capsys, "export", f"--model={source}", f"--output={package}/inner", "--overwrite=true")
    assert code
    assert "which is read" in line
    for command in commands:
        if command[0] not in ("pack", "check"):  # whose output is in the package; which says it in its table
            new = [part.replace(f"{out}/", f"{out}/other_") for part in command]
            wrong = [part.replace(f":{package.name}/", f":{package.name}/no_") for part in new]
            assert f"the package {package.name!r} has no 'no_" in fails(capsys, *wrong)[1]


def test_a_fit_that_ends_within_an_epoch_says_where_it_was_validated(task, tmp_path, capsys):
    options = ["--trainer.max_epochs=-1", "--trainer.max_steps=6"]  # of 4 steps in an epoch
    main(["fit", f"--config={task}", f"--run={tmp_path / 'run'}", *options])
    said = capsys.readouterr().out.split("The model is in ")[1].splitlines()[0]
    assert re.search(r"; val/accuracy 0\.\d{4} at step 4, where it was last validated, of 6\. Next:$", said), said


def test_a_mistyped_model_is_named_by_its_own_key(task, tmp_path, capsys):
    status, line = fails(capsys, "fit", f"--config={task}", f"--run={tmp_path / 'run'}", "--model.pretrained=no-model")
    assert status == 1
    assert line.startswith("lit_compress: error: model.pretrained, whose tokenizer data.tokenizer is by default: ")
    assert "'no-model'" in line


@pytest.mark.parametrize("words", ["configs", "configs @compression/magnitude_80", "--help"])
def test_a_reader_that_has_read_enough_is_no_error(words):
    """As with `| head -1`: nobody reads when the command writes."""
    command = [sys.executable, "-m", "lit_compress", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        # Long before an interpreter has its first line.
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
