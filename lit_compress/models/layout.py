"""Where the parts of an encoder are, family by family, as Transformers 5.23 builds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from lit_compress.errors import UserError

__all__ = [
    "LAYOUTS",
    "Ability",
    "LayerParts",
    "Layout",
    "embedding_tables",
    "encoder_layers",
    "family_of",
    "layer_linears",
    "layer_parts",
    "layout_of",
    "tokens_first",
]

Ability = Literal["layers", "first_layer", "heads", "uneven_heads", "neurons", "attention_masks", "fused"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Dotted paths and configuration keys of one family.

    Attributes:
        layers: the list of transformer layers, inside ``model.base_model``.
        attention: inside a layer, the module that counts the heads.
        query: inside a layer, the linear of the queries; None when the family has no such linear. Rows belong to
            heads: head ``h`` owns rows ``h * head_size`` to ``(h + 1) * head_size``.
        key: inside a layer, the linear of the keys; None when the family has no such linear.
        value: inside a layer, the linear of the values; None when the family has no such linear.
        query_key_value: inside a layer, the linear of all three, one after the other, where there is only that.
        attention_output: inside a layer, the linear after the heads; its columns belong to heads.
        head_linears: further linears of a layer whose rows belong to heads; a model has them or not.
        fused_head_linears: linears that make several things of each head, the rows of one after those of another.
        feed_forward_in: inside a layer, the linear whose rows are the neurons; twice, when it also makes their gates.
        feed_forward_out: inside a layer, the linear whose columns are the neurons.
        attention_norm: inside a layer, the norm of the input plus what attention adds to it; None where a layer is
            built otherwise.
        feed_forward_norm: inside a layer, the norm of the input plus what the feed-forward part adds; None where a
            layer is built otherwise.
        norms_first: whether these norms are before each part instead, of its input.
        word_embeddings: the table of word embeddings, inside ``model.base_model``.
        embeddings: every embedding table, inside ``model.base_model``; a model may lack some.
        pooler: the linear of the pooler, inside ``model.base_model``; a model may lack it.
        head_table: a table with a column per head, inside ``model.base_model``, that every layer adds to its scores.
        layers_key: configuration key of the number of layers.
        heads_key: configuration key of the number of heads.
        width_key: configuration key of the number of feed-forward neurons.
        activation_key: configuration key of the function between the feed-forward linears.
        head_count: attribute of ``attention`` that is the number of heads; None when it has none.
        head_size: attribute of ``attention`` that is the size of a head.
        summary_token: position of the token that stands for the sequence.
        tokens_first: inside a layer, the module that works on ``(tokens, batch, width)``; ``""`` is the whole layer,
            None where all work on ``(batch, tokens, width)``.
        shared: whether one stored layer is run as every layer.
        unsupported: what this family does not allow, and why.

    """

    layers: str
    attention: str
    query: str | None
    key: str | None
    value: str | None
    query_key_value: str | None = None
    attention_output: str | None
    head_linears: tuple[str, ...] = ()
    fused_head_linears: tuple[str, ...] = ()
    feed_forward_in: str
    feed_forward_out: str
    attention_norm: str | None = None
    feed_forward_norm: str | None = None
    norms_first: bool = False
    word_embeddings: str
    embeddings: tuple[str, ...]
    pooler: str | None
    head_table: str | None = None
    layers_key: str = "num_hidden_layers"
    heads_key: str = "num_attention_heads"
    width_key: str = "intermediate_size"
    activation_key: str = "hidden_act"
    head_count: str | None = "num_attention_heads"
    head_size: str = "attention_head_size"
    summary_token: Literal["first", "last"] = "first"
    tokens_first: str | None = None
    shared: bool = False
    unsupported: Mapping[Ability, str] = field(default_factory=dict)

    def require(self, ability: Ability, setting: str) -> None:
        """Refuse what the family cannot do.

        Raises:
            UserError: with the reason, after ``setting``.

        """
        if ability in self.unsupported:
            raise UserError(f"{setting}: {self.unsupported[ability]}")


@dataclass(frozen=True, kw_only=True)
class LayerParts:
    """The modules of one layer; None where the family has no such linear."""

    layer: nn.Module
    attention: nn.Module
    query: nn.Linear | None
    key: nn.Linear | None
    value: nn.Linear | None
    attention_output: nn.Linear | None
    head_linears: tuple[nn.Linear, ...]
    feed_forward_in: nn.Linear
    feed_forward_out: nn.Linear


_TABLES = ("embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings")

