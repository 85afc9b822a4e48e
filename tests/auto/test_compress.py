"""The command as a stranger runs it, on a tiny model: everything is real but the size."""

import inspect
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import BertConfig, BertForMaskedLM

from lit_compress.auto import compress
from lit_compress.auto.job import begin
from lit_compress.auto.plans import Planned
from lit_compress.auto.request import Request
from lit_compress.cli import main
from lit_compress.commands.models import compress_family
from lit_compress.errors import UserError
from lit_compress.planning.latency_table import LatencyTable
from lit_compress.planning.structure import LayerShape, Structure
from tools.bench.equal_latency import equal_latency

GOOD = ["good film", "great story", "lovely scene", "a funny actor", "the plot was clever", "a warm film"]
BAD = ["bad film", "awful story", "dull scene", "a boring actor", "the plot was stupid", "a cold film"]


def _rows(repetitions: int) -> str:
    pairs = [
        (text, label) for good, bad in zip(GOOD, BAD, strict=True) for text, label in ((good, "up"), (bad, "down"))
    ]
    return "text,label\n" + "".join(f"{text} {i},{label}\n" for i in range(repetitions) for text, label in pairs)


@pytest.fixture(scope="module", autouse=True)
def _few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_compress.auto.time_budget._LEAST", 6)
        yield


@pytest.fixture(scope="module")
def family(deep_model, tmp_path_factory):
    """A family that was made by the command in a folder of its own, and what the command said."""
    folder = tmp_path_factory.mktemp("family")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("train.csv").write_text(_rows(8))
        Path("val.csv").write_text(_rows(4))
        main(
            f"compress --model={deep_model} --train=train.csv --val=val.csv --run=fast "
            "--speedup=1.3 --minutes=0.01 --threads=1 --shape=4x32".split()
        )
    return folder


def test_the_family_is_exported_measured_and_reported(family):
    results = json.loads((family / "fast/report.json").read_text())
    members = {each["name"]: each for each in results["members"]}
    assert list(members) == ["int8", "1_3x"]
    assert results["validation"]["rows"] == 48
    for each in members.values():
        assert Path(family, each["file"]).is_file()
        assert 0 <= each["score"] <= 1
        assert each["speedup"] > 0
    page = (family / "fast/report.html").read_text()
    assert "<title>Family of" in page
    stages = yaml.safe_load((family / "fast/recipe.yaml").read_text())["stages"]
    assert "StructuredPruning" in str(stages) or "LayerDropping" in str(stages) or members["1_3x"]["same_as"] == "int8"


def test_the_command_has_every_option_of_the_function():
    assert list(inspect.signature(compress_family).parameters) == list(inspect.signature(compress).parameters)


def test_the_same_again_trains_nothing_and_chooses_by_what_may_be_lost(family, deep_model, monkeypatch):
    monkeypatch.chdir(family)
    weights = sorted(Path("fast").glob("*/model/*.safetensors"))
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in weights]
    plan = Path("fast/plan.json").read_text()
    options = {"speedup": 1.3, "minutes": 0.01, "threads": 1, "shape": "4x32", "max_loss": 100.0}
    made = compress(model=str(deep_model), train="train.csv", val="val.csv", run="fast", **options)
    assert made is not None
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in weights] == before
    assert Path("fast/plan.json").read_text() == plan
    assert [member.name for member in made.members] == ["int8", "1_3x"]
    fastest = max(made.members, key=lambda member: member.speedup)
    assert made.best == (fastest if fastest.speedup > 1 else None)
    assert made.report.is_file()


def test_a_plan_trains_nothing_and_leaves_nothing(family, deep_model, tmp_path, capsys, monkeypatch):
    silenced = []
    monkeypatch.setattr("lit_compress.log_filters.quieten", lambda: silenced.append(True))  # bars of other libraries
    files = [f"--train={family}/train.csv", f"--val={family}/val.csv", f"--run={tmp_path}/plan"]
    main(["compress", f"--model={deep_model}", *files, "--speedup=1.3", "--threads=1", "--shape=4x32", "--dry-run"])
    said = capsys.readouterr().out
    assert "classification, 96 examples, 48 of them for validation" in said
    assert "--data.label_column: label" in said
    assert "1_3x: 60 steps (20.0 epochs), about" in said
    assert not (tmp_path / "plan").exists()
    assert silenced


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speedup": 500}, "--speedup: 500 is out of reach of"),
        ({"train": "missing.csv"}, "missing.csv"),
        ({"val": "few.csv"}, "--val: 12 validation examples are too few to measure a loss of 1 points"),
        ({"shape": "1x5000"}, "--shape: 5000 is above"),
        ({"data": {"max_lenght": 3}}, "max_lenght"),
    ],
)
def test_what_cannot_be_is_one_line_before_any_training(options, said, family, deep_model, tmp_path, monkeypatch):
    monkeypatch.chdir(family)
    Path("few.csv").write_text(_rows(1))
    given = {"train": "train.csv", "val": "val.csv", "speedup": 1.3, "shape": "4x32", "threads": 1} | options
    with pytest.raises(UserError) as caught:
        compress(model=str(deep_model), run=str(tmp_path / "run"), **given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("*/model"))


