"""A tiny random model of every family."""

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 30,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
}
# The two of DeBERTa-v2: with positions projected by their own linears, and as DeBERTa-v3 has it.
_RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
}
FAMILIES = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "electra": {"embedding_size": 8},
    "mpnet": {},
    "deberta-v2": _RELATIVE | {"share_att_key": False, "conv_kernel_size": 3},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "local_attention": 4},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 2},
    "albert": {"embedding_size": 8},
    "xlnet": {"d_model": 16, "n_layer": 3, "n_head": 2, "d_inner": 24, "max_position_embeddings": None},
}
# Those whose layers are BERT's, with names or positions of their own; tests of formats leave them out.
BESIDE = {
    "data2vec-text": {},
    "ernie": {"task_type_vocab_size": 3, "use_task_id": True},
    "roformer": {"embedding_size": 8},
    "luke": {"entity_vocab_size": 5, "entity_emb_size": 8, "use_entity_aware_attention": True},
    "longformer": {"attention_window": [4, 8, 4]},
    "big_bird": {"attention_type": "original_full"},
}
LISTED = [family for family in FAMILIES if family != "albert"]  # with one module per layer


def build(family, auto=AutoModelForSequenceClassification, **settings):
    """In evaluation mode, with three layers."""
    torch.manual_seed(0)
    given = {
        name: value for name, value in (SMALL | (FAMILIES | BESIDE)[family] | settings).items() if value is not None
    }
    return auto.from_config(AutoConfig.for_model(family, **given)).eval()


def batch(rows=2, length=6):
    """Two rows of ids without padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 30, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
