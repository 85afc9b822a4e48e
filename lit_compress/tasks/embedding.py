"""A vector for each text, for search and comparison."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat
from transformers import AutoModel, PretrainedConfig

from lit_compress.errors import UserError
from lit_compress.functional.retrieval import retrieval_scores
from lit_compress.sentence_settings import SentenceSettings, has_settings, keep_settings, settings_of
from lit_compress.tasks.batch import Batch
from lit_compress.tasks.masked_words import MaskedWordsTask
from lit_compress.tasks.outcomes import Outcomes, Scores, array, divide
from lit_compress.tasks.regression import correlation, ranks_of
from lit_compress.tasks.task import Task

__all__ = ["EmbeddingTask", "RetrievalScore", "SimilarityScore"]

_log = logging.getLogger(__name__)

_TOP = 10
_QUERIES = 1024  # that are compared with all documents at a time
# Cosine from which on two vectors of one text are the same for search.
_SAME = 0.98


class EmbeddingTask(Task):
    """A vector for each text: learned from scored pairs, from texts that belong together, or from a teacher alone.

    A batch has ``meta["texts"]`` texts for each example in its rows: the first of all examples, then the second of all,
    and so on. Outputs have ``sentence_embedding`` ``(rows, width)``.

    Args:
        pooling: ``mean``, ``cls`` or ``max``, for models that do not say; those of sentence-transformers keep theirs.
        normalize: whether vectors have length 1, for models that do not say; None is True.
        loss: ``cosine`` is the squared error of the cosine of two texts and their score; ``ranking`` the cross-entropy
            of the second text among the others' in the batch, and all further ones (multiple negatives ranking,
            Henderson et al. 2017, arXiv 1705.00652); None leaves everything to a teacher.
        scale: what cosines are multiplied by in ``ranking``.
        max_length: longest text in tokens, which is saved with a model that does not say its own.
        prompts: texts before the texts of the data, empty ones too, by the names under which they are saved with the
            model; None where the data does not say.
        default_prompt: with ``prompts``, the name of the one that is before every text; None where there is no such.

    """

    name = "embedding"
    head = AutoModel
    architectures = ("Model",)
    pipeline_tag = "sentence-similarity"
    data_module = "lit_compress.data.SentenceTexts"
    losses: ClassVar = ("cosine", "ranking", None)

    def __init__(
        self,
        pooling: Literal["mean", "cls", "max"] | None = None,
        normalize: bool | None = None,
        loss: Literal["cosine", "ranking"] | None = "cosine",
        scale: float = 20.0,
        max_length: int | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt: str | None = None,
    ) -> None:
        super().__init__()
        if loss not in self.losses:
            raise UserError(f"task loss: {loss!r} must be cosine, ranking or null")
        if not scale > 0:
            raise UserError(f"data.scale: {scale} must be above 0")
        if pooling is not None:
            SentenceSettings(pooling=pooling)
        self.pooling, self.normalize, self.kind, self.scale = pooling, normalize, loss, scale
        self.max_length, self.default_prompt = max_length, default_prompt
        self.prompts = None if prompts is None else dict(prompts)

    # --- the head

    @classmethod
    def can_teach(cls, config: PretrainedConfig) -> bool:
        # Pooling is all the head there is, so a model that guesses masked words lacks none of its weights.
        return super().can_teach(config) or MaskedWordsTask.has_head(config)

    @classmethod
    def reads(cls, config: PretrainedConfig) -> bool:
        return cls.has_head(config) and has_settings(config)

    @classmethod
    def options_for(cls, config: PretrainedConfig) -> Mapping[str, Any]:
        settings = settings_of(config)
        if settings is None:
            return {}
        length = {"max_length": settings.max_length} if settings.max_length else {}
        # As `SentenceTransformer.encode` puts it there.
        return length | {"prompt": settings.own_prompt}

    def configure(self, config: PretrainedConfig) -> None:
        settings = settings_of(config)
        super().configure(config)
        if settings is None:
            if self.pooling is None:
                raise UserError(
                    f"data.pooling: missing; {str(config.name_or_path)!r} does not say how the vectors of tokens "
                    "become that of a text; give mean, cls or max"
                )
            settings = SentenceSettings(pooling=self.pooling, normalize=self.normalize is not False)
        changed: dict[str, Any] = {"max_length": settings.max_length or self.max_length}
        if self.prompts is not None:
            changed |= {"prompts": settings.prompts | self.prompts, "default_prompt": self.default_prompt}
        elif own := {name: text for name, text in settings.prompts.items() if text}:
            _log.warning(
                "data.prompts: missing, and %r has prompts %s; give those that are before the texts, or empty ones",
                str(config.name_or_path),
                own,
            )
        keep_settings(config, settings, **changed)

    def may_be_new(self, weight: str, config: PretrainedConfig) -> bool:
        return weight.startswith("pooler.")  # which vectors are not made of

    # --- training and evaluation

    @property
    def needs_teacher(self) -> bool:
        return self.kind is None

    def loss(self, output: Any, batch: Batch) -> Tensor:
        vectors = _vectors(output, batch)
        if self.kind == "ranking":
            return self._ranking(vectors, batch.targets["document"])
        if "labels" in batch.targets:
            return F.mse_loss(_cosine(vectors), batch.targets["labels"])
        if self.kind is not None:
            raise UserError("data.label_column: the texts have no scores; a loss of cosines needs them")
        return vectors.sum().abs() * 0  # never -0, which progress bars show; what there is to learn, the teacher says

    def _ranking(self, vectors: Tensor, documents: Tensor) -> Tensor:
        first, *others = F.normalize(vectors.float(), dim=-1)
        with torch.autocast(first.device.type, enabled=False):  # which makes products half precision
            logits = self.scale * first @ torch.cat(others).T
        own = torch.arange(len(first), device=logits.device)
        # A text that several examples share is right for each of them, and no negative.
        same = (documents[:, None] == documents) & (own[:, None] != own)
        same = F.pad(same, (0, logits.shape[1] - len(first)))
        return F.cross_entropy(logits.masked_fill(same, -torch.inf), own)

    def count(self, batch: Batch) -> int:
        return batch.rows // batch.meta["texts"]

    def metrics(self, prefix: str) -> MetricCollection:
        metric = RetrievalScore() if self.kind == "ranking" else SimilarityScore()
        return MetricCollection({"texts": metric}, prefix=prefix)

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        vectors = _vectors(output, batch)
        if self.kind == "ranking":
            metrics.update(vectors[0], vectors[1], batch.targets["query"], batch.targets["document"])
        else:
            metrics.update(_cosine(vectors), batch.targets["labels"])

    # --- predictions

    def same(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return F.cosine_similarity(ours, theirs, dim=-1) >= _SAME

    def predictions(self, output: Any, batch: Batch) -> Tensor:
        return _vectors(output, batch).flatten(0, 1)

    def schema(self) -> list[tuple[str, pyarrow.DataType]]:
        return [("embedding", pyarrow.list_(pyarrow.float32()))]

    def record(self, predictions: list[list[float]]) -> dict[str, Any]:
        return {"embedding": predictions[0]}

    # --- the report

    def outcome_columns(self, output: Any, batch: Batch) -> dict[str, Any]:
        vectors = _vectors(output, batch)
        lengths = batch.inputs["attention_mask"].sum(1).view(vectors.shape[:2]).sum(0)
        columns: dict[str, Tensor] = {"lengths": lengths}
        if self.kind == "ranking":
            columns |= {"first": vectors[0], "second": vectors[1]}
            columns |= {name: batch.targets[name] for name in ("query", "document")}
        else:
            columns |= {"guess": _cosine(vectors), "truth": batch.targets["labels"]}
        return {name: array(column) for name, column in columns.items()}

    def outcomes(self, columns: dict[str, Any]) -> Outcomes:
        return self._queries(columns) if self.kind == "ranking" else self._pairs(columns)

    def _pairs(self, columns: dict[str, Any]) -> Outcomes:
        guess, truth = columns["guess"].astype(np.float64), columns["truth"].astype(np.float64)

        def score(weights: np.ndarray) -> Scores:
            ranks = ranks_of(guess, weights), ranks_of(truth, weights)
            return {"spearman": correlation(*ranks, weights), "pearson": correlation(guess, truth, weights)}

        once = np.ones((1, len(guess)))
        return Outcomes(
            unit="pairs",
            lengths=columns["lengths"],
            score=score,
            # By ranks: how large cosines are is a matter of the model, what is above what is not.
            goodness=-np.abs(ranks_of(guess, once) - ranks_of(truth, once))[0],
            answers=guess.tolist(),
            gold=truth.tolist(),
            constant=f"about {guess.mean():.4g}" if len(guess) > 1 and np.ptp(guess) < 0.01 * truth.std() else None,
        )

    def _queries(self, columns: dict[str, Any]) -> Outcomes:
        names = ("first", "second", "query", "document")
        found = _retrieve(*(torch.as_tensor(columns[name]) for name in names))
        values = {name: array(value) for name, value in found.items()}
        # As in `_retrieve`: a query that several rows share is one unit, at the place of its id.
        _, first, owner = np.unique(columns["query"], return_index=True, return_inverse=True)

        def score(weights: np.ndarray) -> Scores:
            total = weights.sum(1)
            return {name: divide(weights @ value, total) for name, value in values.items()}

        return Outcomes(
            unit="queries",
            lengths=np.bincount(owner, columns["lengths"]).astype(int),
            score=score,
            goodness=values[f"ndcg_at_{_TOP}"],
            examples=first.tolist(),
        )


class SimilarityScore(Metric):
    """``spearman`` and ``pearson`` correlation of cosines and scores, in float64."""

    full_state_update = False
    cosines: list[Tensor]
    scores: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("cosines", "scores"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, cosines: Tensor, scores: Tensor) -> None:
        """Add cosines and scores ``(pairs,)``."""
        self.cosines.append(cosines.double())
        self.scores.append(scores.double())

    def compute(self) -> dict[str, Tensor]:
        values = dim_zero_cat(self.cosines), dim_zero_cat(self.scores)
        return {"spearman": spearman_corrcoef(*values), "pearson": pearson_corrcoef(*values)}


class RetrievalScore(Metric):
    """``ndcg_at_10``, ``mrr_at_10`` and ``recall_at_10``: each query among the documents of all.

    Texts that occur several times are one query, or one document, and all documents of a query are right.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("first", "second", "query", "document"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, first: Tensor, second: Tensor, query: Tensor, document: Tensor) -> None:
        """Add vectors ``(pairs, width)`` of queries and their documents, and ids ``(pairs,)`` of both."""
        for name, value in (("first", first), ("second", second), ("query", query), ("document", document)):
            getattr(self, name).append(value.detach())

    def compute(self) -> dict[str, Tensor]:
        values = _retrieve(*(dim_zero_cat(getattr(self, name)) for name in ("first", "second", "query", "document")))
        return {name: value.mean() for name, value in values.items()}


