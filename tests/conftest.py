"""What all tests share: where optional data is, and what a machine must have for a marked test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vggt_deploy.data.synthetic import render_views

pytest_plugins = ("browser", "fake_comparison")  # in tests/support

REPOSITORY = Path(__file__).resolve().parents[1]

# Under nohup, or in the background of a script, Ctrl-C is ignored, and all that the tests start
# inherits that. The tests of Ctrl-C want it back.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def write_pictures() -> Callable[..., tuple[Path, ...]]:
    """`write_pictures(folder, count, size=(width, height))`: views of one rendered room, as PNG."""

    def write(folder: Path, count: int, *, size: tuple[int, int]) -> tuple[Path, ...]:
        width, height = size
        drawn = render_views(0, views=count, height=height, width=width, family="room")
        folder.mkdir(parents=True, exist_ok=True)
        paths = tuple(folder / f"view_{index:03d}.png" for index in range(count))
        for path, image in zip(paths, drawn.images, strict=True):
            Image.fromarray(image).save(path)
        return paths

    return write


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Reference data that is not part of the repository; the test is skipped without it."""
    folder = Path(os.environ.get("VGGT_DEPLOY_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no reference data in {folder} (set VGGT_DEPLOY_SHARED)")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where no NVIDIA driver answers."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from vggt_deploy.doctor import check_cuda_driver

    check = check_cuda_driver()
    if check.state != "ok":
        skip = pytest.mark.skip(reason=f"no CUDA device: {check.found}")
        for item in marked:
            item.add_marker(skip)
