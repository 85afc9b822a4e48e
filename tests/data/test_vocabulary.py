import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from lit_compress.data.vocabulary import kept_ids, trimmed
from lit_compress.errors import UserError

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def texts():
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randrange(1, 9))) for _ in range(200)]
    return [" ".join(draw.choices(words, k=8)) for _ in range(200)]


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts(), trainers.WordPieceTrainer(vocab_size=250, special_tokens=SPECIAL))
    return tokenizer


def bytes_():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


KINDS = {"wordpiece": wordpiece, "bytes": bytes_, "unigram": unigram}


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request):
    made = KINDS[request.param]()
    ends = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ends
    )
    return made


CORPUS = st.lists(st.text("abcdefghxyzé✓ ,.", max_size=30) | st.sampled_from(texts()), min_size=1, max_size=6)


@settings(max_examples=30)
@given(CORPUS, st.booleans())
def test_the_corpus_is_cut_into_the_same_tokens(tokenizer, corpus, characters):
    keep = kept_ids(tokenizer, corpus, characters)
    smaller = trimmed(tokenizer, keep)
    assert smaller.get_vocab_size() == len(keep)
    for text in corpus:
        before, after = tokenizer.encode(text, corpus[0]), smaller.encode(text, corpus[0])
        assert [keep[each] for each in after.ids] == before.ids
        assert after.tokens == before.tokens
        assert after.offsets == before.offsets
        assert after.special_tokens_mask == before.special_tokens_mask


def test_tokens_really_go(tokenizer):
    corpus = texts()[:3]
    sizes = [len(kept_ids(tokenizer, corpus, characters)) for characters in (False, True)]
    assert sizes[0] <= sizes[1] < tokenizer.get_vocab_size()


def test_characters_spell_other_words(tokenizer):
    smaller = trimmed(tokenizer, kept_ids(tokenizer, ["ab"], characters=True))
    assert "<unk>" not in smaller.encode("hgfedcba").tokens


def test_what_a_word_was_given_up_after_is_kept():
    vocabulary = {"<unk>": 0, "ab": 1, "a": 2, "##bc": 3, "x": 4}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    assert tokenizer.encode("abc").tokens == ["<unk>"]  # "ab" is longest, and then "##c" is missing
    for corpus in (["abc"], ["abc", "a"]):
        keep = kept_ids(tokenizer, corpus, characters=False)
        assert 1 in keep
        assert trimmed(tokenizer, keep).encode("abc").tokens == ["<unk>"]


def test_other_kinds_are_refused():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(UserError, match="WordLevel"):
        kept_ids(tokenizer, ["a"])
