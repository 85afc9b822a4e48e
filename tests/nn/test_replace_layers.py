import pytest
import torch
from torch import nn

from lit_compress.errors import UserError
from lit_compress.nn import CompressibleLinear, compressible_layers, make_compressible, match_modules


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(4, 4)})
        self.dense = nn.Linear(4, 4)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layer = nn.ModuleList([Block(), Block()])
        self.classifier = nn.Linear(4, 2)


NAMES = [f"layer.{i}.{name}" for i in (0, 1) for name in ("attention.query", "attention.key", "dense")]


@pytest.mark.parametrize(
    ("targets", "ignore", "expected"),
    [
        (["*"], [], [*NAMES, "classifier"]),
        (["layer.*"], [], NAMES),
        (["*.dense", "*.key"], [], [NAMES[1], NAMES[2], NAMES[4], NAMES[5]]),
        (["layer.?.dense"], [], [NAMES[2], NAMES[5]]),
        (["layer.[1-9].*"], [], NAMES[3:]),
        ([r"re:layer\.0\."], [], NAMES[:3]),
        ([r"re:.*\.(query|key)$"], [], [NAMES[0], NAMES[1], NAMES[3], NAMES[4]]),
        (["*"], ["*.attention.*", "classifier"], [NAMES[2], NAMES[5]]),
        (["*"], [r"re:layer\."], ["classifier"]),
        (["layer.0.*", "*"], [], [*NAMES, "classifier"]),  # in model order, each once
    ],
)
def test_patterns(targets, ignore, expected):
    assert list(match_modules(Encoder(), targets, ignore)) == expected


def test_matches_modules_of_the_kind_only():
    model = Encoder()
    assert match_modules(model, ["*"], kind=nn.Embedding) == {"embed": model.embed}


@pytest.mark.parametrize("target", ["attention", "LAYER.*", "embed", r"re:dense", "layer.0"])
def test_a_target_without_a_match_is_an_error(target):
    with pytest.raises(UserError) as caught:
        match_modules(Encoder(), ["*", target], key="MagnitudePruning.targets")
    message = str(caught.value)
    assert message.startswith("MagnitudePruning.targets: ")
    assert repr(target) in message
    assert "layer.0.attention.query" in message
    assert "\n" not in message


def test_ignoring_everything_is_an_error():
    with pytest.raises(UserError, match=r"Key\.targets: .*leaves no Linear"):
        match_modules(Encoder(), ["layer.*"], ["*"], key="Key.targets")


@pytest.mark.parametrize(("targets", "ignore"), [(["re:("], []), (["*"], ["re:("])], ids=["targets", "ignore"])
def test_a_bad_regular_expression_names_the_key(targets, ignore):
    with pytest.raises(UserError, match=r"'re:\('") as caught:
        match_modules(Encoder(), targets, ignore, key="MagnitudePruning.targets")
    assert str(caught.value).startswith("MagnitudePruning.")
    assert "\n" not in str(caught.value)


def test_replaces_what_is_named_and_nothing_else():
    model, x = Encoder(), torch.randn(3, 4)
    parameters, expected = dict(model.named_parameters()), model.layer[0].dense(x)
    layers = make_compressible(model, ["layer.0.dense", "layer.1.attention.key"])
    assert dict(compressible_layers(model)) == layers
    assert list(layers) == ["layer.0.dense", "layer.1.attention.key"]
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert torch.equal(model.layer[0].dense(x), expected)
    assert type(model.classifier) is nn.Linear


def test_doing_it_twice_keeps_the_layers_and_their_slots():
    model = Encoder()
    first = make_compressible(model, NAMES)
    first[NAMES[0]].add_mask()
    second = make_compressible(model, [*NAMES, "classifier"])
    assert all(second[name] is first[name] for name in NAMES)
    assert second[NAMES[0]].weight_mask is not None
    assert isinstance(model.classifier, CompressibleLinear)


def test_a_compressible_layer_is_still_a_linear_to_patterns():
    model = Encoder()
    make_compressible(model, NAMES)
    assert list(match_modules(model, ["*.dense"])) == [NAMES[2], NAMES[5]]


def test_a_weight_tied_to_an_embedding_is_refused():
    model = Encoder()
    model.decoder = nn.Linear(4, 5)
    model.decoder.weight = model.embed.weight
    with pytest.raises(UserError, match=r"'decoder' shares its weight with 'embed'"):
        make_compressible(model, ["decoder"])


def test_a_linear_used_under_two_names_is_refused():
    # Replacing one of the names would leave the other one without the mask.
    model = Encoder()
    model.layer[1].dense = model.layer[0].dense
    with pytest.raises(UserError, match=r"layer\.1\.dense"):
        make_compressible(model, ["layer.0.dense"])