def _retrieve(first: Tensor, second: Tensor, query: Tensor, document: Tensor) -> dict[str, Tensor]:
    """Scores ``(queries,)`` of each query, in the order of their ids; vectors ``(pairs, width)``, ids ``(pairs,)``."""
    (queries, asked), (documents, found) = (_first_of_each(ids) for ids in (query, document))
    first, second = F.normalize(first[asked], dim=-1), F.normalize(second[found], dim=-1)
    relevant = torch.stack([torch.searchsorted(queries, query), torch.searchsorted(documents, document)])
    parts = []
    for start in range(0, len(queries), _QUERIES):
        similarity = first[start : start + _QUERIES] @ second.T
        right = torch.zeros_like(similarity, dtype=torch.bool)
        rows, columns = relevant[:, (relevant[0] >= start) & (relevant[0] < start + len(right))]
        right[rows - start, columns] = True
        parts.append(retrieval_scores(similarity, right, _TOP))
    return {f"{name}_at_{_TOP}": torch.cat([part[name] for part in parts]) for name in parts[0]}


def _first_of_each(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The ids that occur, ascending, and where each is first."""
    known, owner = ids.unique(return_inverse=True)
    places = torch.arange(len(ids), device=ids.device)
    first = torch.full_like(known, len(ids)).scatter_reduce(0, owner, places, "amin")
    return known, first


def _vectors(output: Any, batch: Batch) -> Tensor:
    """Vectors ``(texts of an example, examples, width)``."""
    vectors = getattr(output, "sentence_embedding", None)
    if vectors is None:
        raise UserError(
            "embedding: the model's output has no sentence_embedding; load it with lit_compress, or export it again"
        )
    return vectors.unflatten(0, (batch.meta["texts"], -1))


def _cosine(vectors: Tensor) -> Tensor:
    """Cosine of the two texts of each example."""
    return F.cosine_similarity(vectors[0], vectors[1], dim=-1)
