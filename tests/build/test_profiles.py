from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.build import profiles
from vggt_deploy.build.profiles import load_profile, parse_profile, shipped_profiles
from vggt_deploy.errors import UsageError
from vggt_deploy.records import FramesRange

MINIMAL = {
    "title": "a card",
    "runtimes": ["tensorrt-rtx"],
    "compute_capabilities": ["8.9"],
    "frames": ["1", "2:4:8"],
    "tf32": True,
}


def parse(**changes: Any) -> profiles.DeviceProfile:
    table = {key: value for key, value in {**MINIMAL, **changes}.items() if value is not None}
    return parse_profile(table, name="card", text="", source="card.toml")


def test_the_shipped_ones() -> None:
    assert set(shipped_profiles()) == {
        *("h100", "h200", "orin", "orin-jp72", "portable-rtx", "rtx4090", "rtx5090", "thor")
    }


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_profile_is_whole(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert tomllib.loads(profile.text)["title"] == profile.title
    assert set(profile.minimum_version) == set(profile.runtimes)
    assert profile.tf32  # the heads are FP32
    # A default export takes 1 to 16 frames: every profile must have a use for some of them.
    assert profile.frames[0].min == 1


@pytest.mark.parametrize("name", [n for n in shipped_profiles() if n not in ("rtx4090", "rtx5090")])
def test_what_tensorrt_rtx_cannot_name_is_not_for_it(name: str, rtx: Any) -> None:
    profile = load_profile(name)
    known = rtx.trt.ComputeCapability.__members__
    named = {f"SM{a}{b}" in known for a, b in profile.compute_capabilities}
    assert named == {"tensorrt-rtx" in profile.runtimes}


def test_orin_on_jetpack_6_takes_what_tensorrt_10_3_reads() -> None:
    profile = load_profile("orin")
    assert profile.minimum_version == {"tensorrt": (10, 3)}
    assert profile.compute_capabilities == ((8, 7),)
    assert profile.precisions == ("fp16", "bf16")


def test_defaults_are_tensorrts_own() -> None:
    profile = parse()
    assert profile.frames == (FramesRange(1, 1, 1), FramesRange(2, 4, 8))
    assert (profile.optimization_level, profile.hardware_compatibility) == (3, "NONE")
    assert profile.workspace_mib is None
    assert not profile.version_compatible
    assert not profile.timing_cache


@pytest.mark.parametrize(
    "changes, key, said",
    [
        ({"tf23": True}, "tf23", "no key"),
        ({"title": None}, "title", "missing"),
        ({"tf32": None}, "tf32", "missing"),
        ({"title": ""}, "title", "is ''"),
        ({"tf32": 1}, "tf32", "is 1"),
        ({"runtimes": []}, "runtimes", "is \\[\\]"),
        ({"runtimes": ["openvino"]}, "runtimes", "openvino"),
        ({"runtimes": ["tensorrt", "tensorrt"]}, "runtimes", "twice"),
        ({"runtimes": "tensorrt"}, "runtimes", "tensorrt"),
        ({"compute_capabilities": ["89"]}, "compute_capabilities", "89"),
        ({"compute_capabilities": [8.9]}, "compute_capabilities", "8.9"),
        ({"frames": ["4:2:8"]}, "frames", "4:2:8"),
        ({"frames": ["0"]}, "frames", "'0'"),
        ({"frames": ["1:2:4", "4:5:6"]}, "frames", "ascending"),
        ({"frames": ["5", "1"]}, "frames", "ascending"),
        ({"height": 350}, "width", "missing"),
        ({"width": 518}, "height", "missing"),
        ({"height": 351, "width": 518}, "height", "351"),
        ({"precisions": ["int8"]}, "precisions", "int8"),
        ({"workspace_mib": 0}, "workspace_mib", "is 0"),
        ({"workspace_mib": True}, "workspace_mib", "True"),
        ({"optimization_level": 6}, "optimization_level", "is 6"),
        ({"hardware_compatibility": "ampere_plus"}, "hardware_compatibility", "ampere_plus"),
        ({"hardware_compatibility": "AMPERE_PLUS"}, "hardware_compatibility", "TensorRT-RTX"),
        ({"timing_cache": True}, "timing_cache", "TensorRT-RTX"),
        ({"version_compatible": "no"}, "version_compatible", "'no'"),
        ({"minimum_version": {}}, "minimum_version", "{}"),
        ({"minimum_version": {"cuda": "13.0"}}, "minimum_version", "cuda"),
        ({"minimum_version": {"tensorrt": 10.3}}, "minimum_version.tensorrt", "10.3"),
        ({"minimum_version": {"tensorrt": "8.6"}}, "minimum_version.tensorrt", "oldest"),
    ],
)
def test_what_is_refused_is_named(changes: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse(**changes)
    assert caught.value.message.startswith(f"card.toml: {key} ")
    assert caught.value.fix


def test_a_profile_for_both_may_say_what_holds_for_tensorrt() -> None:
    both = ["tensorrt", "tensorrt-rtx"]
    profile = parse(runtimes=both, timing_cache=True, hardware_compatibility="AMPERE_PLUS")
    assert profile.timing_cache


def test_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = Path(profiles.__file__).parents[2] / "engines" / "h200.toml"
    path.write_text(text.read_text().replace('"9:16:32"', '"9:10:11"'))
    profile = load_profile(path)
    assert (profile.name, profile.frames[-1]) == ("mine", FramesRange(9, 10, 11))
    assert profile.text == path.read_text()


@pytest.mark.parametrize("given", ["h300", "nowhere/mine.toml"])
def test_an_unknown_one_lists_what_there_is(given: str) -> None:
    with pytest.raises(UsageError, match=given) as caught:
        load_profile(given)
    assert "portable-rtx" in caught.value.fix


def test_the_path_of_a_shipped_one_where_there_is_no_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        load_profile("engines/rtx4090.toml")
    assert "--device rtx4090" in caught.value.fix


def test_an_installed_package_has_them_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = load_profile("h200").text
    (tmp_path / "packaged.toml").write_text(text)
    monkeypatch.setattr(profiles, "_PACKAGED", tmp_path)
    assert shipped_profiles() == ("packaged",)
    assert load_profile("packaged").text == text


@pytest.mark.parametrize("content", [b"title = ", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.toml"):
        load_profile(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(profiles._KEYS)), VALUES)
def test_no_value_ends_in_anything_but_a_usage_error(key: str, value: Any) -> None:
    try:
        profile = parse_profile({**MINIMAL, key: value}, name="n", text="", source="n.toml")
    except UsageError:
        return
    assert getattr(profile, key) is not None
