"""A run continues with what it began with; what it cannot is an error, what it can is said."""

import shutil

import pytest
import yaml
from contracts.training import student_config

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.training.resume_checks import check_resumed

PRUNE = {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.5, "end": "50%"}}


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_teacher, tiny_data):
    folder = tmp_path_factory.mktemp("resumed")
    config = student_config(tiny_teacher, tiny_data, compression=[PRUNE])
    config["trainer"]["enable_model_summary"] = False
    (folder / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={folder / 'task.yaml'}", f"--run={folder / 'run'}"])
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, and the options that resume it for another epoch."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return ["fit", f"--config={tmp_path / 'run' / 'config.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=3"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.batch_size=8"], ["data.batch_size", "16", "8"]),
        (["--seed_everything=1"], ["seed_everything", "42", "1"]),
        (["--trainer.accumulate_grad_batches=2"], ["trainer.accumulate_grad_batches", "1", "2"]),
        (["--model.optimization.learning_rate=1e-3"], ["model.optimization.learning_rate", "5e-05", "0.001"]),
        (["--compression=[]"], ["compression", "MagnitudePruning"]),
    ],
)
def test_what_would_change_unseen_is_an_error(options, words, run, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(SystemExit) as caught:
        main([*run, *options])
    line = str(caught.value.code)
    assert [word for word in words if word not in line] == []
    assert "began with" in line
    assert "\n" not in line
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_run_without_compression_in_the_files_given(run, finished, tmp_path):
    config = yaml.safe_load((finished / "task.yaml").read_text())
    del config["compression"]
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match="compression: the run began with MagnitudePruning"):
        main(["fit", f"--config={tmp_path / 'bare.yaml'}", f"--run={tmp_path / 'run'}", *run[2:]])


def test_what_is_compatible_goes_on_without_a_word(run, tiny_data, tmp_path, caplog):
    val = shutil.copy(tiny_data / "val.tsv", tmp_path)
    main([*run, f"--data.val_file={val}", "--data.eval_batch_size=4", "--checkpoint_every=2"])
    assert not [record for record in caplog.records if "began with" in record.getMessage()]
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["trainer"]["max_epochs"] == 3


def test_what_has_an_effect_is_said(run, finished, tmp_path, caplog):
    train = shutil.copy(
        yaml.safe_load((finished / "task.yaml").read_text())["data"]["init_args"]["train_file"], tmp_path
    )
    options = ["--compression.sparsity=0.75", "--trainer.gradient_clip_val=0.5", "--trainer.limit_train_batches=3"]
    main([*run, f"--data.train_file={train}", *options])
    said = [record.getMessage() for record in caplog.records if "began with" in record.getMessage()]
    assert [line.split(": ")[0] for line in said] == [
        *("compression.MagnitudePruning.sparsity", "data.train_file"),
        *("trainer.gradient_clip_val", "trainer.limit_train_batches"),
    ]
    assert said[0].endswith("the run began with 0.5 and continues with 0.75")


def test_an_older_run_has_fewer_settings():
    old = {"data": {"class_path": "a.Text", "init_args": {"batch_size": 4}}, "model": {"class_path": "M"}}
    new = {"data": {"class_path": "b.Text", "init_args": {"batch_size": 4, "stride": 2}}, "model": {"class_path": "M"}}
    check_resumed(old, new | {"seed_everything": 3})


def test_a_packed_model_is_no_student(finished, tmp_path, capsys):
    main(["export", f"--run={finished / 'run'}", "--to=packed", f"--output={tmp_path / 'packed'}"])
    fit = ["fit", f"--config={finished / 'task.yaml'}", f"--run={tmp_path / 'run'}"]
    with pytest.raises(SystemExit, match=r"model\.pretrained: .*packed' is packed"):
        main([*fit, f"--model.pretrained={tmp_path / 'packed'}"])
    assert not (tmp_path / "run").exists()


def test_a_file_to_validate_on_is_not_given_or_left_out_on_the_way():
    for before, after in ((None, "val.tsv"), ("val.tsv", None)):
        with pytest.raises(UserError, match=r"^data\.val_file: the run began with .* give the same"):
            check_resumed({"data": {"val_file": before}}, {"data": {"val_file": after}})
    check_resumed({"data": {"val_file": "val.tsv"}}, {"data": {"val_file": "other.tsv"}})
    # Nothing is held out of the training data of the hub.
    check_resumed({"data": {"hub": "glue", "val_file": None}}, {"data": {"hub": "glue", "val_file": "val.tsv"}})


def test_two_strategies_of_a_class_are_told_apart(caplog):
    def pruned(*pairs):
        kept = [{"sparsity": sparsity, "targets": [target]} for sparsity, target in pairs]
        return {"compression": [{"class_path": "MagnitudePruning", "init_args": each} for each in kept]}

    both = pruned((0.5, "*query"), (0.8, "*dense"))
    with pytest.raises(UserError, match="has no MagnitudePruning"):
        check_resumed(both, pruned((0.5, "*query")))
    assert not caplog.records
    check_resumed(both, pruned((0.3, "*query"), (0.8, "*dense")))
    assert [record.getMessage() for record in caplog.records] == [
        "compression.MagnitudePruning.sparsity: the run began with 0.5 and continues with 0.3"
    ]
