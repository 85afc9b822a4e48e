"""The parser's real messages, through the command line, in one line each."""

import json

import pytest
import yaml

from lit_compress import modules, strategies
from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.usage_errors import one_line, option_names, user_error


@pytest.fixture(scope="session")
def task(tmp_path_factory, tiny_teacher, tiny_data):
    path = tmp_path_factory.mktemp("usage") / "task.yaml"
    model = {"pretrained": str(tiny_teacher), "teacher": str(tiny_teacher)}
    text = {"train_file": str(tiny_data / "train.tsv"), "val_file": str(tiny_data / "val.tsv")}
    config = {
        "model": {"class_path": "LitStudent", "init_args": model},
        "data": {"class_path": "TextClassification", "init_args": text | {"text_columns": ["sentence"]}},
        "trainer": {"accelerator": "cpu"},
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def fail(capsys):
    """Exit status of a command and what it writes to stderr."""

    def run(*args):
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        code = caught.value.code
        # Python prints the text given to sys.exit() and exits with 1.
        return (1, f"{code}\n") if isinstance(code, str) else (code, capsys.readouterr().err)

    return run


def check(status, text, words):
    assert text.startswith("lit_compress: error: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert [word for word in words if word not in text] == []


PRUNE = "--compression+=MagnitudePruning"
OPTIONS = {
    "parameter": (["--model.teachr=x"], ["unknown option 'teachr'", "did you mean 'teacher'?"]),
    "parameter by its full name": (["--model.init_args.teachr=x"], ["'teachr'", "did you mean 'teacher'?"]),
    "two words": (["--data.batchsize=3"], ["'batchsize'", "did you mean 'batch_size'?"]),
    "section": (["--modle=LitStudent"], ["'modle'", "did you mean 'model'?"]),
    "option of ours": (["--checkpoint_evry=3"], ["'checkpoint_evry'", "did you mean 'checkpoint_every'?"]),
    "option of the trainer": (["--trainer.acelerator=gpu"], ["did you mean 'trainer.accelerator'?"]),
    "parameter of a strategy": ([PRUNE, "--compression.sparsty=0.5"], ["'sparsty'", "did you mean 'sparsity'?"]),
    "an old name": (
        ["--compression+=StructuredPruning", "--compression.prunings=2"],
        ["unknown option 'prunings'; it is now called 'pruning_steps'"],
    ),
    "in a group": (["--model.optimization.lerning_rate=1"], ["did you mean 'optimization.learning_rate'?"]),
    "in a term": (
        ["--model.distillation={'kd': {'class_path': 'LogitDistillation', 'init_args': {'hardnes': 1}}}"],
        ["'hardnes'", "did you mean 'hardness'?"],
    ),
    "nothing like it": (["--zzzzzz=1"], ["'zzzzzz'", "see --help"]),
    "model class": (["--model=LitStudnt"], ["model: no class is named 'LitStudnt'", "did you mean 'LitStudent'?"]),
    "data class": (["--data=TextClasification"], ["data: ", "did you mean 'TextClassification'?"]),
    "strategy": (["--compression+=MagnitudePrunin"], ["compression: ", "did you mean 'MagnitudePruning'?"]),
    "term": (
        ["--model.distillation={'kd': {'class_path': 'LogitDistilation'}}"],
        ["distillation: no class is named 'LogitDistilation'", "did you mean 'LogitDistillation'?"],
    ),
    "class that is not a strategy": (
        ["--compression+=torch.nn.Linear"],
        ["compression: ", "torch.nn.Linear", "Strategy"],
    ),
    "text for an integer": (["--data.batch_size=three"], ["batch_size", "int", "three"]),
    "fraction for an integer": (["--data.batch_size=1.5"], ["batch_size", "int", "1.5"]),
    "text for a number": ([PRUNE, "--compression.sparsity=much"], ["sparsity", "float", "much"]),
    "text in a list of numbers": (
        ["--compression+=StructuredPruning", "--compression.heads=[a, 1]"],
        ["heads: ['a', 1] must be a whole number, a number, a list of numbers or null"],
    ),
    "choice": ([PRUNE, "--compression.schedule=quadratic"], ["schedule", "cubic", "'quadratic'"]),
    "choice of precision": (["--trainer.precision=17"], ["trainer.precision", "bf16-mixed"]),
    "text for a switch": (["--model.compile=maybe"], ["compile", "bool", "maybe"]),
    "one for a list": (["--compression={'class_path': 'PatternLock'}"], ["compression", "list"]),
    "criterion": ([PRUNE, "--compression.criterion=nothing.here"], ["criterion", "nothing.here", "No module named"]),
    "value missing": (["--ckpt_path"], ["--ckpt_path", "expected one argument"]),
    "file missing": (["--config=nothing.yaml"], ["nothing.yaml"]),
}


@pytest.mark.parametrize(("args", "words"), OPTIONS.values(), ids=OPTIONS)
def test_a_wrong_option_is_one_line(args, words, task, fail, tmp_path):
    status, text = fail("fit", f"--config={task}", f"--run={tmp_path / 'run'}", *args)
    assert status == 2
    check(status, text, words)
    assert not (tmp_path / "run").exists()


# Most settings are written in files.
FILES = {
    "section": ("compresion: []", ["'compresion'", "did you mean 'compression'?"]),
    "option of ours": ("chekpoint_every: 3", ["'chekpoint_every'", "did you mean 'checkpoint_every'?"]),
    "option of the trainer": ("trainer: {max_epoch: 3}", ["did you mean 'trainer.max_epochs'?"]),
    "abbreviated": ("seed: 3", ["unknown option 'seed'"]),
    "parameter": ("data: {init_args: {batchsize: 3}}", ["'batchsize'", "did you mean 'batch_size'?"]),
    "in a group": ("model: {init_args: {optimization: {lerning_rate: 1}}}", ["did you mean 'learning_rate'?"]),
    "strategy": ("compression: [{class_path: PaternLock}]", ["compression: ", "did you mean 'PatternLock'?"]),
    "parameter of a strategy": (
        "compression: [{class_path: MagnitudePruning, init_args: {sparsty: 0.5}}]",
        ["'sparsty'", "did you mean 'sparsity'?"],
    ),
    "unquoted 2:4": (
        "compression: [{class_path: MagnitudePruning, init_args: {pattern: 2:4, sparsity: 0.5}}]",
        ["pattern", "str"],
    ),
    "no YAML": ("model: [", ["Problems parsing config", "line 2"]),
    "text for a number": (
        "trainer: {max_epochs: three}",
        ["trainer.max_epochs: 'three' must be a whole number or null"],
    ),
}


@pytest.mark.parametrize(("text", "words"), FILES.values(), ids=FILES)
def test_a_wrong_file_is_one_line(text, words, task, fail, tmp_path):
    (tmp_path / "wrong.yaml").write_text(text + "\n")
    status, line = fail("fit", f"--config={task}", f"--config={tmp_path / 'wrong.yaml'}", f"--run={tmp_path / 'run'}")
    assert status == 2
    check(status, line, words)
    assert "did you mean 'seed'?" not in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["command", "fit"]),
        (["fitt"], ["'fitt'", "fit", "export", "report"]),
        (["export", "--rn=x"], ["'rn'", "did you mean 'run'?"]),
        (["report"], ["missing: run; --help says"]),
        (["report", "--run=x", "--repetitions=many"], ["repetitions", "int", "many"]),
        (["report", "--run=x", "--batch_sizes=[1,two]"], ["batch_sizes", "int", "two"]),
    ],
)
def test_a_wrong_command_is_one_line(args, words, fail):
    status, text = fail(*args)
    assert status == 2
    check(status, text, words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([PRUNE, "--compression.sparsity=2"], ["MagnitudePruning.sparsity: 2.0"]),
        (["--model.optimization.warmup=10"], ["optimization.warmup: '10'"]),
        (
            ["--model.distillation={'kd': {'class_path': 'LogitDistillation', 'init_args': {'hardness': 3}}}"],
            ["hardness: 3"],
        ),
        (
            ["--model.teacher=null", "--model.distillation={'kd': {'class_path': 'LogitDistillation'}}"],
            ["model.teacher"],
        ),
        (["--data.batch_size=0"], ["data.batch_size: 0"]),
        (["--data.train_file=/nowhere.tsv"], ["data.train_file: '/nowhere.tsv'"]),
    ],
)
def test_a_mistake_of_meaning_is_one_line_and_another_status(args, words, task, fail, tmp_path):
    status, text = fail("fit", f"--config={task}", f"--run={tmp_path / 'run'}", *args)
    assert status == 1
    check(status, text, words)
    assert not (tmp_path / "run").exists()


