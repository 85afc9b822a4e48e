"""A span of a context as the answer to a question."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat
from transformers import AutoModelForQuestionAnswering, PretrainedConfig

from lit_compress.functional.answer_scores import answer_scores, best_threshold, words_of
from lit_compress.functional.spans import best_spans
from lit_compress.tasks.batch import Batch
from lit_compress.tasks.outcomes import Outcomes, Scores, divide
from lit_compress.tasks.task import Task

__all__ = ["AnswerScore", "QuestionAnsweringTask"]


class QuestionAnsweringTask(Task):
    """A span of a context: mean of the cross-entropies of start and end; SQuAD's exact match and F1; predicts texts.

    Positions outside a row's tokens do not count, as in Hugging Face. A prediction is, for each window,
    ``{"question": id, "text", "start", "end", "score", "null": score of no answer}``; start and end are characters of
    the context, the end is the one after the last.

    Args:
        no_answer: whether a question may have no answer (SQuAD 2.0).
        null_threshold: there is none where its score is more than this above the best span's.

    """

    name = "question_answering"
    head = AutoModelForQuestionAnswering
    architectures = ("ForQuestionAnswering", "ForQuestionAnsweringSimple")
    pipeline_tag = "question-answering"
    data_module = "lit_compress.data.QuestionAnswering"

    def __init__(self, no_answer: bool = False, null_threshold: float = 0.0) -> None:
        super().__init__()
        self.no_answer, self.null_threshold = no_answer, null_threshold

    def configure(self, config: PretrainedConfig) -> None:
        super().configure(config)
        config.num_labels = 2  # start and end, whatever the source counted

    def loss(self, output: Any, batch: Batch) -> Tensor:
        ends = [(getattr(output, f"{end}_logits"), batch.targets[f"{end}_positions"]) for end in ("start", "end")]
        return sum(self._one_end(logits, positions) for logits, positions in ends) / 2  # type: ignore[return-value]

    @staticmethod
    def _one_end(logits: Tensor, positions: Tensor) -> Tensor:
        ignored = logits.shape[1]
        positions = positions.clamp(0, ignored)
        total = F.cross_entropy(logits, positions, ignore_index=ignored, reduction="sum")
        return total / (positions != ignored).sum().clamp_min(1)

    def count(self, batch: Batch) -> int:
        return int((batch.targets["start_positions"] < batch.inputs["input_ids"].shape[1]).sum())

    def metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection({"answers": self._score()}, prefix=prefix)

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        metrics.update(output.start_logits, output.end_logits, batch.meta)

    def _score(self) -> "AnswerScore":
        return AnswerScore(null_threshold=self.null_threshold)

    def points(self, metric: str) -> float | None:
        return 1.0  # SQuAD's scores are in percent

    def predictions(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        windows = best_of_windows(output.start_logits, output.end_logits, batch.meta)
        return [
            {name: window[name] for name in ("question", "text", "start", "end", "score", "null")} for window in windows
        ]

    def schema(self) -> list[tuple[str, pyarrow.DataType]]:
        number, text = pyarrow.float32(), pyarrow.string()
        places = [(name, pyarrow.int64()) for name in ("start", "end")]
        return [("id", text), ("answer", text), *places, ("score", number), ("score_no_answer", number)]

    def record(self, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": predictions[0]["question"]} | _answer(predictions, self.no_answer, self.null_threshold)

    def note(self) -> str | None:
        if not self.no_answer:
            return None
        return (
            "a question has no answer where the sum of the first token's two logits is more than "
            f"{self.null_threshold:g} above that of the best span (`data.null_threshold`)"
        )

    def outcome_columns(self, output: Any, batch: Batch) -> dict[str, Any]:
        windows = best_of_windows(output.start_logits, output.end_logits, batch.meta)
        lengths = [{"context": len(example["context"])} for example in batch.meta["examples"]]
        return {"windows": [window | length for window, length in zip(windows, lengths, strict=True)]}

    def outcomes(self, columns: dict[str, Any]) -> Outcomes:
        windows = {window["question"]: window for window in columns["windows"]}
        may_be_none = columns["windows"][0]["no_answer"]
        scores, (gains, none, margins) = self._score().scores(columns["windows"]), _choices(columns["windows"])
        sums = np.array(list(scores.values()))
        answered = np.array([_gold_answers(windows[question]) != [""] for question in scores])

        def score(weights: np.ndarray) -> Scores:
            means = divide(weights @ sums, weights.sum(1)[:, None])
            found = {"f1": means[:, 1], "exact_match": means[:, 0]}
            if may_be_none:
                for name, gain in (("best_f1", gains[:, 1]), ("best_exact", gains[:, 0])):
                    found[name] = 100 * best_threshold(gain, none, margins, weights)[0]
            return found

        _, threshold = best_threshold(gains[:, 1], none, margins, np.ones((1, len(none))))
        answers = self._score().answers(columns["windows"])
        said, firsts = set(answers.values()), {}
        for number, window in enumerate(columns["windows"]):
            firsts.setdefault(window["question"], number)
        both = {"with an answer": answered, "without an answer": ~answered} if 0 < answered.mean() < 1 else {}
        return Outcomes(
            unit="questions",
            lengths=np.array([windows[question]["context"] for question in scores]),
            length_unit="characters of context",
            score=score,
            right=sums[:, 0] > 0,
            share=("exact_match", 100.0),
            goodness=sums[:, 1],
            constant=(said.pop() or "no answer") if len(said) == 1 < len(scores) else None,
            slices=both,
            tuned={"null_threshold": float(threshold[0])} if may_be_none else {},
            answers=list(answers.values()),
            gold=[_gold_answers(windows[question])[0] for question in scores],
            examples=list(firsts.values()),
        )


class AnswerScore(Metric):
    """SQuAD's ``f1`` and ``exact_match`` in percent, version 1.1 or 2.0, from the windows of each question.

    Windows of one question may be scored by several ranks; each leaves a line of text (as bytes, which ranks can
    gather) with its best span, and the best of a question's windows is its answer. Where a question may have no answer
    that is the prediction when the least score of "none" among the windows is above the best span's. There are then
    also ``best_f1`` and ``best_exact``, those with the best threshold, and ``best_f1_threshold``, which that is for F1;
    :func:`~lit_compress.functional.answer_scores.best_threshold`.

    Args:
        n_best: starts and ends that are combined to spans.
        max_answer_length: longest answer in tokens.
        null_threshold: how much the score of "none" must be above the best span's.

    """

    full_state_update = False
    lines: list[Tensor]

    def __init__(self, n_best: int = 20, max_answer_length: int = 30, null_threshold: float = 0.0) -> None:
        super().__init__()
        self.n_best, self.max_answer_length, self.null_threshold = n_best, max_answer_length, null_threshold
        self.add_state("lines", [], dist_reduce_fx="cat")

    def update(self, start_logits: Tensor, end_logits: Tensor, meta: Mapping[str, Any]) -> None:
        """Add logits ``(batch, tokens)`` of windows, and ``meta`` of the batch of a question answering data module."""
        windows = best_of_windows(start_logits, end_logits, meta, self.n_best, self.max_answer_length)
        text = "".join(json.dumps(window) + "\n" for window in windows)
        self.lines.append(torch.tensor(list(text.encode()), dtype=torch.uint8, device=start_logits.device))

    def compute(self) -> dict[str, Tensor]:
        lines = bytes(dim_zero_cat(self.lines).tolist()).decode().splitlines()
        windows = [json.loads(line) for line in lines]
        scores = np.array(list(self.scores(windows).values()))
        exact, f1 = scores.mean(0)
        found = {"f1": f1, "exact_match": exact}
        if windows[0]["no_answer"]:
            gains, none, margins = _choices(windows)
            once = np.ones((1, len(none)))
            (best_exact, _), (best_f1, threshold) = (best_threshold(gain, none, margins, once) for gain in gains.T)
            found |= {"best_f1": 100 * best_f1[0], "best_exact": 100 * best_exact[0]}
            found["best_f1_threshold"] = threshold[0]
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in found.items()}

    def scores(self, windows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
        """Question to exact match and F1 in percent, from all windows."""
        truths = {window["question"]: window for window in windows}
        found = {}
        for question, text in self.answers(windows).items():
            exact, f1 = answer_scores(text, _gold_answers(truths[question]), truths[question]["no_answer"])
            found[question] = 100 * exact, 100 * f1
        return found

    def answers(self, windows: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Question to predicted text, empty for none, from all windows."""
        return {
            question: _answer(group, group[0]["no_answer"], self.null_threshold)["answer"]
            for question, group in _by_question(windows).items()
        }


