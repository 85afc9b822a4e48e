"""What is measured, and what is made of the times; where nothing is said about a runtime, a formula plays it."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AlbertConfig, BertConfig, XLNetConfig

from lit_compress.errors import UserError
from lit_compress.planning import measure_latency as module
from lit_compress.planning.measure_latency import (
    fixed_parts,
    measure_structures,
    measure_table,
    table_file,
    table_settings,
)
from lit_compress.planning.random_models import dense_structure
from lit_compress.planning.structure import LayerShape, Structure
from lit_compress.report import timing

SIZES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 192}
BERT = BertConfig(**SIZES, architectures=["BertForSequenceClassification"])


class Machine:
    """Takes a known time for each part, and counts what it was asked for."""

    def __init__(self, noise=0.0):
        self.noise, self.asked, self.calls, self.busy = noise, [], 0, ""

    def __call__(self, config, structures, target, rows, tokens, threads=None):
        self.calls += 1
        self.asked = list(structures.values())
        return module.Measured({name: self.seconds(each) for name, each in structures.items()}, self.busy)

    def seconds(self, structure: Structure) -> float:
        # The noise makes some smaller structures slower than larger ones.
        noise = self.noise * (hash((structure.shapes, structure.rank or 0)) % 3)  # that of None is its address
        layers = sum(2e-4 + 5e-5 * shape.heads + 1e-6 * shape.neurons for shape in structure.shapes)
        return 1e-3 + layers + (0 if structure.rank is None else 1e-6 * structure.rank - 1e-5) + noise


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(module, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def machine(monkeypatch) -> Machine:
    player = Machine()
    monkeypatch.setattr(module, "measure_structures", player)
    return player


def test_a_table_finds_the_time_of_each_part(machine):
    table = measure_table(BERT, "hf", 1, 16, 1)
    assert table.fixed == pytest.approx(1e-3)
    assert list(table.heads) == [1, 3, 6, 9, 12]
    assert list(table.neurons) == [16, 32, 48, 96, 144, 192]
    assert table.ranks == pytest.approx({4: -6e-6, 24: 1.4e-5})
    structure = Structure(layers=(LayerShape(5, 100), None, LayerShape(12, 17)), rank=14)
    assert table.seconds(structure) == pytest.approx(machine.seconds(structure))
    assert table.seconds(dense_structure(BERT)) == pytest.approx(machine.seconds(dense_structure(BERT)))
    # Once each: a stack of average layers is that of the average number of heads, and here the whole model.
    assert len(machine.asked) == len(set(machine.asked)) == 2 + 5 + 6 - 1 + 2


def test_a_stack_is_lower_than_a_model_of_many_weights(machine):
    config = BertConfig(num_hidden_layers=12)
    table = measure_table(config, "hf", 1, 16, 1)
    assert {len(structure.kept) for structure in machine.asked} == {1, 2, 4, 12}
    assert table.seconds(dense_structure(config)) == pytest.approx(machine.seconds(dense_structure(config)))


def test_more_never_takes_less(monkeypatch):
    monkeypatch.setattr(module, "measure_structures", Machine(noise=1e-2))
    table = measure_table(BERT, "hf", 1, 16, 1)
    for times in (table.heads, table.neurons, table.ranks):
        assert all(first <= second for first, second in pairwise(times.values()))
        assert list(times) == sorted(times)
    assert min(*table.heads.values(), *table.neurons.values(), table.fixed) >= 0


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_of_few_layers_has_a_table(layers, machine):
    config = BertConfig(**SIZES | {"num_hidden_layers": layers})
    dense = dense_structure(config)
    assert measure_table(config, "hf", 1, 16, 1).seconds(dense) == pytest.approx(machine.seconds(dense))


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (XLNetConfig(d_model=48, n_layer=2, n_head=12, d_inner=192), {"heads"}),
        (AlbertConfig(**SIZES, embedding_size=16), {"heads", "neurons"}),
        (BERT, set()),
    ],
    ids=["xlnet", "albert", "bert"],
)
def test_what_a_family_cannot_lose_is_measured_whole(config, kinds, machine):
    assert set(fixed_parts(config)) == kinds
    table = measure_table(config, "hf", 1, 16, 1)
    for kind, full in (("heads", 12), ("neurons", 192)):
        counts = list(getattr(table, kind))
        assert (counts == [full]) is (kind in kinds)
    assert table.seconds(dense_structure(config)) == pytest.approx(machine.seconds(dense_structure(config)))


def test_a_head_that_scores_words_has_no_rank(machine):
    config = BertConfig(**SIZES, architectures=["BertForMaskedLM"])
    assert measure_table(config, "hf", 1, 16, 1).ranks == {}


def test_a_table_is_measured_once(machine, cache, capsys):
    first = measure_table(BERT, "hf", 1, 16, 1)
    (path,) = cache.rglob("*.json")
    assert f"measured, and kept as {path}" in capsys.readouterr().out.replace("\n", "")
    assert measure_table(BERT, "hf", 1, 16, 1) == first
    assert f"earlier measurement: {path}" in capsys.readouterr().out.replace("\n", "")
    assert machine.calls == 1
    measure_table(BERT, "hf", 1, 16, 1, remeasure=True)
    assert machine.calls == 2


def test_a_table_of_a_busy_machine_says_so_each_time_it_is_used(machine, cache, capsys):
    machine.busy = "22 of 25 timed rounds were disturbed"
    assert measure_table(BERT, "hf", 1, 16, 1).busy == machine.busy
    for _ in range(2):
        capsys.readouterr()
        assert measure_table(BERT, "hf", 1, 16, 1).busy == machine.busy
        said = " ".join(capsys.readouterr().out.split())
        assert "The machine was busy then (22 of 25 timed rounds were disturbed)" in said
        assert "lit_compress latency MODEL --target hf --shape 1x16 --threads 1 --remeasure true" in said
    machine.busy = ""
    measure_table(BERT, "hf", 1, 16, 1, remeasure=True)
    capsys.readouterr()
    assert measure_table(BERT, "hf", 1, 16, 1).busy == ""
    assert "was busy" not in capsys.readouterr().out


def test_what_times_depend_on_makes_another_table():
    settings = table_settings(BERT, "hf", 1, 16, 1)
    others = [
        table_settings(BERT, "onnx", 1, 16, 1),
        table_settings(BERT, "hf", 2, 16, 1),
        table_settings(BERT, "hf", 1, 32, 1),
        table_settings(BERT, "hf", 1, 16, 2),
        table_settings(BertConfig(**SIZES | {"hidden_act": "relu"}), "hf", 1, 16, 1),
    ]
    assert len({table_file(each) for each in [settings, *others]}) == 6
    renamed = BertConfig(**SIZES, architectures=BERT.architectures, id2label={0: "good", 1: "bad"}, vocab_size=5000)
    assert table_file(table_settings(renamed, "hf", 1, 16, 1)) == table_file(settings)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": {}, "heads": 1}', None])
def test_a_damaged_table_is_measured_anew(content, machine, cache, capsys):
    table = measure_table(BERT, "hf", 1, 16, 1)
    (path,) = cache.rglob("*.json")
    if content is None:  # of another key
        content = json.dumps(table.to_json() | {"settings": dict(table.settings) | {"rows": "2"}})
    path.write_text(content)
    capsys.readouterr()
    assert measure_table(BERT, "hf", 1, 16, 1) == table
    assert f"{path} is damaged (" in capsys.readouterr().out.replace("\n", "")
    assert machine.calls == 2
    assert json.loads(path.read_text()) == table.to_json()


def test_a_table_that_cannot_be_kept_is_given_all_the_same(machine, cache, capsys):
    cache.write_text("a file")
    assert measure_table(BERT, "hf", 1, 16, 1).fixed == pytest.approx(1e-3)
    assert "measured, and not kept: output" in capsys.readouterr().out


@pytest.mark.parametrize("apart", [False, True])
def test_whole_structures_are_timed_in_their_runtimes(apart):
    dense = dense_structure(BERT)
    small = Structure(layers=(LayerShape(1, 16), None, None))
    structures = {"eager": (dense, "hf"), "dense": dense, "small": small}
    seconds = measure_structures(BERT, structures, "onnx", 2, 24, 1, 3, apart).seconds
    assert list(seconds) == ["eager", "dense", "small"]
    assert min(seconds.values()) > 0
    assert max(seconds.values()) < 10


def test_apart_is_a_process_for_each(monkeypatch):
    started = []
    monkeypatch.setattr(
        timing.WorkerProcess, "ask", lambda process, do, **_: started.append(process) or {"seconds": [1]}
    )
    dense = dense_structure(BERT)
    measured = measure_structures(BERT, {"a": dense, "b": dense}, "onnx", 1, 8, rounds=1, apart=True)
    assert measured == ({"a": 1, "b": 1}, "")
    assert len(set(started)) == 2


def test_a_target_is_looked_at_before_anything_is_made():
    with pytest.raises(UserError, match="'tensorrt' is not one of"):
        measure_structures(BERT, {"a": (dense_structure(BERT), "tensorrt")}, "hf", 1, 8)  # type: ignore[dict-item]