def test_a_run_is_needed(task, fail):
    assert fail("fit", f"--config={task}") == (
        1,
        "lit_compress: error: run: missing; give the folder of this run, for example --run runs/my_run\n",
    )


def test_a_fault_of_the_program_keeps_its_traceback(task, tmp_path, monkeypatch):
    monkeypatch.setattr(strategies.MagnitudePruning, "prepare", lambda *_: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        main(["fit", f"--config={task}", f"--run={tmp_path / 'run'}", PRUNE])


def test_the_message_of_the_parser_is_kept_when_nothing_is_known_about_it():
    assert one_line("Something new\n  - went wrong:\n", []) == "Something new; went wrong:"


def test_names_are_options_classes_and_their_parameters():
    names = option_names([modules, strategies], ["--trainer.max_epochs", "-h"])
    assert {"trainer.max_epochs", "max_epochs", "LitStudent", "teacher", "MagnitudePruning", "sparsity"} <= set(names)
    assert not [name for name in names if name.startswith("-")]


def raised(error, cause):
    try:
        raise error from cause
    except type(error) as chained:
        return chained


def test_the_users_mistake_is_found_behind_what_wraps_it():
    mistake = UserError("sparsity")
    assert user_error(mistake, UserError) is mistake
    assert user_error(raised(TypeError("outer"), raised(ValueError("inner"), mistake)), UserError) is mistake
    assert user_error(raised(TypeError("outer"), ValueError("inner")), UserError) is None
    assert user_error(None, UserError) is None


def test_a_choice_that_is_none_has_the_nearest():
    message = "Parser key \"to\":\n  Expected a typing.Literal['hf', 'onnx', 'onnx-int8']. Got value: onnx_int8"
    assert one_line(message, []) == "to: 'onnx_int8' must be one of hf, onnx, onnx-int8; did you mean 'onnx-int8'?"


def test_one_value_is_a_list_of_one(tiny_teacher, tmp_path):
    options = ["--batch_sizes", "1", "--lengths=8", "--engines", "eager", "--repetitions=1"]
    main(["benchmark", str(tiny_teacher), *options, f"--output={tmp_path / 'times.json'}"])
    assert list(json.loads((tmp_path / "times.json").read_text())["cases"][0]["times"]) == ["1x8"]