_BERT = Layout(
    layers="encoder.layer",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    feed_forward_in="intermediate.dense",
    feed_forward_out="output.dense",
    attention_norm="attention.output.LayerNorm",
    feed_forward_norm="output.LayerNorm",
    word_embeddings="embeddings.word_embeddings",
    embeddings=_TABLES,
    pooler="pooler.dense",
)

_NO_FUSED: Mapping[Ability, str] = {"fused": "no fused layer is written for this family"}

# Model type of the configuration -> layout.
LAYOUTS: dict[str, Layout] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": replace(_BERT, pooler=None),
    "distilbert": Layout(
        layers="transformer.layer",
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        feed_forward_in="ffn.lin1",
        feed_forward_out="ffn.lin2",
        attention_norm="sa_layer_norm",
        feed_forward_norm="output_layer_norm",
        word_embeddings="embeddings.word_embeddings",
        embeddings=_TABLES[:2],
        pooler=None,
        layers_key="n_layers",
        heads_key="n_heads",
        width_key="hidden_dim",
        activation_key="activation",
        head_count="n_heads",
    ),
    "xlnet": Layout(
        layers="layer",
        attention="rel_attn",
        query=None,
        key=None,
        value=None,
        attention_output=None,
        feed_forward_in="ff.layer_1",
        feed_forward_out="ff.layer_2",
        word_embeddings="word_embedding",
        embeddings=("word_embedding",),
        pooler=None,
        layers_key="n_layer",
        heads_key="n_head",
        width_key="d_inner",
        head_count="n_head",
        head_size="d_head",
        summary_token="last",
        tokens_first="",
        unsupported={
            "heads": "XLNet's attention has no linears: q, k, v, o and r are Parameters of rel_attn",
            "attention_masks": "XLNet's attention has no linears (q, k, v, o and r are Parameters of rel_attn); "
            "give the pattern '*.ff.*' to work on the feed-forward part alone",
            "fused": "XLNet's attention has no linears and counts positions relatively",
        },
    ),
    "albert": Layout(
        layers="encoder.albert_layer_groups",
        attention="attention",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        attention_output="attention.dense",
        feed_forward_in="ffn",
        feed_forward_out="ffn_output",
        word_embeddings="embeddings.word_embeddings",
        embeddings=_TABLES,
        pooler="pooler",
        shared=True,
        unsupported={
            "layers": "ALBERT stores one layer and repeats it: only the number of repeats can be lowered, from the top",
            "fused": "ALBERT repeats one stored layer inside groups of its own",
        },
    ),
    "mpnet": Layout(
        layers="encoder.layer",
        attention="attention.attn",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_output="attention.attn.o",
        feed_forward_in="intermediate.dense",
        feed_forward_out="output.dense",
        attention_norm="attention.LayerNorm",
        feed_forward_norm="output.LayerNorm",
        word_embeddings="embeddings.word_embeddings",
        embeddings=(*_TABLES[:2], "encoder.relative_attention_bias"),
        pooler="pooler.dense",
        head_table="encoder.relative_attention_bias",
        unsupported={
            "uneven_heads": "MPNet adds one table of relative positions, with a column per head, in all layers alike: "
            "they can only lose the same heads",
        },
    ),
    "modernbert": Layout(
        layers="layers",
        attention="attn",
        query=None,
        key=None,
        value=None,
        query_key_value="attn.Wqkv",
        attention_output="attn.Wo",
        feed_forward_in="mlp.Wi",
        feed_forward_out="mlp.Wo",
        attention_norm="attn_norm",
        feed_forward_norm="mlp_norm",
        norms_first=True,
        word_embeddings="embeddings.tok_embeddings",
        embeddings=("embeddings.tok_embeddings",),
        pooler=None,
        activation_key="hidden_activation",
        fused_head_linears=("attn.Wqkv",),
        head_count=None,
        head_size="head_dim",
        unsupported={
            "first_layer": "ModernBERT's first layer is the only one without a norm before its attention",
        },
    ),
    "deberta-v2": Layout(
        layers="encoder.layer",
        attention="attention.self",
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        attention_output="attention.output.dense",
        # Absent when positions share the keys' and queries' weights (share_att_key, as in DeBERTa-v3).
        head_linears=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
        feed_forward_in="intermediate.dense",
        feed_forward_out="output.dense",
        attention_norm="attention.output.LayerNorm",
        feed_forward_norm="output.LayerNorm",
        word_embeddings="embeddings.word_embeddings",
        embeddings=(*_TABLES, "encoder.rel_embeddings"),
        pooler=None,
    ),
    "data2vec-text": replace(_BERT, unsupported=_NO_FUSED),
    "ernie": replace(_BERT, embeddings=(*_TABLES, "embeddings.task_type_embeddings"), unsupported=_NO_FUSED),
    "roformer": replace(_BERT, pooler=None, unsupported=_NO_FUSED),
    "luke": replace(
        _BERT,
        head_linears=("attention.self.w2e_query", "attention.self.e2w_query", "attention.self.e2e_query"),
        embeddings=(*_TABLES, *(f"entity_{table}" for table in _TABLES[1:]), "entity_embeddings.entity_embeddings"),
        unsupported=_NO_FUSED,
    ),
    "longformer": replace(
        _BERT,
        head_linears=("attention.self.query_global", "attention.self.key_global", "attention.self.value_global"),
        head_count="num_heads",
        head_size="head_dim",
        tokens_first="attention.self",
        unsupported=_NO_FUSED | {"heads": "Longformer's heads are as wide together as its hidden states"},
    ),
    "big_bird": replace(
        _BERT,
        pooler="pooler",
        unsupported=_NO_FUSED | {"heads": "BigBird makes its attention anew with the heads of the configuration"},
    ),
}

