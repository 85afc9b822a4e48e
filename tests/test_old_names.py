import inspect
import logging

import pytest
import yaml
from contracts.errors import error_of
from contracts.training import student_config
from docs.blocks import ROOT

import lit_compress
from lit_compress import old_names
from lit_compress.cli import main
from lit_compress.old_names import OLD_OPTIONS, with_new_names

ENTRIES = [
    {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.5, "revive": True, "last_update": "75%"}},
    {"class_path": "lit_compress.StructuredPruning", "init_args": {"heads": 1, "prunings": 2}},
    {"class_path": "LowRankEmbedding", "init_args": {"rank": 6, "prunings": 2}},
]


@pytest.mark.parametrize("name", ["compression", "config.yaml"])
def test_a_file_with_old_names_is_trained_and_told_the_new_ones(name, tiny_teacher, tiny_data, tmp_path, caplog):
    old_names._tell.cache_clear()
    config = student_config(tiny_teacher, tiny_data, run=str(tmp_path / "run"), compression=ENTRIES)
    config["trainer"] |= {"logger": False, "enable_progress_bar": False, "max_steps": 8}
    file = tmp_path / name
    file.write_text(yaml.safe_dump(config))
    with caplog.at_level(logging.WARNING):
        main(["fit", "--config", str(file)])
    said = [record.getMessage() for record in caplog.records if record.name == "lit_compress.old_names"]
    assert said == [
        f"{owner}.{old} is now called {new}; the old name still works"
        for owner, old, new in (
            ("MagnitudePruning", "revive", "regrowth"),
            ("StructuredPruning", "prunings", "pruning_steps"),
            ("LowRankEmbedding", "prunings", "pruning_steps"),
        )
    ]
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["compression"]
    assert [entry["init_args"].get("pruning_steps") for entry in saved] == [None, 2, 2]
    assert saved[0]["init_args"]["regrowth"] is True
    assert "prunings" not in str(saved)


def test_both_names_at_once_are_an_error():
    entry = {"class_path": "StructuredPruning", "init_args": {"prunings": 2, "pruning_steps": 3}}
    message = error_of(with_new_names, {"compression": [entry]})
    assert message.startswith(
        "StructuredPruning.prunings: is the old name of pruning_steps, which is given, too; leave"
    )


def test_the_same_word_elsewhere_is_left_alone():
    content = {"data": {"class_path": "my.Data", "init_args": {"revive": 1}}, "prunings": [{"revive": None}]}
    assert with_new_names(content) == content
    for package in ("my", "my.lit_compress", "lit_compress_too"):
        content = {"class_path": f"{package}.MagnitudePruning", "init_args": {"revive": 0.5}}
        assert with_new_names(content) == content


def test_classes_of_ours_by_every_path():
    for path in (
        "MagnitudePruning",
        "lit_compress.MagnitudePruning",
        "lit_compress.strategies.magnitude.MagnitudePruning",
    ):
        new = with_new_names({"class_path": path, "init_args": {"revive": True}})
        assert new == {"class_path": path, "init_args": {"regrowth": True}}


def test_upgrading_names_every_old_option():
    rows = [line for line in (ROOT / "docs/upgrading.md").read_text().splitlines() if line.startswith("| `")]
    for owner, names in OLD_OPTIONS.items():
        for old, new in names.items():
            assert any(f"`{owner}`" in row and row.endswith(f"| `{old}` | `{new}` |") for row in rows), (owner, old)


@pytest.mark.parametrize(("owner", "old"), [(owner, old) for owner, names in OLD_OPTIONS.items() for old in names])
def test_every_new_name_is_an_option(owner, old):
    parameters = inspect.signature(getattr(lit_compress, owner)).parameters
    assert OLD_OPTIONS[owner][old] in parameters
    assert old not in parameters
