import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.data.documents import group_documents, pack_sentences, segment_pairs, split_sentences

SEPARATOR = 0
documents = st.lists(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), max_size=5), max_size=6)


@given(documents, st.integers(1, 10))
def test_packing_loses_nothing_and_keeps_the_order(corpus, room):
    rows = list(pack_sentences(corpus, room, SEPARATOR))
    assert all(0 < len(row) <= room for row in rows)
    assert [token for row in rows for token in row if token != SEPARATOR] == [
        token for document in corpus for sentence in document for token in sentence
    ]
    assert not any(row[0] == SEPARATOR or row[-1] == SEPARATOR for row in rows)


def test_a_sentence_is_whole_and_documents_are_apart():
    corpus = [[[1, 1], [2, 2, 2]], [[3]], [[4, 4, 4, 4, 4]]]
    assert list(pack_sentences(corpus, 7, 0)) == [[1, 1, 2, 2, 2, 0, 3], [4, 4, 4, 4, 4]]
    assert list(pack_sentences(corpus, 4, 0)) == [[1, 1], [2, 2, 2], [3], [4, 4, 4, 4], [4]]


@pytest.mark.parametrize(
    ("lines", "by_line", "expected"),
    [
        (["a", "", " b ", "c"], True, ["a", "b", "c"]),
        (["a", "", " b ", "c"], False, ["a", "b c"]),
        (["", " "], False, []),
    ],
)
def test_documents(lines, by_line, expected):
    assert group_documents(lines, by_line) == expected


def test_sentences_of_raw_and_tokenised_text():
    assert split_sentences("He left. 3.5 of them (all) stayed. Why?") == [
        "He left.",
        "3.5 of them (all) stayed.",
        "Why?",
    ]
    assert split_sentences("It lies in the sea . Homarus is a lobster .") == [
        "It lies in the sea .",
        "Homarus is a lobster .",
    ]
    assert split_sentences("  ") == []


def numbered(count, sentences=6, words=5):
    """Documents whose tokens say where they are from: 1000 * document + place."""
    return [[[1000 * d + words * s + w + 1 for w in range(words)] for s in range(sentences)] for d in range(count)]


def pairs(corpus, seed=0, room=20, **options):
    return list(segment_pairs(corpus, room, np.random.default_rng(seed), **options))


def test_pairs_say_whether_they_follow_each_other():
    # The rest of a document can be one sentence, which nothing follows: more than half are from elsewhere.
    found = pairs(numbered(40, sentences=100))
    labels = [label for *_, label in found]
    assert np.mean(labels) == pytest.approx(0.5, abs=0.06)
    for first, second, label in found:
        assert len(first) > 0
        assert len(second) > 0
        assert len(first) + len(second) <= 20
        one, other = {token // 1000 for token in first}, {token // 1000 for token in second}
        assert len(one) == len(other) == 1
        assert (one != other) == bool(label)
        if not label:
            assert first[-1] < second[0]


def test_parts_of_pairs():
    assert not any(label for *_, label in pairs(numbered(20), random_next=0.0))
    assert all(label for *_, label in pairs(numbered(20), random_next=1.0))
    lengths = [len(a) + len(b) for a, b, _ in pairs(numbered(100, sentences=20), room=40, short=0.0)]
    shorter = [len(a) + len(b) for a, b, _ in pairs(numbered(100, sentences=20), room=40, short=1.0)]
    assert np.mean(lengths) > 35 > 30 > np.mean(shorter)
    assert pairs(numbered(20), seed=1) == pairs(numbered(20), seed=1) != pairs(numbered(20), seed=2)


def test_a_single_document_gives_pairs_that_follow():
    assert {label for *_, label in pairs(numbered(1, sentences=30))} == {0}
