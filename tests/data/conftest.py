"""A rendered scene in memory and on disk, for the tests of readers; those that damage it copy it.

`folders`, `images` and the rest of the unit tests need none of this.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vggt_deploy.data.eth3d import write_scene
from vggt_deploy.data.synthetic import SceneViews, render_views


@pytest.fixture(scope="session")
def views() -> SceneViews:
    """Four views of a room, 336 x 252: three times the size that the network gets in the tests."""
    return render_views(11, views=4, height=252, width=336, family="room")


@pytest.fixture(scope="session")
def scene(views: SceneViews, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on disk. Not to be changed."""
    folder = tmp_path_factory.mktemp("written") / "room"
    write_scene(folder, views)
    return folder
