"""Tiny models in their training form with every kind of quantizer, and a tokenizer for them."""

import torch
from models.families import build
from torch import nn
from transformers import BertTokenizerFast

from lit_compress.errors import UserError
from lit_compress.models.attention import attention_modules
from lit_compress.models.layout import embedding_tables, layer_linears
from lit_compress.nn import (
    DynamicTokenQuantizer,
    MinMaxWeightQuantizer,
    MovingAverageQuantizer,
    TableQuantizer,
    make_compressible,
    make_tables_compressible,
)
from lit_compress.nn.attention import ATTENTION_SLOTS, quantize_attention

INPUTS = {
    "uint8": MovingAverageQuantizer,
    "int8": lambda: MovingAverageQuantizer(symmetric=True),
    "dynamic": DynamicTokenQuantizer,
    "none": lambda: None,
}


def tiny_tokenizer(folder, rows=30):
    """WordPiece of letters with a token for each of the 30 ids of the families' models."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"][:rows]
    path = folder / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n")
    return BertTokenizerFast(vocab=str(path), model_max_length=16)


def quantized(
    family, inputs="uint8", bits=8, per_channel=True, tables=None, attention=False, outputs=False, **settings
):
    """A model whose quantizers have seen some batches; ``tables`` is ``"row"``, ``"table"`` or None."""
    model = build(family, initializer_range=0.3, **settings)
    for layer in make_compressible(model, list(layer_linears(model))).values():
        layer.weight_quantizer = MinMaxWeightQuantizer(layer.out_features, bits, per_channel)
        layer.input_quantizer = INPUTS[inputs]()
        layer.output_quantizer = MovingAverageQuantizer() if outputs else None
    if tables:
        for table in make_tables_compressible(model, list(embedding_tables(model)), "test").values():
            table.weight_quantizer = TableQuantizer(table.num_embeddings, tables == "row")
    if attention:
        _quantize_attention(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    with torch.no_grad():
        for _ in range(3):
            ids = torch.randint(0, 30, (4, 12))
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return model.eval()


def _quantize_attention(model):
    try:
        names = list(attention_modules(model, "test"))
    except UserError:
        names = []  # a family that computes its attention itself
    for owner in quantize_attention(model, names).values():
        for slot in ATTENTION_SLOTS:
            setattr(owner, slot, MovingAverageQuantizer(symmetric=slot in ("key", "value")))


def prune(model, share=0.9):
    """Most weights of every layer to zero, in place."""
    with torch.no_grad():
        for layer in layer_linears(model).values():
            layer.weight[torch.rand_like(layer.weight) < share] = 0
    return model
