"""The training scenes, rendered once by worker processes into memory-mapped arrays.

    CACHE/pool.json         what the scenes depend on; a cache of anything else is refused
    CACHE/images.npy        uint8   [N, V, H, W, 3]
    CACHE/depth.npy         float16 [N, V, H, W]      metres, inf where nothing is known
    CACHE/extrinsic.npy     float64 [N, V, 3, 4]      camera from world
    CACHE/intrinsic.npy     float64 [N, V, 3, 3]      pixel centres at (u + 0.5, v + 0.5)
    CACHE/done.npy          uint8   [N]               1 once a scene's data is on disk

A flag is written after its data was synced, so a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import ast
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.artifact import locked, require_free_space
from vggt_deploy.errors import ArtifactError
from vggt_deploy.progress import Progress, silent
from vggt_deploy.train.recipe import SceneRecipe

KEY_FILE = "pool.json"
DONE_FILE = "done.npy"
CHUNK = 8  # scenes that a worker renders between two syncs
LEAST_KNOWN_PIXELS = 16  # of a view; a scene of which nothing is known has no scale
_STALE_FIX = "give another folder with --cache, or delete this one"


class Views(Protocol):
    """What the pool keeps of a rendered scene (`data.synthetic.SceneViews` is one)."""

    @property
    def images(self) -> NDArray[np.uint8]: ...
    @property
    def depth(self) -> NDArray[np.float32]: ...
    @property
    def extrinsic(self) -> NDArray[np.float64]: ...
    @property
    def intrinsic(self) -> NDArray[np.float64]: ...


Renderer = Callable[[int, SceneRecipe], Views]


def render_scene(seed: int, scenes: SceneRecipe) -> Views:
    """The scene of a seed as the pool holds it."""
    from vggt_deploy.data.synthetic import render_views

    return render_views(seed, views=scenes.views, height=scenes.height, width=scenes.width)


@dataclass(frozen=True)
class ScenePool:
    """N complete scenes of V views, mapped read-only."""

    images: NDArray[np.uint8]
    depth: NDArray[np.float16]
    extrinsic: NDArray[np.float64]
    intrinsic: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.images)


_DTYPES = {"images": "u1", "depth": "<f2", "extrinsic": "<f8", "intrinsic": "<f8"}


def _shapes(scenes: SceneRecipe) -> dict[str, tuple[int, ...]]:
    lead = (scenes.count, scenes.views)
    frame = (scenes.height, scenes.width)
    return {
        "images": (*lead, *frame, 3),
        "depth": (*lead, *frame),
        "extrinsic": (*lead, 3, 4),
        "intrinsic": (*lead, 3, 3),
    }


def source_hash(package: Path | None = None) -> str:
    """Hash of what the renderer's sources compute: comments and docstrings may change freely."""
    if package is None:
        from vggt_deploy.data import synthetic

        package = Path(synthetic.__path__[0])
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode())
        digest.update(ast.dump(_without_docstrings(tree)).encode())
    return digest.hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return tree


def ensure_pool(
    cache: Path,
    scenes: SceneRecipe,
    *,
    workers: int,
    progress: Progress | None = None,
    render: Renderer = render_scene,
    sources: str | None = None,
) -> ScenePool:
    """The pool of `scenes` in `cache`, rendering what it lacks.

    Raises:
        ArtifactError: the cache holds other scenes, is being written, or the disk is too small.
    """
    report = progress or silent
    cache = cache.expanduser().resolve()
    with locked(cache):
        _open_cache(cache, scenes, source_hash() if sources is None else sources)
        done = np.load(cache / DONE_FILE, mmap_mode="r+")
        missing = [int(seed) for seed in np.flatnonzero(done == 0)]
        report("scenes", scenes.count - len(missing), scenes.count)
        for chunk in _rendered(cache, scenes, missing, workers, render):
            done[chunk] = 1
            done.flush()
            report("scenes", int(np.count_nonzero(done)), scenes.count)
    return ScenePool(**{name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in _DTYPES})


def _open_cache(cache: Path, scenes: SceneRecipe, sources: str) -> None:
    """Check the cache's key, or lay out an empty cache (the flags, then the key last)."""
    key = {"scenes": asdict(scenes), "sources": sources}
    if (cache / KEY_FILE).is_file():
        if _read_key(cache / KEY_FILE) != key:
            raise ArtifactError(
                f"{cache} holds other scenes: the recipe's scenes or the renderer have changed",
                _STALE_FIX,
            )
        return
    if cache.exists() and any(cache.iterdir()):
        known = {f"{name}.npy" for name in (*_DTYPES, "done")} | {f".{KEY_FILE}"}
        if strange := sorted({path.name for path in cache.iterdir()} - known):
            raise ArtifactError(f"{cache} is no scene cache: it holds {strange[0]}", _STALE_FIX)
    cache.mkdir(parents=True, exist_ok=True)
    shapes = _shapes(scenes)
    sizes = [int(np.prod(shapes[name])) * np.dtype(_DTYPES[name]).itemsize for name in shapes]
    require_free_space(cache, sum(sizes))
    for name, shape in shapes.items():
        np.lib.format.open_memmap(cache / f"{name}.npy", "w+", _DTYPES[name], shape)
    np.lib.format.open_memmap(cache / DONE_FILE, "w+", "u1", (scenes.count,))
    temporary = cache / f".{KEY_FILE}"
    temporary.write_text(json.dumps(key, indent=1), encoding="utf-8")
    temporary.rename(cache / KEY_FILE)


def _read_key(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error}", _STALE_FIX) from error


def _rendered(
    cache: Path, scenes: SceneRecipe, seeds: list[int], workers: int, render: Renderer
) -> Iterator[list[int]]:
    """Chunks of seeds whose data is on disk, in the order in which they are finished."""
    chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
    if not chunks:
        return
    # Spawned, not forked: this process may hold torch's threads, and a fork would copy their locks.
    context = multiprocessing.get_context("spawn")
    count = min(workers, len(chunks))
    with ProcessPoolExecutor(count, mp_context=context, initializer=_worker_begins) as executor:
        jobs = {executor.submit(_render_chunk, cache, scenes, chunk, render) for chunk in chunks}
        try:
            while jobs:
                finished, jobs = wait(jobs, return_when=FIRST_COMPLETED)
                for job in finished:
                    yield job.result()
        except BrokenProcessPool as error:
            raise ArtifactError(
                "a process that renders scenes was killed",
                "run it again, it goes on where it stopped; with fewer --threads if memory ran out",
            ) from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _worker_begins() -> None:
    """Ctrl-C is the parent's to handle, and a parent that was killed takes its workers along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _render_chunk(
    cache: Path, scenes: SceneRecipe, seeds: list[int], render: Renderer
) -> list[int]:
    """Render scenes into the arrays and sync them (in a worker process)."""
    arrays = {name: np.load(cache / f"{name}.npy", mmap_mode="r+") for name in _DTYPES}
    for seed in seeds:
        views = render(seed, scenes)
        known = np.isfinite(views.depth).sum(axis=(1, 2))
        if known.min() < LEAST_KNOWN_PIXELS:
            raise ValueError(f"scene {seed} has a view with {known.min()} pixels of known depth")
        for name, array in arrays.items():
            # Depths beyond float16's 65504 m become inf: not known, which is what they are.
            with np.errstate(over="ignore"):
                array[seed] = getattr(views, name)
    for array in arrays.values():
        array.flush()
    return seeds


def worker_count(threads: int | None) -> int:
    """Processes that render: as many as asked, or as the cores that this process may use."""
    return threads or len(os.sched_getaffinity(0))
