"""`lit_compress migrate` as it is used: what it writes parses, trains, and says what it leaves out."""

import json

import pytest
import yaml
from migrate.test_nn_pruning import ARGUMENTS
from migrate.test_nncf import MOVEMENT, QUANTIZATION

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.migrate import migrate

RECIPE = """
num_epochs: 2
rate: 1e-3
training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0
    end_epoch: eval(num_epochs)
  - !LearningRateFunctionModifier
    start_epoch: 0
    end_epoch: eval(num_epochs)
    lr_func: linear
    init_lr: eval(rate)
    final_lr: 0.0
pruning_modifiers:
  - !GMPruningModifier
    params:
      - re:bert.encoder.layer.*.attention.self.query.weight
      - re:bert.encoder.layer.*.intermediate.dense.weight
    init_sparsity: 0.0
    final_sparsity: 0.75
    start_epoch: 0
    end_epoch: eval(num_epochs - 1)
    update_frequency: 0.25
  - !AnUnheardOfModifier
    strength: 11
quantization_modifiers:
  - !QuantizationModifier
    start_epoch: eval(num_epochs - 1)
    submodules: [bert.embeddings, bert.encoder, classifier]
    quantize_linear_activations: False
    exclude_module_types: [LayerNorm]
distillation_modifiers:
  - !DistillationModifier
    hardness: 0.5
    temperature: 2.0
"""
FILES = {
    "recipe.yaml": RECIPE,
    "recipe.md": f"---\n{RECIPE}\n---\n# Card\n",
    "jpqd.json": json.dumps({"compression": [MOVEMENT, QUANTIZATION]}),
    "arguments.json": json.dumps(ARGUMENTS),
}


@pytest.fixture
def made(tmp_path):
    """Migrate one of the files; gives the path of the result."""

    def make(name: str, *options: str):
        (tmp_path / name).write_text(FILES[name])
        main(["migrate", str(tmp_path / name), f"--output={tmp_path / 'config.yaml'}", *options])
        return tmp_path / "config.yaml"

    return make


@pytest.mark.parametrize("name", FILES)
def test_the_result_is_accepted_by_fit(name, made, capsys):
    path = made(name)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["fit", f"--config={path}", "--print_config"])
    assert caught.value.code == 0
    accepted = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(path.read_text())
    names = [entry["class_path"] for entry in given["compression"]]
    assert [entry["class_path"].rpartition(".")[2] for entry in accepted["compression"]] == names


def test_what_is_left_out_stands_in_the_file_and_on_the_terminal(made, capsys):
    path, said = made("recipe.yaml"), capsys.readouterr().out
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for text in (said, "\n".join(comments)):
        assert "AnUnheardOfModifier(strength=11): this package has no such method" in text
        assert "data.train_file" in text
        assert "To fill in" in text
    assert "Saved as" in said


def test_a_migrated_recipe_trains(made, tiny_teacher, tiny_data, tmp_path):
    path = made("recipe.yaml", f"--pretrained={tiny_teacher}", f"--teacher={tiny_teacher}", f"--run={tmp_path / 'run'}")
    options = {
        "data.train_file": tiny_data / "train.tsv",
        "data.val_file": tiny_data / "val.tsv",
        "data.text_columns": "[sentence]",
        "data.batch_size": 16,
        "data.max_length": 16,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": False,
    }
    main(["fit", f"--config={path}", *(f"--{key}={value}" for key, value in options.items())])
    layers = json.loads((tmp_path / "run/model/compression.json").read_text())["linears"]
    pruned = {name: layer["sparsity"] for name, layer in layers.items() if layer["mask"]}
    assert len(pruned) == 4
    assert all(sparsity == pytest.approx(0.75, abs=1e-3) for sparsity in pruned.values())
    quantized = [name for name, layer in layers.items() if (layer["weight_quantizer"] or {}).get("enabled")]
    assert "classifier" in quantized
    assert len(quantized) == 13


def test_recipe_variables_and_other_options(made):
    path = made("recipe.yaml", '--recipe_args={"num_epochs": 12}', "--task=token_classification", "--run=runs/mine")
    settings = yaml.safe_load(path.read_text())
    assert settings["trainer"]["max_epochs"] == 12
    assert settings["run"] == "runs/mine"
    assert settings["data"]["class_path"] == "TokenClassification"
    assert settings["model"]["init_args"]["distillation"]["kd"]["init_args"]["tokens"] == "all"


def test_an_existing_file_is_kept(made, tmp_path):
    path = made("recipe.yaml", "--run=runs/mine")
    with pytest.raises(SystemExit, match="--overwrite"):
        made("recipe.yaml")
    assert "runs/mine" in path.read_text()
    made("recipe.yaml", "--overwrite=true")
    assert "runs/mine" not in path.read_text()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.yaml", None, "cannot be read"),
        ("broken.json", b"{", "not JSON"),
        ("list.json", b"[1]", "neither"),
        ("other.json", b'{"model": 1}', "neither"),
        ("deep.json", b"[" * 100_000, "not JSON"),
        ("image.yaml", b"\xff\xfe\x00", "not text"),
        ("huge.yaml", b"#" * 1_000_001, "larger"),
        ("empty.yaml", b"", "no modifiers"),
    ],
)
def test_other_files_are_refused_in_one_line(name, content, words, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        migrate(str(tmp_path / name), str(tmp_path / "out.yaml"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.yaml").exists()


def test_options_without_effect_are_refused(tmp_path):
    (tmp_path / "a.json").write_text(FILES["jpqd.json"])
    with pytest.raises(UserError, match="--layers: 12 has no effect"):
        migrate(str(tmp_path / "a.json"), str(tmp_path / "out.yaml"), layers=12)
