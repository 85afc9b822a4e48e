"""PubMedQA as rows: its own files are one JSON object of abstracts by their number."""

import gzip
import json
from pathlib import Path

from lit_compress.files import atomic_file

__all__ = ["write_pubmedqa"]


def write_pubmedqa(data: Path, made: Path) -> None:
    """Write ``pubmedqa/train.jsonl`` and ``dev.jsonl``: a question, its contexts, and yes, no or maybe.

    Args:
        data: folder with ``biomed/pubmedqa``.
        made: folder to write into; files that are there stay.

    The 500 questions of the official test split are those that are evaluated on; the other 500 are trained on.

    """
    folder, names = made / "pubmedqa", ("train", "dev")
    if all((folder / f"{name}.jsonl").is_file() for name in names):
        return
    source = data / "biomed" / "pubmedqa"
    with gzip.open(source / "ori_pqal.json.gz", "rt", encoding="utf-8") as file:
        every = json.load(file)
    evaluated = set(json.loads((source / "test_ground_truth.json").read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        rows = [
            {"question": entry["QUESTION"], "context": " ".join(entry["CONTEXTS"]), "label": entry["final_decision"]}
            for number, entry in every.items()
            if (number in evaluated) == (name == "dev")
        ]
        with atomic_file(folder / f"{name}.jsonl") as staging:
            staging.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
