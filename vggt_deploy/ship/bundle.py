"""Engines (and the ONNX that they were built from) -> one checked file for devices.

    bundle([Path("vggt-h200"), Path("vggt-orin")], Path("vggt.bundle"), with_onnx=Path("vggt-onnx"))

A bundle holds one variant of one model, built for any number of devices. The same inputs and key
give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from vggt_deploy import __version__
from vggt_deploy.artifact import locked, require_free_space
from vggt_deploy.errors import BundleError, UsageError
from vggt_deploy.manifest import MANIFEST_NAME, is_plain_name, read_manifest
from vggt_deploy.progress import Progress
from vggt_deploy.records import Manifest
from vggt_deploy.ship import signing
from vggt_deploy.ship.accuracy import read_card
from vggt_deploy.ship.container import BLOCK, INDEX, write_container
from vggt_deploy.ship.contract import contract
from vggt_deploy.ship.index import (
    ENGINES,
    ONNX,
    SCHEMA,
    Index,
    MemberRecord,
    engine_entry,
    to_json,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class BundleInfo:
    """What was written. `bytes`: of the whole file; `sha256`: of its index, which names the rest"""

    path: Path
    bytes: int
    sha256: str
    index: Index


@dataclass(frozen=True)
class _Part:
    """One folder that goes in, under `place`."""

    place: str
    folder: Path
    manifest: Manifest


def bundle(
    engines: Sequence[Path],
    output: Path,
    *,
    with_onnx: Path | None = None,
    sign_key: Path | None = None,
    accuracy: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BundleInfo:
    """Write `output`, whole or not at all, after checking every folder that goes in.

    Args:
        engines: folders that `build` wrote, all from the same artifact; none, if only the ONNX goes
            in, to be built on the device
        output: the file
        with_onnx: the artifact the engines were built from, so that `rebuild` works
        sign_key: Ed25519 private key, PEM
        accuracy: a comparison_report.json with the variant in it
        overwrite: replace a bundle that is there
        progress: told ("hashing" | "writing", bytes done, bytes in all)

    Raises:
        UsageError: nothing to put in, or two engines for one device and runtime.
        ArtifactError: a folder is not what its manifest says.
        BundleError: the folders do not belong together, or a key or report is no good.
    """
    key = None if sign_key is None else signing.read_private_key(sign_key)
    parts = _read_parts([Path(folder) for folder in engines], with_onnx, progress)
    index = _index(parts, accuracy, key)
    text = to_json(index)
    signature = None if key is None else signing.sign(key, text)
    paths = {
        f"{part.place}/{name}": part.folder / name
        for part in parts
        for name in (MANIFEST_NAME, *part.manifest.files)
    }
    members = [(member, paths[member.path]) for member in index.files]
    target = output.expanduser().resolve()
    with locked(target):
        _check_target(target, overwrite=overwrite)
        require_free_space(target, sum(m.bytes + 2 * BLOCK for m, _ in members) + 2 * len(text))
        unfinished = target.with_name(f".{target.name}.partial")  # a killed run's is overwritten
        try:
            with unfinished.open("wb") as file:
                write_container(file, text, signature, members, progress)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        except OSError as error:
            raise BundleError(
                f"{error.filename or target}: {error.strerror}; nothing is kept",
                "free some space on that disk, or write to another one with -o FILE",
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)
    return BundleInfo(output, target.stat().st_size, sha256(text).hexdigest(), index)


def _read_parts(
    engines: Sequence[Path], with_onnx: Path | None, progress: Progress | None
) -> list[_Part]:
    if not engines and with_onnx is None:
        raise UsageError("nothing to bundle", "give engine folders, or an artifact --with-onnx")
    folders = [*engines, *([] if with_onnx is None else [Path(with_onnx)])]
    manifests = _hashed(folders, progress)
    count = len(engines)
    names = _names(manifests[:count], engines)
    parts = [
        _Part(f"{ENGINES}/{name}", folder, manifest)
        for name, folder, manifest in zip(names, engines, manifests[:count], strict=True)
    ]
    if with_onnx is not None:
        parts.append(_Part(ONNX, Path(with_onnx), manifests[count]))
        _check_origin(parts)
    _check_alike(parts)
    return parts


def _hashed(folders: Sequence[Path], progress: Progress | None) -> list[Manifest]:
    """The manifests, after checking every file's hash."""
    sizes = [read_manifest(folder, check_hashes=False).bytes_total for folder in folders]
    done = 0

    def count(hashed: int) -> None:
        nonlocal done
        done += hashed
        if progress is not None:
            progress("hashing", done, sum(sizes))

    return [read_manifest(folder, progress=count) for folder in folders]


