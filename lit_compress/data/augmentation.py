"""More training text by replacing words with what a masked language model would put there."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from lit_compress.data.tables import load_tokenizer
from lit_compress.errors import UserError, first_line
from lit_compress.init_args import KeepsInitArgs
from lit_compress.sources import check_safetensors, resolve_source

__all__ = ["MaskedWordReplacement"]

_WORD = re.compile(r"\w+|[^\w\s]+|\s+")
# Function words: replacing them changes the grammar, not the topic.
_STOP_WORDS = frozenset(
    """
    a about above after again all am an and any are as at be because been before being below between both but by can
    could did do does doing down during each few for from further had has have having he her here hers him his how i
    if in into is it its just me more most my no nor not of off on once only or other our out over own same she so
    some such than that the their them then there these they this those through to too under until up very was we
    were what when where which while who whom why will with would you your
    """.split()  # noqa: SIM905 (a list of a hundred lines reads worse)
)


class MaskedWordReplacement(KeepsInitArgs):
    """Replaces words by likely ones: TinyBERT's augmentation (arXiv 1909.10351, algorithm 1), which ROSITA uses.

    A word of one token is masked and the model's best guesses become its candidates; in each copy of a text every
    such word is replaced with ``probability`` by one of them. Function words, numbers and words of several tokens
    stay: the papers look the last up among GloVe neighbors, which this does not do. The copies carry the label of
    the original; both papers train them on a teacher's outputs, not on the labels.

    Args:
        model: hub name or folder of a masked language model.
        copies: augmented texts per original (ROSITA: 30 for CoLA, 20 for SST-2 and QNLI, 10 for QQP and MNLI);
            duplicates are removed.
        probability: of a word to be replaced.
        candidates: most likely words to draw from.
        max_length: tokens of a text that the model sees; words beyond stay.
        batch_size: masked texts per forward pass.
        seed: determines the copies, together with the text.

    """

    def __init__(
        self,
        model: str,
        copies: int = 20,
        probability: float = 0.4,
        candidates: int = 15,
        max_length: int = 128,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        for name, value in (("copies", copies), ("candidates", candidates), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"data.augmentation.{name}: {value} must be at least 1")
        if not 0 < probability <= 1:
            raise UserError(f"data.augmentation.probability: {probability} must be in (0, 1]")
        self.model, self.copies, self.probability, self.candidates = model, copies, probability, candidates
        self.max_length, self.batch_size, self.seed = max_length, batch_size, seed

    def __call__(self, table: Dataset, text_columns: Sequence[str]) -> Dataset:
        """Each row, followed by its copies; cached as Arrow by content.

        Args:
            table: rows of text.
            text_columns: columns to replace words in.

        Raises:
            UserError: the model cannot be loaded.

        """
        settings = {name: value for name, value in vars(self).items() if name != "batch_size"}
        fingerprint = Hasher.hash([table._fingerprint, settings, list(text_columns), "augment-1"])
        loaded: list[Any] = []

        def augment(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            if not loaded:  # only when the cache has nothing
                loaded.extend(self._load())
            model, tokenizer = loaded
            out: dict[str, list[Any]] = {name: [] for name in rows}
            texts = {column: [str(text) for text in rows[column]] for column in text_columns}
            guesses = {column: replacements(texts[column], model, tokenizer, self) for column in text_columns}
            for index in range(len(next(iter(rows.values())))):
                for copy in self._copies({c: texts[c][index] for c in text_columns}, guesses, index):
                    for name in rows:
                        out[name].append(copy.get(name, rows[name][index]))
            return out

        return table.map(
            augment,
            batched=True,
            batch_size=64,
            features=table.features,
            new_fingerprint=fingerprint,
            desc="Augmenting train",
        )

    def _copies(
        self, row: dict[str, str], guesses: dict[str, list[dict[int, list[str]]]], index: int
    ) -> list[dict[str, str]]:
        """The row's texts and their distinct augmented copies; a function of seed and texts alone."""
        entropy = int.from_bytes(Hasher.hash([self.seed, row]).encode()[:8])
        draw = np.random.default_rng(entropy)
        found = {tuple(row.values()): row}
        for _ in range(self.copies):
            copy = {}
            for column, text in row.items():
                pieces = _WORD.findall(text)
                for position, words in guesses[column][index].items():
                    if draw.random() < self.probability:
                        pieces[position] = words[draw.integers(len(words))]
                copy[column] = "".join(pieces)
            found.setdefault(tuple(copy.values()), copy)
        return list(found.values())

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        key = "data.augmentation.model"
        tokenizer = load_tokenizer(self.model, key)
        path = resolve_source(self.model, key)
        check_safetensors(path, ["AutoModelForMaskedLM"], key)
        try:
            model, info = AutoModelForMaskedLM.from_pretrained(
                path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{key}: {self.model!r} cannot be loaded: {first_line(error)}") from error
        if info["missing_keys"] or tokenizer.mask_token is None:
            raise UserError(f"{key}: {self.model!r} has no masked-language-model head; give a model that has one")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return model.eval().to(device), tokenizer


@torch.inference_mode()
def replacements(
    texts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: MaskedWordReplacement
) -> list[dict[int, list[str]]]:
    """For each text, position among its words, spaces and signs to the words that could stand there.

    Args:
        texts: plain texts.
        model: masked language model.
        tokenizer: its tokenizer, a fast one.
        options: how many candidates, tokens and texts at a time.

    """
    found: list[dict[int, list[str]]] = [{} for _ in texts]
    masked: list[tuple[int, int, list[int], int]] = []  # (text, position of the word, token ids, position of the mask)
    for number, text in enumerate(texts):
        pieces = _WORD.findall(text)
        encoded = tokenizer(pieces, is_split_into_words=True, truncation=True, max_length=options.max_length)
        owners = encoded.word_ids()
        for position, word in enumerate(pieces):
            tokens = [index for index, owner in enumerate(owners) if owner == position]
            if word.isalpha() and word.lower() not in _STOP_WORDS and len(tokens) == 1:
                ids = list(encoded["input_ids"])
                ids[tokens[0]] = tokenizer.mask_token_id
                masked.append((number, position, ids, tokens[0]))
    # Neighbors of one length make batches with little padding.
    masked.sort(key=lambda entry: len(entry[2]))
    for start in range(0, len(masked), options.batch_size):
        batch = masked[start : start + options.batch_size]
        inputs = tokenizer.pad({"input_ids": [entry[2] for entry in batch]}, return_tensors="pt").to(model.device)
        logits = model(**inputs).logits
        offsets = [(0 if tokenizer.padding_side == "right" else logits.shape[1] - len(e[2])) + e[3] for e in batch]
        best = logits[torch.arange(len(batch)), offsets].topk(min(options.candidates * 2, logits.shape[-1])).indices
        for (number, position, _, _), ids in zip(batch, best.tolist(), strict=True):
            original = _WORD.findall(texts[number])[position]
            if words := _words(ids, original, tokenizer)[: options.candidates]:
                found[number][position] = words
    return [dict(sorted(positions.items())) for positions in found]


def _words(ids: list[int], original: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Guesses that are whole words and not the word itself."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    # WordPiece marks what continues a word, byte-level BPE and SentencePiece what begins one.
    begins = ("\u0120", "\u2581") if any(token.startswith(("\u0120", "\u2581")) for token in tokens) else ("",)
    words = [
        str(tokenizer.decode([i])).strip()
        for i, token in zip(ids, tokens, strict=True)
        if token.startswith(begins) and not token.startswith("##")
    ]
    return [word for word in words if word.isalpha() and word.lower() != original.lower()]
