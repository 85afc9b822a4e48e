"""`lit_compress pack`, from a run and from an exported folder, as a user types it."""

import json
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.export.command import pack_command
from lit_compress.export.pack import best_precision
from lit_compress.export.source import from_source
from lit_compress.models.packed import packed_linears

QAT = {"class_path": "QuantAwareTraining", "init_args": {"start": "50%"}}
PRUNE = {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75, "end": "50%"}}


@pytest.fixture(scope="session")
def runs(tmp_path_factory, tiny_teacher, tiny_data):
    """Finished runs: one that is only pruned, and one whose activations have ranges, too."""
    root = tmp_path_factory.mktemp("pack-runs")
    options = {"text_columns": ["sentence"], "batch_size": 16, "max_length": 16}
    files = {f"{split}_file": str(tiny_data / f"{split}.tsv") for split in ("train", "val")}
    config = {
        "model": {"class_path": "LitStudent", "init_args": {"pretrained": str(tiny_teacher)}},
        "data": {"class_path": "TextClassification", "init_args": files | options},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    for name, compression in {"pruned": [PRUNE], "quantized": [PRUNE, QAT]}.items():
        (root / "config.yaml").write_text(yaml.safe_dump(config | {"compression": compression}))
        main(["fit", f"--config={root / 'config.yaml'}", f"--run={root / name}"])
    return root


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder)


def scales(folder):
    return {name: linear.input_scale for name, linear in packed_linears(load(folder)).items()}