# Where other encoders keep their layers, inside `model.base_model`.
_LAYER_LISTS = ("encoder.layer", "transformer.layer", "layers", "layer")


def family_of(model: nn.Module) -> str:
    """The model type of a Hugging Face model, ``"bert"`` for example; empty for any other module."""
    return getattr(getattr(model, "config", None), "model_type", "")


def layout_of(model: nn.Module, setting: str = "model.pretrained") -> Layout:
    """The layout of a Hugging Face encoder with any head.

    Args:
        model: encoder.
        setting: config key named in the error.

    Raises:
        UserError: a family that is not in the table.

    """
    family = family_of(model)
    if family not in LAYOUTS:
        raise UserError(f"{setting}: {family or type(model).__name__!r} is not one of {', '.join(LAYOUTS)}")
    return LAYOUTS[family]


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of transformer layers of a Hugging Face encoder with any head.

    ALBERT has no list with one entry per layer: its list holds each stored layer once, however often it is run.

    Raises:
        UserError: the family keeps its layers somewhere unknown.

    """
    base, family = getattr(model, "base_model", model), family_of(model)
    if family == "albert":
        groups = base.get_submodule(LAYOUTS["albert"].layers)
        return nn.ModuleList(
            layer for group in groups.children() for layer in group.get_submodule("albert_layers").children()
        )
    modules = dict(base.named_modules())
    for path in (LAYOUTS[family].layers,) if family in LAYOUTS else _LAYER_LISTS:
        layers = modules.get(path)
        if isinstance(layers, nn.ModuleList):
            return layers
    raise UserError(f"model.pretrained: {type(base).__name__} has no layer list at any of {', '.join(_LAYER_LISTS)}")


def layer_parts(model: nn.Module, index: int) -> LayerParts:
    """The modules of a layer of :func:`encoder_layers`.

    Raises:
        UserError: a family that is not in the table.

    """
    layout, layer = layout_of(model), encoder_layers(model)[index]
    modules = dict(layer.named_modules())
    names = ("query", "key", "value", "attention_output", "feed_forward_in", "feed_forward_out")
    parts = {name: modules[path] if (path := getattr(layout, name)) else None for name in names}
    further = tuple(modules[path] for path in layout.head_linears if path in modules)
    return LayerParts(layer=layer, attention=modules[layout.attention], head_linears=further, **parts)  # type: ignore[arg-type]


def layer_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear of every transformer layer, by its dotted name inside ``model``, in model order.

    Raises:
        UserError: the family keeps its layers somewhere unknown.

    """
    inside = {id(module) for layer in encoder_layers(model) for module in layer.modules()}
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside
    }


def tokens_first(model: nn.Module) -> set[nn.Module]:
    """The modules of a model that work on ``(tokens, batch, width)``, of the families in the table."""
    layout = LAYOUTS.get(family_of(model))
    if layout is None or layout.tokens_first is None:
        return set()
    parts = (layer.get_submodule(layout.tokens_first) for layer in encoder_layers(model))
    return {module for part in parts for module in part.modules()}


def embedding_tables(model: nn.Module) -> dict[str, nn.Embedding]:
    """The embedding tables of an encoder, by their dotted name inside ``model``.

    Raises:
        UserError: a family that is not in the table.

    """
    base = getattr(model, "base_model", model)
    modules = dict(base.named_modules())
    wanted = {id(modules[path]) for path in layout_of(model).embeddings if path in modules}
    return {name: module for name, module in model.named_modules() if id(module) in wanted}  # type: ignore[misc]
