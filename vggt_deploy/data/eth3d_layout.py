"""Where the parts of an ETH3D scene lie on disk.

    <scene>/images/dslr_images_undistorted/DSC_0286.JPG                  undistorted pictures
    <scene>/dslr_calibration_undistorted/{cameras,images,points3D}.txt   PINHOLE
    <scene>/images/dslr_images/DSC_0286.JPG                              pictures as they were shot
    <scene>/dslr_calibration_jpg/{cameras,images,points3D}.txt           THIN_PRISM_FISHEYE
    <scene>/ground_truth_depth/dslr_images/DSC_0286.JPG                  depth of the latter
    <scene>/masks_for_images/dslr_images/DSC_0286.png                    masks of the latter
    <scene>/ground_truth_depth/dslr_images_undistorted/DSC_0286.JPG      depth of the former: not
                                        ETH3D's, written with the scenes that this package renders

Each kind is an archive of its own. Unpacked into one place they merge; unpacked into folders of
their names, the same scene stands in each (`<scene>_dslr_depth/<scene>` beside
`<scene>_dslr_undistorted/<scene>`). Both are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vggt_deploy.data import colmap

IMAGES = "images"
PICTURES = "dslr_images_undistorted"
DISTORTED = "dslr_images"
CALIBRATION = "dslr_calibration_undistorted"
DISTORTED_CALIBRATION = "dslr_calibration_jpg"
DEPTH = "ground_truth_depth"
MASKS = "masks_for_images"
COLMAP_FOLDER = "colmap"
_COLMAP_PICTURES = frozenset({"images", "color"})
_CALIBRATION_OF = {PICTURES: CALIBRATION, DISTORTED: DISTORTED_CALIBRATION}
_BUNDLE = "multi_view_training"
_KINDS = (
    "dslr_undistorted",
    "dslr_jpg",
    "dslr_depth",
    "dslr_occlusion",
    "dslr_scan_eval",
    "dslr_raw",
)


@dataclass(frozen=True)
class SceneFolders:
    """Where the parts of a scene lie; of all but pictures and calibration, none need exist.

    depth: of the pictures' own pixels
    distorted_calibration, distorted_depth, masks: of the pictures as they were shot
    """

    root: Path
    pictures: Path
    calibration: Path
    depth: Path
    distorted_calibration: Path
    distorted_depth: Path
    masks: Path

    @property
    def is_distorted(self) -> bool:
        """Whether the pictures themselves are those that were shot."""
        return self.calibration == self.distorted_calibration


def scene_of(pictures: Path) -> SceneFolders | None:
    """The scene that a folder of pictures belongs to; None without a calibration."""
    pictures = pictures.absolute()
    named = _CALIBRATION_OF.get(pictures.name)
    if named is not None:
        root = root_of(pictures)
        calibration = _part(root, named)
        if calibration.is_dir():
            return _folders(root, pictures, calibration)
    roots = [pictures]
    if pictures.name.lower() in _COLMAP_PICTURES:
        roots.append(pictures.parent)
    for root in roots:
        if (root / COLMAP_FOLDER / colmap.IMAGES).is_file():
            return _folders(root, pictures, root / COLMAP_FOLDER)
    return None


def why_without_calibration(pictures: Path) -> str:
    """In words, for pictures of which `scene_of` knows no scene."""
    pictures = pictures.absolute()
    named = _CALIBRATION_OF.get(pictures.name)
    if named is not None:
        return f"there is no {named} beside {pictures.name}"
    return (
        f"they lie in no {PICTURES} or {DISTORTED} of a scene, and there is no folder "
        f"{COLMAP_FOLDER}"
    )


def root_of(pictures: Path) -> Path:
    """The scene's folder, for a folder of its pictures, with or without `images` between them."""
    above = pictures.parent
    return above.parent if above.name == IMAGES else above


def roots_of_scene(root: Path) -> Iterator[Path]:
    """`root`, then the folders of the same scene that other archives were unpacked into."""
    yield root
    archives = [f"{prefix}_{kind}" for prefix in (root.name, _BUNDLE) for kind in _KINDS]
    # What all of them lie in: one further up, if root itself is in a folder of its archive's name.
    folder = root.parent.parent if root.parent.name in archives else root.parent
    for other in (folder / root.name, *(folder / name / root.name for name in archives)):
        if other != root and other.is_dir():
            yield other


def _folders(root: Path, pictures: Path, calibration: Path) -> SceneFolders:
    return SceneFolders(
        root=root,
        pictures=pictures,
        calibration=calibration,
        depth=_part(root, f"{DEPTH}/{pictures.name}"),
        distorted_calibration=_part(root, DISTORTED_CALIBRATION),
        distorted_depth=_part(root, f"{DEPTH}/{DISTORTED}"),
        masks=_part(root, f"{MASKS}/{DISTORTED}"),
    )


def _part(root: Path, name: str) -> Path:
    """The first that exists; below `root` if none does."""
    return next((at / name for at in roots_of_scene(root) if (at / name).is_dir()), root / name)
