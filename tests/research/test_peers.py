"""The published figures agree with each other where one follows from others."""

from __future__ import annotations

import pytest

from efficientdet.family import MODELS, PUBLISHED
from efficientdet.network.fusion import FUSIONS
from efficientdet.network.topology import TOPOLOGIES
from efficientdet.research.peers import PAPER_LATENCY, PEERS, TABLE_4, TABLE_5, Peer, times


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_printed_ratios_follow_from_the_printed_figures(peer: Peer) -> None:
    parameters, multiply_adds = PUBLISHED[peer.compared_with]
    if peer.multiply_adds is not None:
        assert peer.multiply_adds * 1e9 / multiply_adds == pytest.approx(peer.multiply_adds_ratio, rel=0.08)
    if peer.parameters is not None:
        # The one that does not: 34M over 6.6M is 5.1, the paper prints 6.7.
        expected = 5.1 if peer.name == "RetinaNet R50 @640" else peer.parameters_ratio
        assert peer.parameters * 1e6 / parameters == pytest.approx(expected, rel=0.05)


def test_every_peer_has_a_model_and_a_name_of_its_own() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS) == 11
    assert {peer.compared_with for peer in PEERS} <= set(MODELS)
    assert set(PAPER_LATENCY) == {name for name in MODELS if name.startswith("d")}


def test_the_paper_s_speedups_follow_from_its_latencies() -> None:
    """Section 5.1: up to 4.1 times faster on the GPU, up to 10.8 on the CPU."""
    ours = {peer.name: PAPER_LATENCY[peer.compared_with] for peer in PEERS}
    titan = [p.latency.titan_v_ms / (ours[p.name].titan_v_ms or 0) for p in PEERS if p.latency.titan_v_ms]
    cpu = [p.latency.cpu_s / (ours[p.name].cpu_s or 0) for p in PEERS if p.latency.cpu_s]
    assert max(titan) == pytest.approx(4.1, abs=0.05)
    assert max(cpu) == pytest.approx(10.8, abs=0.05)


def test_ablation_rows_name_what_this_package_builds() -> None:
    assert all(row.feature_network in TOPOLOGIES and row.fusion in FUSIONS for row in TABLE_5)
    assert (TABLE_5[0].parameters_ratio, TABLE_5[0].multiply_adds_ratio) == (1, 1)
    assert TABLE_4[-1].ap == round(TABLE_5[-1].ap, 1)  # the same model: B3 with weighted BiFPN


@pytest.mark.parametrize(("ratio", "text"), [(0.714, "0.71x"), (1.0, "1.00x"), (6.66, "6.7x"), (28.4, "28x")])
def test_ratios_as_the_paper_prints_them(ratio: float, text: str) -> None:
    assert times(ratio) == text
    assert times(None) is None
