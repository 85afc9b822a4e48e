import pytest

from lit_compress.functional.entities import entities, is_entity_tag, write_tags

# Tags of one scheme after another for the same entities: LOC at 0-2, LOC at 2-3 right after it, PER at 4-7.
SCHEMES = {
    "IOB1": ["I-LOC", "I-LOC", "B-LOC", "O", "I-PER", "I-PER", "I-PER"],
    "IOB2": ["B-LOC", "I-LOC", "B-LOC", "O", "B-PER", "I-PER", "I-PER"],
    "BIOES": ["B-LOC", "E-LOC", "S-LOC", "O", "B-PER", "I-PER", "E-PER"],
}


@pytest.mark.parametrize("tags", SCHEMES.values(), ids=SCHEMES)
def test_schemes_say_the_same(tags):
    assert entities(tags) == [("LOC", 0, 2), ("LOC", 2, 3), ("PER", 4, 7)]
    assert write_tags(tags, "IOB2") == SCHEMES["IOB2"]
    assert write_tags(tags, "BIOES") == SCHEMES["BIOES"]


# What a model may write: CoNLL's script begins an entity wherever the kind changes.
@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], []),
        (["O", "O"], []),
        (["O", "I-PER"], [("PER", 1, 2)]),
        (["B-PER", "I-LOC"], [("PER", 0, 1), ("LOC", 1, 2)]),
        (["B-PER", "B-PER"], [("PER", 0, 1), ("PER", 1, 2)]),
        (["S-PER", "I-PER"], [("PER", 0, 1), ("PER", 1, 2)]),
        (["E-PER", "E-PER"], [("PER", 0, 1), ("PER", 1, 2)]),
        (["B-creative-work", "I-creative-work"], [("creative-work", 0, 2)]),
    ],
)
def test_any_sequence_is_read(tags, expected):
    assert entities(tags) == expected


def test_entity_tags():
    assert [tag for tag in ("O", "B-X", "E-X", "NN", "X", "B", "L-X") if is_entity_tag(tag)] == ["O", "B-X", "E-X"]
