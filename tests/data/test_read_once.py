"""A source is read once, whoever asks for its rows."""

import pytest
from contracts.training import data

from lit_compress.data import text_data


@pytest.mark.parametrize("held_out", [False, True])
def test_a_source_is_read_once_for_labels_checks_and_training(held_out, tiny_data, tiny_teacher, monkeypatch):
    read, load_table = [], text_data.load_table
    monkeypatch.setattr(
        text_data, "load_table", lambda source, *rest: (read.append(source), load_table(source, *rest))[1]
    )
    made = data(tiny_data, tiny_teacher, **({"val_file": None, "val_fraction": 0.2} if held_out else {}))
    made.check_sources()
    assert made.labels == ["0", "1"]
    made.prepare_data()
    made.setup("fit")
    assert len(made.table("val")) < len(made.table("train"))
    assert len(read) == len(set(read)) == (1 if held_out else 2)
