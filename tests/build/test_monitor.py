from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.build.monitor import BuildProgress


def test_shares_of_open_phases_add_up() -> None:
    state = BuildProgress()
    state.start("root", None, 4)
    assert state.permille() == 0
    state.step("root", 0)
    assert state.permille() == 250
    state.start("child", "root", 5)
    state.step("child", 1)
    assert state.permille() == 250 + 100
    state.start("grandchild", "child", 2)
    state.step("grandchild", 0)
    assert state.permille() == 250 + 125
    state.finish("grandchild")
    state.finish("child")
    state.step("root", 1)
    assert state.permille() == 500
    state.step("root", 3)
    assert state.permille() == 1000


def test_a_build_that_ends_early_is_not_done() -> None:
    state = BuildProgress()
    state.start("root", None, 4)
    state.step("root", 0)
    state.finish("root")
    assert state.permille() == 250


def test_a_phase_that_ends_early_does_not_set_it_back() -> None:
    state = BuildProgress()
    state.start("root", None, 2)
    state.start("child", "root", 10)
    state.step("child", 7)
    before = state.permille()
    state.finish("child")
    state.start("child", "root", 10)
    state.step("child", 0)
    assert state.permille() == before == 400


def test_cancelled_is_said_at_the_next_step() -> None:
    state = BuildProgress()
    state.start("root", None, 2)
    assert state.step("root", 0)
    state.cancel()
    assert not state.step("root", 1)
    assert not state.step("never started", 0)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["start", "step", "finish"]),
        st.sampled_from("abc"),
        st.sampled_from(["a", "b", None]),
        st.integers(0, 5),
    ),
    max_size=40,
)


@given(EVENTS)
def test_it_only_grows_whatever_tensorrt_says(
    events: list[tuple[str, str, str | None, int]],
) -> None:
    state = BuildProgress()
    state.start("root", None, 3)
    before = 0
    for kind, name, parent, number in events:
        if kind == "start":
            # A phase is never its own ancestor.
            state.start(name, parent if parent is not None and parent < name else "root", number)
        elif kind == "step":
            state.step(name, number)
        else:
            state.finish(name)
        assert before <= state.permille() <= 1000
        before = state.permille()
