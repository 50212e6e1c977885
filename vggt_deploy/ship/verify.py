"""Check a bundle, say whether this device can run it, and unpack it.

In this order: signature, index, schema, names, sizes, every hash, manifests, plan headers, device.
Nothing is deserialized here, and nothing that was unpacked becomes visible before all is checked.
`run` and `inspect` take folders, so `unpack` comes before them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from vggt_deploy.artifact import writing
from vggt_deploy.engines.device import CudaDevice, cuda_device
from vggt_deploy.engines.plan_header import HEADER_BYTES, PlanHeader, read_plan_header
from vggt_deploy.errors import BundleError, UsageError
from vggt_deploy.manifest import MANIFEST_NAME, from_json, read_manifest
from vggt_deploy.progress import Progress
from vggt_deploy.records import Manifest
from vggt_deploy.ship.container import OpenBundle, check_members, open_bundle, read_member
from vggt_deploy.ship.fit import (
    Fit,
    Version,
    fit,
    installed_version,
    numbers,
    same_version,
)
from vggt_deploy.ship.index import (
    ENGINES,
    ONNX,
    EngineEntry,
    Index,
    MemberRecord,
    engine_entry,
)


@dataclass(frozen=True)
class Verification:
    """A bundle that is whole and unchanged, and what this device can do with it.

    signature: "unsigned", "unproven" (signed, but no key was given to check against) or "valid"
    device: the CUDA device, why there is none, or None where it was not asked for
    installed: runtime -> version of the TensorRT that is here, or why there is none
    fits: one verdict per engine; empty where the device was not asked for
    advice: what to do next, in words
    """

    bundle: Path
    bytes: int
    index: Index
    signature: Literal["unsigned", "unproven", "valid"]
    signer: str | None
    device: CudaDevice | str | None
    installed: dict[str, str]
    fits: tuple[Fit, ...]
    advice: str

    @property
    def runnable(self) -> tuple[str, ...]:
        """Names of the engines that fit this device."""
        return tuple(fit.engine for fit in self.fits if fit.state == "fits")

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**dataclasses.asdict(self), "bundle": str(self.bundle)}


def verify(
    bundle: Path,
    *,
    public_key: Path | None = None,
    device: bool = True,
    progress: Progress | None = None,
) -> Verification:
    """Check everything; `device=False` leaves this machine out of it.

    Args:
        bundle: the file
        public_key: PEM; the bundle must be signed with the private key to it
        device: whether to look at the installed TensorRT and the GPU
        progress: told ("checking", bytes done, bytes in all)

    Raises:
        BundleError: changed, cut short, unsigned or signed by another key, another schema, names
            that reach outside, or parts that contradict each other.
        ArtifactError: a manifest inside has another schema or is malformed.
    """
    bundle = Path(bundle)
    with open_bundle(bundle, public_key) as opened:
        check_members(opened, progress=progress)
        manifests = _manifests(opened)
        headers = {
            entry.name: _plan_header(opened, entry, manifests[f"{ENGINES}/{entry.name}"])
            for entry in opened.index.engines
        }
        index, signature = opened.index, opened.signature
    here = cuda_device() if device else None
    runtimes = sorted({entry.runtime for entry in index.engines}) if device else []
    installed = {runtime: installed_version(runtime) for runtime in runtimes}
    fits = (
        ()
        if here is None
        else tuple(
            fit(entry, headers[entry.name], installed[entry.runtime], here)
            for entry in index.engines
        )
    )
    return Verification(
        bundle=bundle,
        bytes=bundle.stat().st_size,
        index=index,
        signature=signature.state,
        signer=signature.signer,
        device=here,
        installed={
            runtime: version if isinstance(version, str) else ".".join(map(str, version))
            for runtime, version in installed.items()
        },
        fits=fits,
        advice=_advice(bundle, index, fits, installed),
    )


def unpack(
    bundle: Path,
    output_dir: Path,
    *,
    public_key: Path | None = None,
    engine: str | None = None,
    onnx: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """One engine (or, with `onnx`, the ONNX artifact) as a folder for `run` and `inspect`.

    The whole bundle is checked while it is copied; the folder appears only if all of it is sound.

    Raises:
        UsageError: several engines, and none or more than one fits this device: give `engine`.
        BundleError, ArtifactError: as `verify`.
    """
    target = Path(output_dir)
    with open_bundle(Path(bundle), public_key) as opened:
        entry = None if onnx else choose_engine(opened.index, engine)
        place = ONNX if entry is None else f"{ENGINES}/{entry.name}"
        if onnx and not opened.index.onnx:
            raise BundleError(
                f"{bundle} holds no ONNX", "make the bundle with --with-onnx to rebuild from it"
            )
        needed = sum(m.bytes for m in opened.index.files if m.path.startswith(f"{place}/"))
        with writing(target, overwrite=overwrite, needed_bytes=needed) as folder:

            def sink(member: MemberRecord) -> BinaryIO | None:
                parent, _, name = member.path.rpartition("/")
                return (folder / name).open("xb") if parent == place else None

            check_members(opened, sink, progress)
            manifest = read_manifest(folder, check_hashes=False)
            _check_part(opened, place, manifest)
            if entry is not None:
                _plan_header(opened, entry, manifest)
    return target


def _manifests(opened: OpenBundle) -> dict[str, Manifest]:
    """Folder -> manifest, each agreeing with the index. Call after `check_members`."""
    places = [f"{ENGINES}/{entry.name}" for entry in opened.index.engines]
    manifests = {}
    for place in [*places, *([ONNX] if opened.index.onnx else [])]:
        path = f"{place}/{MANIFEST_NAME}"
        try:
            text = read_member(opened, path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{opened.path}: {path} is not UTF-8", "make it again") from error
        manifests[place] = from_json(text, source=opened.path / path)
        _check_part(opened, place, manifests[place])
    return manifests


def _check_part(opened: OpenBundle, place: str, manifest: Manifest) -> None:
    """A manifest inside must list the same files as the index, and say the same of the engine."""
    fix = "do not use it: its parts were put together from different bundles"
    listed = {
        member.path: (member.bytes, member.sha256)
        for member in opened.index.files
        if member.path.rpartition("/")[0] == place and not member.path.endswith(f"/{MANIFEST_NAME}")
    }
    own = {f"{place}/{name}": (r.bytes, r.sha256) for name, r in manifest.files.items()}
    if listed != own:
        raise BundleError(
            f"{opened.path}: the manifest of {place} and the index list different files", fix
        )
    index = opened.index
    same = (index.model, index.variant, index.height, index.width)
    if same != (manifest.model, manifest.variant, manifest.height, manifest.width):
        raise BundleError(f"{opened.path}: {place} is of another model than the index says", fix)
    if (place == ONNX) != (manifest.kind == "onnx"):
        raise BundleError(f"{opened.path}: {place} is of kind {manifest.kind}", fix)
    if place != ONNX:
        name = place.rpartition("/")[2]
        if engine_entry(name, manifest) != dataclasses.replace(
            index.engine(name), rebuild=engine_entry(name, manifest).rebuild
        ):
            raise BundleError(
                f"{opened.path}: index and manifest say different things of the engine {name}", fix
            )


def _plan_header(opened: OpenBundle, entry: EngineEntry, manifest: Manifest) -> PlanHeader:
    """The plan's own word on who built it, against the manifest's. Call after `check_members`."""
    assert manifest.engine is not None
    path = f"{ENGINES}/{entry.name}/{manifest.engine.file}"
    header = read_plan_header(read_member(opened, path, HEADER_BYTES))
    said = (entry.runtime, entry.runtime_version)
    is_ = (header.runtime, header.version_text)
    agree = header.version is None or same_version(header.version, numbers(entry.runtime_version))
    if entry.runtime != header.runtime or not agree:
        raise BundleError(
            f"{opened.path}: {path} was built by {' '.join(map(str, is_))}, the index says "
            f"{' '.join(said)}",
            "do not use it: build the engine again",
        )
    return header


def _advice(
    bundle: Path, index: Index, fits: tuple[Fit, ...], installed: dict[str, Version | str]
) -> str:
    """What to do next; "" where the device was not looked at and nothing can be said."""
    runnable = [fit.engine for fit in fits if fit.state == "fits"]
    if runnable:
        return f"vggt-deploy unpack {bundle} --engine {runnable[0]} -o ENGINE"
    unknown = [fit.engine for fit in fits if fit.state == "not known"]
    if unknown:
        return f"nothing speaks against {', '.join(unknown)}: verify it on a device with a GPU"
    for found in fits:
        entry = index.engine(found.engine)
        others = (f.state for f in found.findings if f.what != "TensorRT version")
        if isinstance(installed[entry.runtime], str) and "does not fit" not in others:
            extra = "rtx" if entry.runtime == "tensorrt-rtx" else "tensorrt"
            return (
                f"install {entry.runtime} {entry.runtime_version} for {entry.name} "
                f"(pip install 'vggt-deploy[{extra}]'), and verify again"
            )
    if index.onnx:
        return (
            f"vggt-deploy rebuild {bundle} -o ENGINE builds the engine on the device that runs it"
        )
    return "build the engine on the device: no ONNX is inside (bundle --with-onnx)" if fits else ""


def choose_engine(
    index: Index, name: str | None, *, fix: str = "say so with --engine NAME"
) -> EngineEntry:
    """The engine of that name; without one, the only engine, or the only one for this device.

    fix: how the caller's user says which one.
    """
    if name is not None:
        return index.engine(name)
    if not index.engines:
        raise UsageError(
            "the bundle holds no engine, only the ONNX", "make one with `vggt-deploy rebuild`"
        )
    if len(index.engines) == 1:
        return index.engines[0]
    device = cuda_device()
    matching = [
        entry
        for entry in index.engines
        if isinstance(device, CudaDevice)
        and device.compute_capability in entry.compute_capabilities
    ]
    if len(matching) == 1:
        return matching[0]
    if isinstance(device, str):
        why = f"there is no GPU here to choose by ({device})"
    else:
        why = (
            f"{len(matching) or 'none'} of them are for this GPU ({device.name}, compute "
            f"capability {device.compute_capability})"
        )
    names = ", ".join(entry.name for entry in index.engines)
    raise UsageError(f"which engine? The bundle holds {names}, and {why}", fix)
