import pytest
import torch
from torchmetrics.functional.retrieval import (
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from lit_compress.functional.retrieval import retrieval_scores


@pytest.mark.parametrize("documents", [3, 10, 40])
def test_as_torchmetrics(documents):
    similarity = torch.randn(30, documents)
    relevant = torch.rand(30, documents) < 0.15
    relevant[torch.arange(30), torch.randint(documents, (30,))] = True
    found = retrieval_scores(similarity, relevant)
    for row in range(30):
        # Theirs takes nothing below 0 for found, and cosines may be.
        given = similarity[row].sigmoid(), relevant[row].long()
        top = min(10, documents)
        assert found["ndcg"][row].item() == pytest.approx(retrieval_normalized_dcg(*given, top_k=top).item(), abs=1e-6)
        assert found["mrr"][row].item() == pytest.approx(retrieval_reciprocal_rank(*given, top_k=top).item(), abs=1e-6)
        assert found["recall"][row].item() == pytest.approx(retrieval_recall(*given, top_k=top).item(), abs=1e-6)


def test_a_model_whose_vectors_are_all_the_same_finds_nothing():
    relevant = torch.eye(20, dtype=torch.bool)
    assert all(float(value.sum()) == 0 for value in retrieval_scores(torch.ones(20, 20), relevant).values())
