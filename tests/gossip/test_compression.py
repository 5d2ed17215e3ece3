"""Compressors and algorithms by name: what a server tells boards is what they run."""

import numpy as np
import pytest

from flower_edge.gossip import (
    BFloat16,
    ChocoCopies,
    Compressor,
    Float32,
    GossipPlan,
    Int4,
    Int8,
    LinkChoco,
    NodeRows,
    SignNorm,
    TopK,
    cyclic_matchings,
    full_graph_plan,
    link_array,
    load_graph,
)
from flower_edge.gossip.compression import Compression, named_compressor, to_named

RING = full_graph_plan(load_graph("ring:6"))
MATCHINGS = GossipPlan(6, cyclic_matchings(link_array(load_graph("ring:6")), 6))


@pytest.mark.parametrize(
    "compressor",
    [
        Float32(),
        BFloat16(),
        Int8(),
        Int8(per="array", small="compressed"),
        Int4(rounding="stochastic", seed=9),
        SignNorm(per="array"),
        TopK(0.05, values="fp32"),
    ],
    ids=repr,
)
def test_a_board_runs_what_the_server_chose(compressor: Compressor) -> None:
    layout = compressor.codec(50).layout
    chosen = Compression.of(RING, layout, compressor)

    told = Compression.from_json(chosen.to_json())

    assert told == chosen
    model = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    rows = NodeRows(2, [RING.row(2, 0)])
    ours, theirs = chosen.mixer(2, RING, layout), told.mixer(2, rows, layout)
    assert isinstance(ours, ChocoCopies)
    assert ours.terms == theirs.terms
    assert ours.outgoing(model, [1, 3]) == theirs.outgoing(model, [1, 3])


def test_defaults_follow_from_the_plan() -> None:
    layout = Int8().codec(50).layout

    assert isinstance(Compression.of(MATCHINGS, layout, Int8()).mixer(0, MATCHINGS, layout), LinkChoco)
    assert Compression.of(RING, layout, Int8(), algorithm="squeeze", gamma=0.25).gamma == 0.25
    assert named_compressor("topk") == TopK()


class Unknown(Int8):
    pass


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: named_compressor("zip"), "compressor is 'zip'; expected one of"),
        (lambda: named_compressor({"per": "array"}), "compressor is 'None'"),
        (lambda: named_compressor({"name": "int8", "bits": 3}), "'int8' cannot be set to {'bits': 3}"),
        (lambda: named_compressor({"name": "int8", "per": "row"}), "per is 'row'"),
        (lambda: to_named(Unknown()), "received a Unknown"),
        (lambda: Compression("choco", Int8(), 1.0), "algorithm is 'choco'; expected one of"),
        (lambda: Compression.of(RING, Int8().codec(1).layout, Int8(), "x"), "algorithm is 'x'"),
        (lambda: Compression.from_json("[]"), "expected an algorithm"),
        (lambda: Compression.from_json('{"algorithm": "link"}'), "expected an algorithm"),
    ],
)
def test_what_is_refused(broken: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        broken()
