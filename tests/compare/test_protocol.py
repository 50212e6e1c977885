"""The protocol beside the numbers says which frames, masks and alignments they are of."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vggt_deploy.compare.protocol import MetricProtocol, protocol_of
from vggt_deploy.compare.scenes import Scene, Scenes
from vggt_deploy.compare.truth import pair_errors_deg
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M, TOLERANCES_M, VOXEL_M
from vggt_deploy.data.eth3d import RESAMPLED
from vggt_deploy.data.frame_lists import FrameList
from vggt_deploy.data.ground_truth import GroundTruth
from vggt_deploy.data.masks import MaskUse
from vggt_deploy.errors import CompareError

TRUTH = GroundTruth(
    extrinsic=np.tile(np.eye(3, 4), (2, 1, 1)),
    intrinsic=np.tile(np.eye(3), (2, 1, 1)),
    depth=np.ones((2, 28, 42), np.float32),
    note="",
)
LISTED = FrameList(
    name="eth3d-5",
    sha256="0123456789abcdef" * 4,
    scenes={"a": ("0.png", "1.png"), "b": ("0.png", "1.png"), "c": ("0.png", "1.png")},
    source="",
    rule="",
    left_out={},
)


def scene(name: str, truth: GroundTruth | None) -> Scene:
    return Scene(
        name=name,
        pixels=np.zeros((2, 3, 28, 42), np.float32),
        paths=(Path("0.png"), Path("1.png")),
        sha256=("", ""),
        skipped=(),
        note="",
        truth=truth,
        no_truth=None if truth else "no calibration",
    )


def of(*truths: GroundTruth | None, listed: FrameList | None = None) -> MetricProtocol:
    items = tuple(scene(f"scene_{index}", truth) for index, truth in enumerate(truths))
    return protocol_of(Scenes(items, "crop", False, listed))


def test_a_frame_list_is_named_by_its_name_and_hash() -> None:
    found = of(TRUTH, TRUTH, listed=LISTED).frames
    assert found.startswith(
        "frame list eth3d-5 (sha256 0123456789ab), 2 of its 3 scenes, 2 pictures"
    )
    assert "cropped to 28 x 42" in found
    other = of(TRUTH, TRUTH, listed=replace(LISTED, sha256="f" * 64)).frames
    assert other != found
    without = of(TRUTH, TRUTH).frames
    assert without.startswith("the first 2 pictures of each folder")
    for each in (found, without):
        assert each.endswith("not ETH3D's official benchmark")


@pytest.mark.parametrize(
    "masks, expected",
    [
        ((None, None), "no masks"),
        (
            (MaskUse(3, 2, 40), MaskUse(3, 1, 2)),
            "mask bits 1 and 2 dropped (42 pixels of depth; masks of 3 of 4 frames)",
        ),
        (
            (MaskUse(2, 2, 40), None),
            "mask bit 2 dropped (40 pixels of depth; masks of 2 of 4 frames)",
        ),
        (
            (MaskUse(2, 2, 40), MaskUse(1, 2, 1)),
            "mask bit 2 dropped or mask bit 1 dropped (41 pixels of depth; masks of 4 of 4 frames)",
        ),
    ],
)
def test_masks_come_from_the_truth(masks: tuple[MaskUse | None, ...], expected: str) -> None:
    assert of(*(replace(TRUTH, masks=each) for each in masks)).masks == expected


def test_scenes_without_depth_have_no_masks_to_count() -> None:
    masked = replace(TRUTH, masks=MaskUse(3, 2, 40))
    assert "masks of 2 of 2 frames" in of(masked, None, replace(TRUTH, depth=None)).masks


def test_of_how_many_frames_depth_is_known() -> None:
    """Pictures without a pose or depth count as frames; a frame with one pixel is known."""
    assert TRUTH.depth is not None
    one = np.full_like(TRUTH.depth, np.inf)
    one[1, 3, 4] = 2.0
    assert of(TRUTH).depth.endswith("; true depth of 2 of 2 frames")
    found = of(TRUTH, replace(TRUTH, depth=one), replace(TRUTH, depth=None), None)
    assert found.depth.endswith("; true depth of 3 of 8 frames")
    moved = replace(TRUTH, note=f"cameras from x; depth of 2 of 2 frames, {RESAMPLED}")
    assert of(moved, TRUTH).depth.endswith(
        "; true depth of 4 of 4 frames, in 1 of 2 scenes resampled from the pictures as they were "
        "shot"
    )


def test_what_becomes_of_frames_on_their_side() -> None:
    def frames(**changes: Any) -> str:
        first = replace(scene("a", TRUTH), **changes)
        return protocol_of(Scenes((first,), "crop", False)).frames

    assert "side" not in frames()
    end = "not ETH3D's official benchmark"
    assert frames(on_side=("1.png",)).endswith(
        f"28 x 42, frames on their side kept (1: 1.png), {end}"
    )
    assert frames(dropped=("2.png", "3.png")).endswith(
        f"28 x 42, frames on their side left out (2), {end}"
    )
    # Asked for and none found is another rule than not asked for.
    assert "frames on their side left out (0)" in frames(dropped=())
    both = tuple(replace(scene(name, TRUTH), on_side=("1.png",)) for name in "ab")
    found = protocol_of(Scenes(both, "crop", False, LISTED)).frames
    assert "frames on their side kept (2: a/1.png, b/1.png), not" in found


def test_the_sentences_say_what_the_code_does() -> None:
    """Flipped baselines and pairs without one, as `pose_truth` counts them; the unit."""
    poses = of(TRUTH).poses
    assert "a flipped baseline counts as 180 degrees" in poses
    assert "a pair without a true baseline counts its rotation alone" in poses
    true = np.tile(np.eye(3, 4), (2, 1, 1))
    true[1, 0, 3] = 1.0
    flipped = true.copy()
    flipped[1, 0, 3] = -1.0
    still = np.tile(np.eye(3, 4), (2, 1, 1))
    assert pair_errors_deg(flipped, true) == pytest.approx([180.0])
    assert pair_errors_deg(flipped, still) == pytest.approx([0.0])
    assert "in the scene's unit, read as metres" in of(TRUTH).points


def test_the_constants_of_the_clouds_are_the_ones_that_are_used() -> None:
    found = of(TRUTH)
    assert f"thinned to {VOXEL_M:g} m" in found.points
    assert "F-score at 0.01, 0.02, 0.05, 0.1, 0.2, 0.5 m" in found.points
    assert f"losses of it at {LOSS_TOLERANCE_M:g} m;" in found.points
    assert LOSS_TOLERANCE_M in TOLERANCES_M
    for part in asdict(found).values():
        assert part in found.line


def test_json_both_ways() -> None:
    found = of(TRUTH)
    assert MetricProtocol.from_json(asdict(found)) == found
    with pytest.raises(CompareError, match="lacks the field 'masks'"):
        MetricProtocol.from_json({k: v for k, v in asdict(found).items() if k != "masks"})
