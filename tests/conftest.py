"""What all tests share: where optional data is, and what a machine must have for a marked test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Reference data that is not part of the repository; the test is skipped without it."""
    folder = Path(os.environ.get("VGGT_DEPLOY_SHARED", REPOSITORY.parent / "shared"))
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
