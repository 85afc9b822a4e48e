import json
import math
import time
from dataclasses import dataclass, field
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.planning.plan import Losses, fastest, plan
from lit_compress.planning.structure import LayerShape, Structure


@dataclass
class Table:
    """Times that add up: of heads and neurons by their number, and something for all."""

    heads: dict[int, float]
    neurons: dict[int, float]
    fixed: float = 0.0
    ranks: dict[int, float] = field(default_factory=dict)

    def layer(self, shape):
        return self.heads[shape.heads] + self.neurons[shape.neurons]

    def seconds(self, structure):
        return self.fixed + self.ranks.get(structure.rank, 0.0) + sum(map(self.layer, structure.shapes))


def falling(draw, counts, values):
    """Losses, or times, that are never less the less, or the more, there is."""
    return dict(zip(counts, sorted(draw(st.lists(values, min_size=len(counts), max_size=len(counts)))), strict=True))


@st.composite
def cases(draw):
    """Losses of at most three layers, a table, and a structure to start from."""
    numbers = st.floats(0, 1, width=16) | st.sampled_from([0.0, 0.25, 0.5])
    count = draw(st.integers(1, 3))
    heads, neurons = [3, 2, 1][draw(st.integers(0, 2)) :], [8, 6, 4, 2][draw(st.integers(0, 3)) :]

    def losses_of(counts):
        return {counts[0]: 0.0} | falling(draw, counts[1:], numbers)

    losses = Losses(
        heads=tuple(losses_of(heads) for _ in range(count)),
        neurons=tuple(losses_of(neurons) for _ in range(count)),
        layers=tuple(draw(numbers | st.just(math.inf)) for _ in range(count)),
        same_heads=draw(st.booleans()),
    )
    times = st.floats(0.125, 1, width=16)
    table = Table(falling(draw, heads[::-1], times), falling(draw, neurons[::-1], times), draw(numbers))
    within = losses.dense
    if count > 1 and draw(st.booleans()):
        within = Structure(layers=(*within.layers[:-1], None))
    return losses, table, within


def every_structure(losses, within):
    options = [
        [LayerShape(h, n) for h in heads for n in neurons if h <= most.heads and n <= most.neurons]
        + [None] * math.isfinite(gone)
        if most
        else [None]
        for heads, neurons, gone, most in zip(losses.heads, losses.neurons, losses.layers, within.layers, strict=True)
    ]
    found = [Structure(layers=layers) for layers in product(*options) if any(layers)]
    return [each for each in found if not losses.same_heads or len({shape.heads for shape in each.shapes}) == 1]


@given(cases(), st.floats(0, 1.2))
def test_it_is_what_trying_everything_finds(case, share):
    losses, table, within = case
    found = every_structure(losses, within)
    times = {structure: table.seconds(structure) for structure in found}
    budget = share * table.seconds(within)
    quick = fastest(losses, table, within, neuron_multiple=2)
    assert table.seconds(quick) == pytest.approx(min(times.values()))
    fits = [structure for structure in found if times[structure] <= budget]
    if table.seconds(quick) > budget:
        with pytest.raises(ValueError, match="fastest"):
            plan(losses, table, budget, within, neuron_multiple=2)
        return
    planned = plan(losses, table, budget, within, neuron_multiple=2)
    assert planned in found
    assert table.seconds(planned) <= budget
    rounding = len(within.kept) * table.seconds(losses.dense) / 2**16
    rounded = [structure for structure in fits if times[structure] <= budget - rounding * 1.01]
    loss = losses.of(planned)
    assert loss >= min(map(losses.of, fits)) - 1e-9
    assert loss <= min(map(losses.of, rounded), default=math.inf) + 1e-9
    assert plan(losses, table, budget, within, neuron_multiple=2) == planned


@given(cases(), st.lists(st.floats(0, 1.2), min_size=2, max_size=4))
def test_more_time_never_loses_more(case, shares):
    losses, table, within = case
    limit = table.seconds(fastest(losses, table, within, neuron_multiple=2))
    budgets = sorted(limit + share * (table.seconds(within) - limit) for share in shares)
    found = [losses.of(plan(losses, table, budget, within, neuron_multiple=2)) for budget in budgets]
    assert all(more <= less + 1e-9 for less, more in pairwise(found))


@given(cases(), st.floats(0.2, 1))
def test_members_are_inside_one_another(case, share):
    losses, table, within = case
    limit = table.seconds(fastest(losses, table, within, neuron_multiple=2))
    for _ in range(3):
        budget = max(limit, share * table.seconds(within))
        member = plan(losses, table, budget, within, neuron_multiple=2)
        for before, after in zip(within.layers, member.layers, strict=True):
            assert after is None or (before and after.heads <= before.heads and after.neurons <= before.neurons)
        within = member


FULL = {12: 0.0, 6: 0.1, 3: 0.2, 1: 0.5}, {3072: 0.0, 1536: 0.05, 768: 0.15, 192: 0.4, 64: 0.6}
BERT = Table({h: 0.4 + 0.3 * h for h in range(1, 13)}, {n: 0.2 + n / 700 for n in range(32, 3073, 32)}, fixed=1.5)


