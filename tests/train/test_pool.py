from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plane_scenes import render_blind, render_plane

from vggt_deploy.errors import ArtifactError
from vggt_deploy.train import pool as pool_module
from vggt_deploy.train.pool import ScenePool, ensure_pool, source_hash
from vggt_deploy.train.recipe import SceneRecipe, TrainingRecipe

SCENES = SceneRecipe(count=20, views=2, height=28, width=42)
HERE = Path(__file__).parent


def build(cache: Path, scenes: SceneRecipe = SCENES, sources: str = "a") -> ScenePool:
    return ensure_pool(cache, scenes, workers=1, render=render_plane, sources=sources)


def same(a: ScenePool, b: ScenePool) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_scenes_lie_under_their_seeds_and_are_rendered_once(
    tmp_path: Path, make_pool: Callable[[SceneRecipe], ScenePool]
) -> None:
    first = build(tmp_path / "pool")
    assert same(first, make_pool(SCENES))
    assert not same(first, make_pool(replace(SCENES, width=56)))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pool").iterdir()}
    assert same(build(tmp_path / "pool"), first)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "pool").iterdir()}


@pytest.mark.parametrize(
    "scenes,sources",
    [(replace(SCENES, count=21), "a"), (replace(SCENES, height=42), "a"), (SCENES, "b")],
)
def test_a_stale_pool_is_refused(
    tmp_path: Path, scenes: SceneRecipe, sources: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_rendered", lambda *_: iter(()))
    build(tmp_path / "pool")
    with pytest.raises(ArtifactError, match="holds other scenes"):
        build(tmp_path / "pool", scenes, sources)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is no scene cache: it holds thesis"):
        build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pool.json").write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        build(tmp_path)


def test_a_killed_pool_goes_on_where_it_stopped(
    tmp_path: Path, make_pool: Callable[[SceneRecipe], ScenePool]
) -> None:
    cache = tmp_path / "pool"
    code = (
        "import sys; from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        f"    sys.path.insert(0, {str(HERE)!r})\n"
        "    from plane_scenes import render_slowly\n"
        "    from vggt_deploy.train.pool import ensure_pool\n"
        "    from vggt_deploy.train.recipe import SceneRecipe\n"
        f"    ensure_pool(Path({str(cache)!r}), {SCENES!r}, workers=1, render=render_slowly,\n"
        "                sources='a')\n"
    )
    script = tmp_path / "render.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    deadline = time.monotonic() + 60
    try:
        while not _done(cache) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = _done(cache)
    assert 0 < done < SCENES.count
    # The lock ends with the processes; the workers end by themselves when their parent is gone.
    counts: list[int] = []
    ensure_pool(
        cache,
        SCENES,
        workers=1,
        render=render_plane,
        sources="a",
        progress=lambda stage, count, total: counts.append(count),
    )
    assert counts[0] >= done
    assert counts[-1] == SCENES.count
    assert same(build(cache), make_pool(SCENES))


def _done(cache: Path) -> int:
    path = cache / "done.npy"
    if not (cache / "pool.json").is_file():
        return 0
    return int(np.load(path).sum())


def test_a_missing_flag_means_rendering_again(
    tmp_path: Path, make_pool: Callable[[SceneRecipe], ScenePool]
) -> None:
    """Data that was damaged by a crash before its flag was written does not survive."""
    cache = tmp_path / "pool"
    build(cache)
    images = np.load(cache / "images.npy", mmap_mode="r+")
    images[3] = 0
    images.flush()
    assert not same(build(cache), make_pool(SCENES))
    done = np.load(cache / "done.npy", mmap_mode="r+")
    done[3] = 0
    done.flush()
    assert same(build(cache), make_pool(SCENES))


def test_a_view_without_depth_stops_the_pool(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scene \d+ has a view with 0 pixels of known depth"):
        ensure_pool(tmp_path / "pool", SCENES, workers=1, render=render_blind, sources="a")


def test_the_hash_of_sources_sees_code_and_not_words(tmp_path: Path) -> None:
    source = tmp_path / "scene.py"
    source.write_text('"""Old."""\ndef height():\n    """Of a wall."""\n    return 2.5\n')
    first = source_hash(tmp_path)
    source.write_text('"""New."""\n# metres\ndef height():\n    return 2.5\n')
    assert source_hash(tmp_path) == first
    source.write_text('"""New."""\ndef height():\n    return 2.6\n')
    assert source_hash(tmp_path) != first


def test_the_key_names_the_package_of_the_scenes(
    tmp_path: Path, tiny_recipe: TrainingRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_rendered", lambda *_: iter(()))
    ensure_pool(tmp_path / "pool", tiny_recipe.scenes, workers=1)
    key = json.loads((tmp_path / "pool" / "pool.json").read_text())
    assert key["sources"] == source_hash()