def _by_question(windows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for window in windows:
        found.setdefault(window["question"], []).append(window)
    return found


def _choices(windows: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What :func:`best_threshold` takes, but gains ``(questions, 2)``: of exact match and of F1."""
    gains, none, margins = [], [], []
    for group in _by_question(windows).values():
        said = _answer(group, no_answer=False)
        none.append(not group[0]["answers"])
        # As the script counts: any answer to a question that has none costs the point that none is worth.
        costs = (-1.0, -1.0) if said["answer"] else (0.0, 0.0)
        gains.append(costs if none[-1] else answer_scores(said["answer"], _gold_answers(group[0]), no_answer=True))
        margins.append(np.inf if said["score"] is None else said["score_no_answer"] - said["score"])
    return np.array(gains), np.array(none), np.array(margins)


def best_of_windows(
    start_logits: Tensor, end_logits: Tensor, meta: Mapping[str, Any], n_best: int = 20, max_answer_length: int = 30
) -> list[dict[str, Any]]:
    """Each window's question, best text with its characters and score, and score of no answer, as JSON types."""
    start_logits, end_logits = start_logits.float(), end_logits.float()
    allowed = meta["char_start"] >= 0
    score, first, last = best_spans(start_logits, end_logits, allowed, n_best, max_answer_length)
    begin = meta["char_start"].gather(1, first[:, None])[:, 0].tolist()
    end = meta["char_end"].gather(1, last[:, None])[:, 0].tolist()
    null = (start_logits[:, 0] + end_logits[:, 0]).tolist()
    best = []
    for row, (example, value) in enumerate(zip(meta["examples"], score.tolist(), strict=True)):
        found = value > -torch.inf
        best.append(
            {name: example[name] for name in ("question", "answers", "no_answer")}
            | {"text": example["context"][begin[row] : end[row]] if found else None}
            | {"start": begin[row] if found else None, "end": end[row] if found else None}
            | {"score": value if found else None, "null": null[row]}
        )
    return best


def _answer(windows: Sequence[dict[str, Any]], no_answer: bool, null_threshold: float = 0.0) -> dict[str, Any]:
    """What all windows of a question say, as columns of a file; the text is empty where there is no answer."""
    best = max((window for window in windows if window["text"] is not None), key=lambda w: w["score"], default=None)
    null = min(window["null"] for window in windows)
    said = {"answer": "", "start": None, "end": None, "score": best and best["score"], "score_no_answer": null}
    if best is None or (no_answer and null - best["score"] > null_threshold):
        return said
    return said | {"answer": best["text"], "start": best["start"], "end": best["end"]}


def _gold_answers(window: Mapping[str, Any]) -> list[str]:
    """Right answers to the question of a window, an empty one where there is none."""
    # SQuAD 2.0's script drops what is only articles and punctuation.
    kept = [answer for answer in window["answers"] if not window["no_answer"] or words_of(answer)]
    return kept or [""]