def _names(manifests: Sequence[Manifest], folders: Sequence[Path]) -> list[str]:
    """A name for each engine: its device; device and runtime where two are for one device."""
    devices = []
    for manifest, folder in zip(manifests, folders, strict=True):
        if manifest.engine is None:
            raise UsageError(
                f"{folder} is an artifact of kind {manifest.kind}, not an engine",
                "give folders that `vggt-deploy build` wrote; the ONNX goes in with --with-onnx",
            )
        device = manifest.engine.device
        devices.append((device, device if is_plain_name(device) else Path(device).stem))
    names = []
    for manifest, (device, name) in zip(manifests, devices, strict=True):
        assert manifest.engine is not None
        shared = sum(other == name for _, other in devices) > 1
        name = f"{name}-{manifest.engine.runtime}" if shared else name
        if not is_plain_name(name):
            raise UsageError(
                f"{device!r} can't be the name of an engine in a bundle",
                "name its device profile with letters, digits, - and _",
            )
        names.append(name)
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"two engines are for {name}", "put one engine per device and runtime in a bundle"
            )
    return names


def _check_alike(parts: Sequence[_Part]) -> None:
    """One bundle: one model, one variant, one size, the same outputs."""
    first = parts[0]
    for part in parts[1:]:
        for what in ("model", "variant", "precision", "height", "width", "outputs"):
            one, other = getattr(first.manifest, what), getattr(part.manifest, what)
            if one != other:
                raise BundleError(
                    f"{first.folder} and {part.folder} differ in {what}: {one} and {other}",
                    "a bundle holds one variant of one model: make one bundle for each",
                )


def _check_origin(parts: Sequence[_Part]) -> None:
    """Every engine must have been built from the ONNX that goes in with it."""
    onnx = parts[-1]
    if onnx.manifest.kind != "onnx":
        raise UsageError(
            f"{onnx.folder} is an engine, not an ONNX artifact",
            "give --with-onnx the folder that `vggt-deploy export` wrote",
        )
    hashes = {record.sha256 for record in onnx.manifest.files.values()}
    for part in parts[:-1]:
        engine = part.manifest.engine
        assert engine is not None
        if not {engine.onnx_sha256, engine.weights_sha256} <= hashes:
            raise BundleError(
                f"{part.folder} was not built from {onnx.folder} (graph "
                f"{engine.onnx_sha256[:16]}…, weights {engine.weights_sha256[:16]}…)",
                "give the artifact that the engine was built from, or build the engine again",
            )


def _index(parts: Sequence[_Part], accuracy: Path | None, key: Ed25519PrivateKey | None) -> Index:
    first = parts[0].manifest
    manifests, files = [], []
    for part in parts:
        # read_manifest has just checked these bytes; hashed here, and again while they are copied.
        data = (part.folder / MANIFEST_NAME).read_bytes()
        manifests.append(
            MemberRecord(f"{part.place}/{MANIFEST_NAME}", len(data), sha256(data).hexdigest())
        )
        files += [
            MemberRecord(f"{part.place}/{name}", record.bytes, record.sha256)
            for name, record in sorted(part.manifest.files.items())
        ]
    return Index(
        schema=SCHEMA,
        tool_version=__version__,
        model=first.model,
        variant=first.variant,
        precision=first.precision,
        height=first.height,
        width=first.width,
        contract=contract(first),
        engines=tuple(
            engine_entry(part.place.rpartition("/")[2], part.manifest)
            for part in parts
            if part.place != ONNX
        ),
        onnx=parts[-1].place == ONNX,
        accuracy=None if accuracy is None else read_card(Path(accuracy), first),
        signed_by=None if key is None else signing.fingerprint(key.public_key()),
        files=(*manifests, *files),
    )


def _check_target(target: Path, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_file():
        raise BundleError(f"{target} exists and is not a file", "give another name with -o FILE")
    if not overwrite:
        raise BundleError(
            f"{target} exists", "add --overwrite to replace it, or give another name with -o FILE"
        )
    with target.open("rb") as file:
        if file.read(len(INDEX) + 1) != INDEX.encode() + b"\0":
            raise BundleError(
                f"{target} is not replaced: it is no bundle, so vggt-deploy did not make it",
                "delete that file yourself if you mean it, or give another name with -o FILE",
            )