def test_a_run_is_packed_and_said_so(runs, tmp_path, capsys):
    main(["pack", f"--run={runs / 'quantized'}", f"--output={tmp_path / 'out'}"])
    said = capsys.readouterr().out
    assert "12 linears packed (12 bitmap): " in said
    assert "calibration" not in said
    assert f"Saved as {tmp_path / 'out'}" in said
    packed, folded = load(tmp_path / "out"), load(runs / "quantized" / "model")
    text = AutoTokenizer.from_pretrained(tmp_path / "out")("a good film", return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(packed(**text).logits, folded(**text).logits, atol=1e-5)
    for name, linear in packed_linears(packed).items():
        assert torch.equal(linear.dequantized(), folded.bert.get_submodule(name).weight)
    theirs, ours = (json.loads((folder / "compression.json").read_text())
                    for folder in (runs / "quantized" / "model", tmp_path / "out"))  # fmt: skip
    assert ours == theirs


def test_an_exported_folder_gives_the_same_files(runs, tmp_path):
    main(["pack", f"--run={runs / 'quantized'}", f"--output={tmp_path / 'run'}"])
    main(["pack", f"--model={runs / 'quantized' / 'model'}", f"--output={tmp_path / 'folder'}"])
    for name in ("config.json", "model.safetensors", "compression.json", "README.md"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()


def test_pack_is_another_name_of_export(runs, tmp_path, capsys):
    run, options = f"--run={runs / 'pruned'}", ["--dtype=fp8", "--calibration_batches=1"]
    main(["pack", run, "--format=dense", *options, f"--output={tmp_path / 'pack'}"])
    assert "export --to packed" in capsys.readouterr().out
    main(["export", run, "--to=packed", "--layout=dense", *options, f"--output={tmp_path / 'export'}"])
    assert "12 linears packed (12 dense)" in capsys.readouterr().out
    for name in ("config.json", "model.safetensors", "compression.json", "README.md"):
        assert (tmp_path / "pack" / name).read_bytes() == (tmp_path / "export" / name).read_bytes()
    with pytest.raises(SystemExit, match="--layout: has no effect on hf, only on packed"):
        main(["export", run, "--to=hf", "--layout=dense", f"--output={tmp_path / 'hf'}"])


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_calibration_fills_what_training_left_open(dtype, runs, tmp_path, capsys):
    given = [f"--run={runs / 'pruned'}", f"--dtype={dtype}", "--format=dense"]
    main(["pack", *given, f"--output={tmp_path / 'open'}", "--calibration_batches=0"])
    assert "4 linears after attention and activation have no range" in capsys.readouterr().out
    assert not any(scale is not None for scale in scales(tmp_path / "open").values())
    main(["pack", *given, f"--output={tmp_path / 'one'}", "--calibration_batches=1"])
    assert "no range" not in capsys.readouterr().out
    one = scales(tmp_path / "one")
    assert [name for name, scale in one.items() if scale is not None] == [
        f"encoder.layer.{layer}.{part}output.dense" for layer in (0, 1) for part in ("attention.", "")
    ]
    main(["pack", *given, f"--output={tmp_path / 'more'}", "--calibration_batches=99"])
    more = scales(tmp_path / "more")
    assert all(more[name] >= scale for name, scale in one.items() if scale is not None)
    main(["pack", *given, f"--output={tmp_path / 'default'}"])  # fewer batches than 16 are there
    assert scales(tmp_path / "default") == more


def test_without_data_to_calibrate_on_a_run_is_packed_and_says_what_is_missing(runs, tmp_path, capsys):
    main(["pack", f"--model={runs / 'pruned' / 'model'}", f"--output={tmp_path / 'folder'}"])
    assert "4 linears after attention and activation have no range" in capsys.readouterr().out
    run = tmp_path / "run"
    shutil.copytree(runs / "pruned", run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"] |= {"train_file": str(tmp_path / "gone.tsv"), "val_file": str(tmp_path / "gone.tsv")}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    main(["pack", f"--run={run}", f"--output={tmp_path / 'gone'}"])
    out = capsys.readouterr().out
    assert "gone.tsv" in out
    assert "4 linears after attention and activation have no range" in out


def test_a_calibration_that_nobody_asked_for_stops_nothing(runs, tmp_path, capsys, monkeypatch):
    def fail(_):
        raise AttributeError("no trainer")

    monkeypatch.setattr("lit_compress.data.text_data.TextData.val_dataloader", fail)
    given = ["pack", f"--run={runs / 'pruned'}", f"--output={tmp_path / 'out'}"]
    main(given)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "Ranges were not measured, and inputs are quantized as they come: val_dataloader: AttributeError: no trainer"
        in said
    )
    assert (tmp_path / "out/config.json").is_file()
    with pytest.raises(SystemExit, match="val_dataloader: AttributeError: no trainer"):
        main([*given[:2], f"--output={tmp_path / 'other'}", "--calibration_batches=1"])


def test_calibration_without_effect_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match="--calibration_batches: has no effect"):
        pack_command(run=str(runs / "quantized"), output=str(tmp_path / "out"), calibration_batches=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"output": "out"}, ["--run", "--model"]),
        ({"output": "out", "run": "{runs}/pruned", "model": "x"}, ["--run", "--model"]),
        ({"run": "{runs}/pruned"}, ["--output"]),
        ({"run": "nowhere", "output": "out"}, ["--run", "'nowhere'"]),
        ({"model": "./nowhere", "output": "out"}, ["--model", "'./nowhere'"]),
        ({"run": "{runs}/pruned", "output": "{runs}"}, ["--output", "which is read"]),
        ({"run": "{runs}/pruned", "output": "out", "format": "two_four"}, ["--layout", "two_four", "query"]),
        ({"run": "{runs}/pruned", "output": "out", "calibration_batches": -1}, ["--calibration_batches", "-1"]),
        (
            {"model": "{runs}/pruned/model", "output": "out", "calibration_batches": 1},
            ["--calibration_batches", "--run"],
        ),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(arguments, words, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {name: value.format(runs=runs) if isinstance(value, str) else value for name, value in arguments.items()}
    with pytest.raises(UserError) as caught:
        pack_command(**given)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []
    assert list(tmp_path.iterdir()) == []


def test_a_packed_folder_is_not_packed_again(runs, tmp_path):
    pack_command(run=str(runs / "pruned"), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match="packed already"):
        pack_command(model=str(tmp_path / "out"), output=str(tmp_path / "again"))


def test_a_folder_of_transformers_itself(tiny_teacher, tmp_path):
    pack_command(model=str(tiny_teacher), output=str(tmp_path / "out"))
    assert len(packed_linears(load(tmp_path / "out"))) == 12
    assert set(json.loads((tmp_path / "out" / "compression.json").read_text())) == {"lit_compress"}


def test_a_folder_with_a_damaged_manifest(tiny_teacher, tmp_path):
    model = load(tiny_teacher)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "compression.json").write_text("{")
    with pytest.raises(UserError, match=r"--model: .*compression.json' is damaged"):
        pack_command(model=str(tmp_path / "model"), output=str(tmp_path / "out"))


def test_options_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["pack", "--help"])
    assert "run folder of a `fit`" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["pack", "--dtype=int4"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("run", "capability", "expected"),
    [("pruned", (9, 0), "fp8"), ("pruned", (8, 9), "int8"), ("pruned", None, "int8"), ("quantized", (9, 0), "int8")],
)
def test_fp8_is_the_default_on_hopper_unless_training_found_integers(run, capability, expected, runs, monkeypatch):
    folded = from_source(str(runs / run), None, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA of tomorrow")
    precision, why = best_precision(folded)
    assert precision == expected
    assert {"fp8": "NVIDIA of tomorrow", "int8": "integers" if run == "quantized" else "no GPU"}[expected] in why


def test_the_default_dtype_is_said(runs, tmp_path, capsys):
    main(["export", f"--run={runs / 'quantized'}", "--to=packed", f"--output={tmp_path / 'out'}"])
    assert "Packed in int8: the integers of training are kept; --dtype chooses" in capsys.readouterr().out
