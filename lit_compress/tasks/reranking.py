"""How relevant a document is to a query, read together."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from lit_compress.errors import UserError
from lit_compress.functional.retrieval import retrieval_scores
from lit_compress.sentence_settings import CROSS_ENCODER_KEY, cross_encoder_settings, tokenizer_length
from lit_compress.tasks.batch import Batch
from lit_compress.tasks.outcomes import Outcomes, Scores, array, divide
from lit_compress.tasks.task import Task

__all__ = ["RankingScore", "RerankingTask"]

_TOP = 10
# From this score on a document counts as relevant; scores are from 0 to 1.
_RELEVANT = 0.5
# What a CrossEncoder of sentence-transformers does with the logit of a model that says nothing else.
_ACTIVATION = "torch.nn.modules.activation.Sigmoid"


class RerankingTask(Task):
    """The relevance of a document to a query (cross-encoder): NDCG, MRR and recall of each query's documents.

    A batch has ``meta["texts"]`` documents for each example in its rows: the first of all examples, then the second of
    all, and so on. Predictions are the logit's sigmoid, from 0 to 1.

    Args:
        loss: ``pointwise`` is the cross-entropy of each document's score; ``listwise`` that of the first document of an
            example among all of the example (ListNet with one relevant document: Cao et al. 2007).

    """

    name = "reranking"
    head = AutoModelForSequenceClassification
    architectures = ("ForSequenceClassification",)
    pipeline_tag = "text-ranking"
    data_module = "lit_compress.data.RankedPairs"
    outputs = 1
    losses: ClassVar = ("pointwise", "listwise")

    def __init__(self, loss: Literal["pointwise", "listwise"] = "pointwise") -> None:
        super().__init__()
        if loss not in self.losses:
            raise UserError(f"task loss: {loss!r} must be pointwise or listwise")
        self.kind = loss

    @classmethod
    def reads(cls, config: PretrainedConfig) -> bool:
        return cls.has_head(config) and config.num_labels == 1 and cross_encoder_settings(config) is not None

    @classmethod
    def options_for(cls, config: PretrainedConfig) -> Mapping[str, Any]:
        length = tokenizer_length(config)  # as CrossEncoder reads
        return {"max_length": length} if length else {}

    def configure(self, config: PretrainedConfig) -> None:
        kept = cross_encoder_settings(config) or {}
        super().configure(config)
        setattr(config, CROSS_ENCODER_KEY, {"activation_fn": _ACTIVATION} | kept)

    def loss(self, output: Any, batch: Batch) -> Tensor:
        logits = _logits(output, batch)
        if self.kind == "listwise":
            return F.cross_entropy(logits.T, torch.zeros(logits.shape[1], dtype=torch.long, device=logits.device))
        return F.binary_cross_entropy_with_logits(logits[0], batch.targets["labels"])

    def count(self, batch: Batch) -> int:
        return batch.rows // batch.meta["texts"]

    def metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection({"documents": RankingScore()}, prefix=prefix)

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        logits = _logits(output, batch)
        query = batch.targets["query"].expand_as(logits)
        metrics.update(logits.flatten(), self._relevant(logits, batch).flatten(), query.flatten())

    def answers(self, logits: Tensor) -> Tensor:
        return logits.squeeze(-1) > 0

    def predictions(self, output: Any, batch: Batch) -> Tensor:
        return output.logits.squeeze(-1).float().sigmoid()

    def schema(self) -> list[tuple[str, pyarrow.DataType]]:
        return [("score", pyarrow.float32())]

    def record(self, predictions: list[float]) -> dict[str, Any]:
        return {"score": predictions[0]}

    def outcome_columns(self, output: Any, batch: Batch) -> dict[str, Any]:
        logits = _logits(output, batch)
        lengths = batch.inputs["attention_mask"].sum(1).view(logits.shape)
        query = batch.targets["query"].expand_as(logits)
        columns = {"guess": logits, "relevant": self._relevant(logits, batch), "query": query, "lengths": lengths}
        # The documents of an example one after the other.
        found = {name: array(column.T.flatten()) for name, column in columns.items()}
        return found | {"documents": np.full(logits.numel(), len(logits))}

    def outcomes(self, columns: dict[str, Any]) -> Outcomes:
        found, owner, first = _scores(*(torch.as_tensor(columns[name]) for name in ("guess", "relevant", "query")))
        values = {name: array(value) for name, value in found.items()}
        member = array(owner)
        place = array(first)

        def score(weights: np.ndarray) -> Scores:
            total = weights.sum(1)
            return {name: divide(weights @ value, total) for name, value in values.items()}

        return Outcomes(
            unit="queries",
            lengths=np.bincount(member[member >= 0], columns["lengths"][member >= 0], len(place)).astype(int),
            score=score,
            goodness=values[f"ndcg_at_{_TOP}"],
            examples=(place // columns["documents"][place]).tolist(),
        )

    def _relevant(self, logits: Tensor, batch: Batch) -> Tensor:
        if self.kind == "listwise":
            relevant = torch.zeros_like(logits, dtype=torch.bool)
            relevant[0] = True
            return relevant
        return (batch.targets["labels"] >= _RELEVANT).expand_as(logits)


class RankingScore(Metric):
    """``ndcg_at_10``, ``mrr_at_10`` and ``recall_at_10`` of the documents of each query.

    A document is relevant from a score of a half on. Queries without a relevant document say nothing and are left out.
    """

    full_state_update = False
    guess: list[Tensor]
    relevant: list[Tensor]
    query: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("guess", "relevant", "query"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, guess: Tensor, relevant: Tensor, query: Tensor) -> None:
        """Add logits, relevance (bool) and ids of the query ``(documents,)``."""
        self.guess.append(guess.detach().float())
        self.relevant.append(relevant)
        self.query.append(query)

    def compute(self) -> dict[str, Tensor]:
        found, _, _ = _scores(*(dim_zero_cat(getattr(self, name)) for name in ("guess", "relevant", "query")))
        return {name: value.mean() for name, value in found.items()}


def _scores(guess: Tensor, relevant: Tensor, query: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Scores ``(queries,)``, the query of each document (-1 where it is left out), the first document of each query."""
    known, owner, count = query.unique(return_inverse=True, return_counts=True)
    order = owner.argsort(stable=True)
    place = torch.empty_like(owner)
    starts = count.cumsum(0) - count
    place[order] = torch.arange(len(owner), device=owner.device) - starts[owner[order]]
    shape = len(known), int(count.max())
    similarity = guess.new_full(shape, -torch.inf).index_put((owner, place), guess)
    right = torch.zeros(shape, dtype=torch.bool, device=guess.device).index_put((owner, place), relevant)
    kept = right.any(1)
    if not bool(kept.any()):
        raise UserError("reranking: no query has a relevant document, one with a score of half the range or more")
    number = torch.where(kept, kept.cumsum(0) - 1, -1)
    scores = retrieval_scores(similarity[kept], right[kept], _TOP)
    return {f"{name}_at_{_TOP}": value for name, value in scores.items()}, number[owner], order[starts[kept]]


def _logits(output: Any, batch: Batch) -> Tensor:
    """Logits ``(documents of an example, examples)``."""
    return output.logits.squeeze(-1).unflatten(0, (batch.meta["texts"], -1))
