import pytest
import yaml
from huggingface_hub import ModelCard
from report.results import HOSTILE, results

from lit_compress.errors import UserError
from lit_compress.report.model_card import update_model_card, with_results

CARD = "---\nlibrary_name: transformers\ntags: [lit_compress]\nlicense: mit\n---\n# Mine\n\nWritten by me.\n"


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_hub_reads_the_results():
    card = ModelCard(with_results(CARD, results(run="runs/student")))
    (first, second) = card.data.eval_results
    assert (first.task_type, first.metric_type, first.metric_value) == ("text-classification", "accuracy", 0.89)
    assert second.metric_type == "f1"
    assert (card.data.license, card.data.library_name, card.data.model_name) == ("mit", "transformers", "student")


def test_the_same_report_again_changes_nothing_and_another_replaces_it():
    once = with_results(CARD, results())
    assert with_results(once, results()) == once
    other = results()
    other["models"]["compressed"]["accuracy"]["accuracy"] = 0.5
    again = with_results(once, other)
    assert "0.89" not in again.split("---\n")[1]
    assert again.count("# Measured\n") == 1


def test_what_somebody_wrote_stays():
    text = with_results(CARD, results()) + "\nMore by me.\n"
    text = text.replace("Written by me.", "Changed by me.").replace("license: mit", "license: apache-2.0")
    text = with_results(text, results())
    assert "Changed by me." in text
    assert text.endswith("More by me.\n")
    assert front(text)["license"] == "apache-2.0"


def test_no_card_and_no_front_matter(tmp_path, caplog):
    update_model_card(tmp_path / "README.md", results())
    text = (tmp_path / "README.md").read_text()
    assert front(text)["pipeline_tag"] == "text-classification"
    assert front(with_results("# Only text\n", results()))["model-index"]
    assert caplog.records == []


def test_hostile_names_and_folders_of_this_machine():
    text = with_results(
        CARD, results(data={"validation_rows": 5, "max_length": 9, "source": f"/home/me/{HOSTILE}.tsv"})
    )
    body = text.partition("# Measured")[2]
    assert "<script" not in body
    (entry,) = front(text)["model-index"][0]["results"]
    assert "/home" not in str(entry)


def test_a_value_that_is_not_defined_is_left_out():
    given = results(task="regression")
    given["models"]["compressed"]["accuracy"] = {"pearson": float("nan"), "spearman": 0.5}
    (entry,) = front(with_results(CARD, given))["model-index"][0]["results"]
    assert [metric["type"] for metric in entry["metrics"]] == ["spearman"]


@pytest.mark.parametrize("front", ["- a list", "a: [not closed"])
def test_damaged_front_matter_is_one_line(front):
    with pytest.raises(UserError, match=r"README\.md: damaged front matter: [^\n]*; fix it, or remove the file$"):
        with_results(f"---\n{front}\n---\nbody\n", results())
