"""Tests of the formulas against hand-computed values, and of reading a handwritten schedule."""

import pytest

from train.planning.cost_model import (
    AllReduce,
    exposed_seconds,
    node_all_reduce_seconds,
    read_schedule,
    ring_all_reduce_seconds,
    torus_all_reduce_seconds,
)

PROGRAM = """HloModule jit_train_step, is_scheduled=true, entry_computation_layout={()->()}

%region_1 (x: f32[], y: f32[]) -> f32[] {
  ROOT %add = f32[] add(%x, %y)
}

%body.2 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.9 = f32[8]{0} fusion(%p), backend_config={"estimated_cycles":"1000"}
}

%unused (p: f32[8]) -> f32[8] {
  %fusion.8 = f32[8]{0} fusion(%p), backend_config={"estimated_cycles":"77777"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %fusion.1 = f32[8]{0:T(128)} fusion(%a), backend_config={"estimated_cycles":"100"}
  %while.1 = (s32[], f32[8]) while(%t), condition=%c, body=%body.2, backend_config={"known_trip_count":{"n":"4"}}
  %all-reduce.1 = (f32[3,4]{1,0:T(8,128)S(1)}, bf16[10]{0}, /*index=2*/f32[]{:T(128)}) all-reduce(%x, %y, /*index=2*/%z), to_apply=%region_1, metadata={op_name="psum f32[999]"}
  %get-tuple-element.1 = f32[3,4]{1,0} get-tuple-element(%all-reduce.1), index=0
  %all-reduce-start.7 = f32[100]{0} all-reduce-start(%fusion.1), to_apply=%region_1, backend_config={"estimated_cycles":"50"}
  %fusion.2 = f32[8]{0} fusion(%a), backend_config={"estimated_cycles":"30"}
  %all-reduce-done.7 = f32[100]{0} all-reduce-done(%all-reduce-start.7)
  ROOT %fusion.3 = f32[8]{0} fusion(%all-reduce-done.7), backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501


def test_cycles_and_all_reduces_are_read_from_a_schedule():
    schedule = read_schedule(PROGRAM)
    assert schedule.compute_cycles == 100 + 4 * 1000 + 30 + 7
    assert schedule.all_reduces == (
        AllReduce(num_bytes=12 * 4 + 10 * 2 + 4, overlapped_cycles=0, estimated_cycles=None),
        AllReduce(num_bytes=400, overlapped_cycles=30, estimated_cycles=50),
    )
    assert schedule.num_bytes == 472


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("is_scheduled=true, ", "", "not scheduled"), ("estimated_cycles", "cycles", "no estimated")],
)
def test_a_program_without_a_schedule_or_cycles_is_refused(old: str, new: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_schedule(PROGRAM.replace(old, new))


def test_a_ring_sends_each_share_around_twice():
    # 4 devices, 400 bytes: 6 transfers of 100 bytes at 50 bytes per second, each with 1 s latency.
    assert ring_all_reduce_seconds(400, 4, 50, 1) == pytest.approx(6 * (2 + 1))
    assert ring_all_reduce_seconds(400, 1, 50, 1) == 0


def test_a_torus_has_the_latency_of_its_axes():
    # 2 * (3 + 7) transfers in sequence; a ring of 32 chips would need 62.
    no_latency = torus_all_reduce_seconds(3200, (4, 8), 50, 0)
    assert no_latency == pytest.approx(62 * 100 / 50)
    assert torus_all_reduce_seconds(3200, (4, 8), 50, 1) - no_latency == pytest.approx(20)


def test_gpus_reduce_within_their_node_first():
    def seconds(num_gpus: int) -> float:
        return node_all_reduce_seconds(
            800, num_gpus, gpus_per_node=4, intra_node_bandwidth=100,
            inter_node_bandwidth=10, latency=0.5,
        )  # fmt: skip

    assert seconds(1) == 0
    assert seconds(2) == pytest.approx(2 * (4 + 0.5))
    assert seconds(4) == pytest.approx(6 * (2 + 0.5))
    # Across 3 nodes, each GPU exchanges its quarter, 200 bytes, in 4 transfers of a third each.
    assert seconds(12) == pytest.approx(6 * (2 + 0.5) + 4 * (200 / 3 / 10 + 0.5))


def test_a_step_waits_for_communication_that_is_not_hidden():
    assert exposed_seconds([3, 2], [1, 5], None) == 2
    assert exposed_seconds([3, 2], [1, 5], 0.25) == pytest.approx(3.75)