def bert(depth=12, **options):
    """Losses of a model of the size of BERT-base, in which upper layers matter less."""
    weights = [1 / (1 + index) for index in range(depth)]
    heads, neurons = ([{count: w * loss for count, loss in each.items()} for w in weights] for each in FULL)
    gone = [w * 0.8 for w in weights]
    return Losses(**{"heads": tuple(heads), "neurons": tuple(neurons), "layers": tuple(gone)} | options)


# Seconds of processor time. A quarter of one is enough; a busy machine needed ten times that. Trying everything, or
# planning in Python loops, takes minutes.
AT_ONCE = 20


@pytest.mark.parametrize("speedup", [1.2, 2, 8])
def test_twelve_layers_are_planned_at_once(speedup):
    losses = bert()
    begun = time.process_time()
    planned = plan(losses, BERT, BERT.seconds(losses.dense) / speedup)
    assert time.process_time() - begun < AT_ONCE
    used = BERT.seconds(planned) * speedup / BERT.seconds(losses.dense)
    # Widths of 32 neurons are steps of 0.05: little of the time is left over.
    assert 0.99 < used <= 1
    assert {shape.neurons % 32 for shape in planned.shapes} == {0}


def test_layers_are_uneven_and_some_vanish():
    losses = bert()
    planned = plan(losses, BERT, BERT.seconds(losses.dense) / 4)
    assert None in planned.layers
    assert len(set(planned.shapes)) > 1
    neurons = [shape.neurons for shape in planned.shapes]
    assert neurons == sorted(neurons, reverse=True)  # what matters more is left wider


def test_layers_with_the_same_heads_are_planned_at_once():
    stay = (math.inf,) * 12
    losses = bert(same_heads=True, layers=stay)
    begun = time.process_time()
    planned = plan(losses, BERT, BERT.seconds(losses.dense) / 3)
    assert time.process_time() - begun < AT_ONCE
    (heads,) = {shape.heads for shape in planned.shapes}
    assert 0 < heads < 12
    assert len({shape.neurons for shape in planned.shapes}) > 1
    # Never better than without that, and what fits inside it is planned with as many or fewer.
    uneven = plan(bert(layers=stay), BERT, BERT.seconds(losses.dense) / 3)
    assert losses.of(uneven) < losses.of(planned)
    smaller = plan(losses, BERT, BERT.seconds(losses.dense) / 5, within=planned)
    assert {shape.heads for shape in smaller.shapes} <= set(range(1, heads + 1))


def test_all_the_time_leaves_all():
    losses = bert()
    assert plan(losses, BERT, BERT.seconds(losses.dense)) == losses.dense
    assert plan(losses, BERT, math.inf) == losses.dense


def test_a_width_that_is_no_multiple_is_left_as_it_is():
    table = Table(BERT.heads, {n: n / 700 for n in (32, 64, 96, 100)})
    losses = bert(2, neurons=({100: 0.0, 32: 1.0},) * 2)
    assert plan(losses, table, table.seconds(losses.dense) * 0.9).shapes[0].neurons in (100, 96, 64, 32)
    assert plan(losses, table, math.inf) == losses.dense


def test_what_a_family_cannot_lose_stays():
    losses = bert(3, heads=({12: 0.0},) * 3, layers=(math.inf, 0.1, 0.2))
    quick = fastest(losses, BERT)
    assert quick.layers == (LayerShape(12, 64), None, None)
    losses = bert(3, heads=({12: 0.0},) * 3, neurons=({3072: 0.0},) * 3, layers=(math.inf,) * 3)
    assert fastest(losses, BERT) == losses.dense


def test_what_is_out_of_reach_says_the_limit():
    losses = bert()
    limit = BERT.seconds(fastest(losses, BERT))
    with pytest.raises(ValueError, match=rf"1 seconds are less than the {limit:.4g} "):
        plan(losses, BERT, 1.0)
    assert plan(losses, BERT, limit) == fastest(losses, BERT)


def test_the_rank_of_the_embedding_is_given_and_takes_its_time():
    losses, table = bert(2), Table(BERT.heads, BERT.neurons, ranks={128: 1.0, None: 0.0})
    budget = table.seconds(losses.dense) / 2
    with_rank = plan(losses, table, budget, rank=128)
    assert with_rank.rank == 128
    assert table.seconds(with_rank) <= budget
    assert plan(losses, table, budget / 2, within=with_rank).rank == 128
    assert plan(losses, table, budget).rank is None


def test_losses_come_back_from_json():
    losses = bert(2, layers=(math.inf, 0.5), same_heads=True)
    content = json.loads(json.dumps(losses.to_json(), allow_nan=False))
    assert Losses.from_json(content) == losses
    assert Losses.from_json(content | {"ranks": {}}) == losses  # which it once had, and nothing read
    del content["same_heads"]  # which it once did not have
    assert not Losses.from_json(content).same_heads