def test_a_teacher_of_other_labels_is_refused(tiny_teacher, family, tmp_path):
    with pytest.raises(UserError, match=r"--model: .* has the classes .* and the data"):
        compress(str(tiny_teacher), f"{family}/train.csv", f"{family}/val.csv", str(tmp_path / "run"))


def again(family, model, **options):
    given = {"speedup": 1.3, "minutes": 0.01, "threads": 1, "shape": "4x32"} | options
    return compress(model=str(model), train="train.csv", val="val.csv", run=str(family), **given)


def _stop(*given):
    raise UserError("stopped")


@pytest.fixture
def copied(family, tmp_path, monkeypatch):
    """The family in a folder of its own, for what must not touch the other tests'."""
    shutil.copytree(family, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Path("fast")


def test_a_recipe_that_somebody_changed_stays(copied, deep_model):
    recipe = copied / "recipe.yaml"
    mine = recipe.read_text().replace("weight_bits: 7", "weight_bits: 8")
    recipe.write_text(mine)
    with pytest.raises(
        UserError, match=r"--run: .*recipe.yaml' has another stage .* run it with `lit_compress recipe "
    ):
        again(copied, deep_model)
    assert recipe.read_text() == mine


def test_a_stage_that_somebody_added_before_there_was_a_plan_stays(copied, deep_model):
    recipe = copied / "recipe.yaml"
    content = yaml.safe_load(recipe.read_text())
    content["stages"] = {"teacher": content["stages"]["teacher"], "mine": content["stages"]["int8"]}
    recipe.write_text(mine := yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UserError, match=r"--run: .*recipe.yaml' has another stage 'mine'"):
        again(copied, deep_model)
    assert recipe.read_text() == mine


def test_another_speedup_before_there_is_a_plan_keeps_the_teacher_that_was_begun(deep_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.csv").write_text(_rows(8))
    Path("val.csv").write_text(_rows(4))
    module = sys.modules["lit_compress.auto.compress"]
    seconds = {"teacher": 1.0, "int8": 1.0, "member": 1.0}
    monkeypatch.setattr(module, "training_seconds", lambda *given: seconds)
    monkeypatch.setattr(module, "run_stage", _stop)
    steps = set()
    for speedup in ([1.1, 1.2, 1.3], [1.1, 1.2], 1.1):
        with pytest.raises(UserError, match="stopped"):
            again("fast", deep_model, minutes=2.0, speedup=speedup)
        steps.add(yaml.safe_load(Path("fast/recipe.yaml").read_text())["stages"]["teacher"]["trainer"]["max_steps"])
    assert len(steps) == 1


def test_data_of_another_version_is_one_line(copied, deep_model):
    file = copied / "compress.json"
    content = json.loads(file.read_text())
    del content["found"]["steps"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"--run: what .* says of the data is damaged or of another version"):
        again(copied, deep_model)


def test_a_foreign_file_among_the_exports_is_said_before_anything_is_done(copied, deep_model, capsys):
    (copied / "exports" / "int8" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        again(copied, deep_model)
    assert capsys.readouterr().out == ""
    assert (copied / "exports" / "int8" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("name", ["latency.json", "losses.json", "plan.json"])
@pytest.mark.parametrize("content", ["{", "{}"])
def test_what_was_kept_and_is_damaged_is_one_line(name, content, copied, deep_model):
    if name == "losses.json":
        (copied / "plan.json").unlink()  # else they are not read again
    (copied / name).write_text(content)
    with pytest.raises(UserError, match=rf"--run: .*{name}' is damaged .*; remove it to measure again") as caught:
        again(copied, deep_model)
    assert "\n" not in str(caught.value)


def test_a_speedup_that_is_changed_and_out_of_reach_is_one_line_before_the_teacher_is_trained(copied, deep_model):
    (copied / "plan.json").unlink()
    shutil.rmtree(copied / "teacher")
    with pytest.raises(UserError, match="--speedup: 500 is out of reach of"):
        again(copied, deep_model, speedup=500)
    assert not (copied / "teacher").exists()


def test_the_recipe_is_one_whose_stages_are_those_that_were_trained(copied, capsys):
    main(["recipe", str(copied / "recipe.yaml"), "--dry-run"])
    said = capsys.readouterr().out
    stages = yaml.safe_load((copied / "recipe.yaml").read_text())["stages"]
    assert said.count("(finished)") == len(stages)
    assert "(new)" not in said


def test_a_head_of_another_task_is_not_timed(tiny_model, family, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "words")
    BertForMaskedLM(BertConfig.from_pretrained(tiny_model)).save_pretrained(model)
    given = {"train": f"{family}/train.csv", "val": f"{family}/val.csv", "data": {}}
    job = begin(Request(model=str(model), **given), tmp_path / "run", dry_run=True)
    assert not job.has_head
    assert job.config.architectures is None


@pytest.fixture
def known_times(copied):
    """The copied family as if its machine took a known time for each head and neuron, and its plan were by it."""
    half = Structure(layers=(LayerShape(1, 128),) * 4)
    table = LatencyTable(
        heads={0: 0.0, 2: 1.0}, neurons={0: 0.0, 256: 1.0}, ranks={}, fixed=1.0, settings={"target": "onnx-int8"}
    )
    (copied / "latency.json").write_text(json.dumps({"table": table.to_json()}))
    planned = Planned(name="1_3x", asked=1.3, structure=half, measured=1.9)
    (copied / "plan.json").write_text(json.dumps({"members": [planned.to_json()]}))
    recipe = yaml.safe_load((copied / "recipe.yaml").read_text())
    recipe["stages"]["1_3x"] = recipe["stages"]["int8"]
    (copied / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return table


def equal_members(tmp_path):
    equal_latency("fast", "1_3x", str(tmp_path / "equal"), steps=12)
    members = json.loads((tmp_path / "equal/report.json").read_text())["members"]
    return {member["name"]: Structure.from_json(member["structure"]) for member in members}


def test_a_plan_is_compared_with_simpler_models_of_its_latency(known_times, tmp_path):
    members = equal_members(tmp_path)
    assert list(members) == ["planned", "uniform", "lowest", "sparse"]
    assert members["uniform"] == members["planned"]
    assert members["lowest"] == Structure(layers=(LayerShape(2, 256),) * 2 + (None,) * 2)
    assert members["sparse"] == Structure(layers=(LayerShape(2, 256),) * 4)
    stages = yaml.safe_load((tmp_path / "equal/recipe.yaml").read_text())["stages"]
    for name, stage in stages.items():
        assert stage["trainer"] == {"max_steps": 12, "max_epochs": -1}, name
        # More than three epochs.
        checkpoint = torch.load(tmp_path / f"equal/{name}/checkpoints/last.ckpt", weights_only=False)
        assert checkpoint["global_step"] == 12, name
        assert stage["model"]["init_args"]["teacher"] == str(Path("fast/teacher/model").resolve())
        assert stage["compression"][-1]["class_path"] == "QuantAwareTraining"
    assert stages["sparse"]["compression"][0]["class_path"] == "MagnitudePruning"
    with pytest.raises(UserError, match="--member: 'int8' must be one of 1_3x"):
        equal_latency("fast", "int8", str(tmp_path / "other"))


def test_a_plan_that_no_uniform_model_reaches_is_compared_without_one(known_times, tmp_path, capsys):
    slow = replace(known_times, heads={0: 0.0, 1: 1.9, 2: 2.0})
    Path("fast/latency.json").write_text(json.dumps({"table": slow.to_json()}))
    plan = json.loads(Path("fast/plan.json").read_text())
    plan["members"][0]["structure"] = Structure(layers=(LayerShape(1, 64),) * 2 + (None,) * 2).to_json()
    Path("fast/plan.json").write_text(json.dumps(plan))
    assert list(equal_members(tmp_path)) == ["planned", "lowest", "sparse"]
    assert "uniform is left out" in capsys.readouterr().out
