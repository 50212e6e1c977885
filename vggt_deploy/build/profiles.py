"""Device profiles: what an engine for one kind of device is built with, as a TOML file.

    title = "NVIDIA H200 (Hopper, 141 GB)"
    runtimes = ["tensorrt"]
    compute_capabilities = ["9.0"]
    frames = ["1", "2:4:8", "9:16:32"]      # optimization profiles, min:opt:max
    tf32 = true

Reading is strict: an unknown key or a wrong type is refused with the file's name and the key. What
the installed TensorRT lacks is refused later (`settings`), when it is known. `engines/README.md`
describes every key.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from vggt_deploy.engines.tensorrt.library import OLDEST, TENSORRT_RUNTIMES, TensorRTRuntime
from vggt_deploy.errors import UsageError
from vggt_deploy.options import PATCH_PX, Precision, parse_frames
from vggt_deploy.records import FramesRange

HardwareCompatibility = Literal["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"]
MAX_LEVEL = 5  # TensorRT reads anything above as 5

# In a wheel the profiles lie in the package; in a checkout in the folder that a user edits.
_PACKAGED = Path(__file__).parent / "devices"
_CHECKOUT = Path(__file__).parents[2] / "engines"


@dataclass(frozen=True)
class DeviceProfile:
    """One device profile. `name` is the file's stem, `text` its content.

    compute_capabilities: (major, minor). With tensorrt, those of the devices that it is for (the
        machine that builds must have one of them); with tensorrt-rtx, the targets
    frames: one optimization profile each, ascending and disjoint
    height, width: pixels; None takes the artifact's
    precisions: of artifacts that suit the device; empty: any
    workspace_mib: most scratch memory of a kernel; None leaves it to TensorRT
    minimum_version: oldest version per runtime that can build for the device
    """

    name: str
    text: str
    title: str
    runtimes: tuple[TensorRTRuntime, ...]
    compute_capabilities: tuple[tuple[int, int], ...]
    frames: tuple[FramesRange, ...]
    tf32: bool
    height: int | None = None
    width: int | None = None
    precisions: tuple[Precision, ...] = ()
    workspace_mib: int | None = None
    optimization_level: int = 3
    hardware_compatibility: HardwareCompatibility = "NONE"
    version_compatible: bool = False
    timing_cache: bool = False
    minimum_version: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with vggt-deploy."""
    return tuple(sorted(path.stem for path in _shipped_folder().glob("*.toml")))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """A shipped profile by its name, or any profile by its path.

    Raises:
        UsageError: there is no such profile, or it says something that makes no sense.
    """
    path = _find(str(name_or_path))
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the device profile {path} can't be read ({error})", "give a readable TOML file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"the device profile {path} is not TOML ({error})",
            "correct that line; engines/README.md shows a whole profile",
        ) from error
    return parse_profile(table, name=path.stem, text=text, source=str(path))


def parse_profile(table: Mapping[str, Any], *, name: str, text: str, source: str) -> DeviceProfile:
    """A profile from what its TOML says; `source` is named in errors.

    Raises:
        UsageError: naming the source and the key.
    """
    if unknown := sorted(set(table) - set(_KEYS)):
        raise _wrong(
            source, unknown[0], "is no key of a device profile", f"the keys are {', '.join(_KEYS)}"
        )
    if missing := [key for key in _REQUIRED if key not in table]:
        raise _wrong(source, missing[0], "is missing", "every profile says it")
    values = {key: _KEYS[key](table[key], key, source) for key in _KEYS if key in table}
    profile = DeviceProfile(name=name, text=text, **values)
    if (profile.height is None) != (profile.width is None):
        key = "width" if profile.width is None else "height"
        raise _wrong(source, key, "is missing", "give both height and width, or neither")
    if profile.runtimes == ("tensorrt-rtx",):
        # One key at a time, so that a profile for both may say what holds for TensorRT.
        only = {
            "hardware_compatibility": profile.hardware_compatibility != "NONE",
            "timing_cache": profile.timing_cache,
        }
        for key in [key for key, given in only.items() if given]:
            raise _wrong(source, key, "does not exist in TensorRT-RTX", "leave it out")
    return profile


def _shipped_folder() -> Path:
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def _find(given: str) -> Path:
    names = shipped_profiles()
    if given in names:
        return _shipped_folder() / f"{given}.toml"
    path = Path(given).expanduser()
    if path.is_file():
        return path
    fix = f"use one of {', '.join(names)}, or the path of a TOML file"
    if path.suffix == ".toml" and path.stem in names:
        fix = f"--device {path.stem} is the shipped profile of that name"
    raise UsageError(f"there is no device profile {given!r}", fix)


def _wrong(source: str, key: str, what: str, fix: str) -> UsageError:
    return UsageError(f"{source}: {key} {what}", fix)


def _text(value: object, key: str, source: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(source, key, f"is {value!r}", "give a text")
    return value


def _flag(value: object, key: str, source: str) -> bool:
    if type(value) is not bool:
        raise _wrong(source, key, f"is {value!r}", "write true or false")
    return value


def _integer(value: object, key: str, source: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _wrong(source, key, f"is {value!r}", f"give a number from {least} to {most}")
    return value


def _level(value: object, key: str, source: str) -> int:
    return _integer(value, key, source, 0, MAX_LEVEL)


def _mebibytes(value: object, key: str, source: str) -> int:
    return _integer(value, key, source, 1, 2**20)


def _pixels(value: object, key: str, source: str) -> int:
    pixels = _integer(value, key, source, PATCH_PX, 2**14)
    if pixels % PATCH_PX:
        raise _wrong(source, key, f"is {pixels}", f"give a multiple of {PATCH_PX}")
    return pixels


def _texts(value: object, key: str, source: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise _wrong(source, key, f"is {value!r}", "give a list of texts, at least one")
    if len(set(value)) != len(value):
        raise _wrong(source, key, f"names something twice: {value!r}", "name each once")
    return tuple(value)


def _one_of(value: object, known: tuple[str, ...], key: str, source: str) -> str:
    if value not in known:
        raise _wrong(source, key, f"is {value!r}", f"use one of: {', '.join(known)}")
    return str(value)


def _runtimes(value: object, key: str, source: str) -> tuple[str, ...]:
    return tuple(_one_of(v, TENSORRT_RUNTIMES, key, source) for v in _texts(value, key, source))


def _precisions(value: object, key: str, source: str) -> tuple[str, ...]:
    known = get_args(Precision)
    return tuple(_one_of(v, known, key, source) for v in _texts(value, key, source))


def _hardware(value: object, key: str, source: str) -> str:
    return _one_of(value, get_args(HardwareCompatibility), key, source)


def _capabilities(value: object, key: str, source: str) -> tuple[tuple[int, int], ...]:
    found = []
    for text in _texts(value, key, source):
        match = re.fullmatch(r"([0-9]{1,2})\.([0-9])", text)
        if match is None:
            raise _wrong(source, key, f"holds {text!r}", 'write "8.9" for compute capability 8.9')
        found.append((int(match[1]), int(match[2])))
    return tuple(found)


def _frames(value: object, key: str, source: str) -> tuple[FramesRange, ...]:
    ranges = []
    for text in _texts(value, key, source):
        try:
            ranges.append(FramesRange(*parse_frames(text)))
        except UsageError as error:
            fix = 'write "2:4:8" for 2 to 8 frames, tuned for 4, or one number'
            raise _wrong(source, key, f"holds {text!r}, not min:opt:max", fix) from error
    for before, after in itertools.pairwise(ranges):
        # A frame count must name one profile; gaps are allowed, a session says what it accepts.
        if after.min <= before.max:
            raise _wrong(source, key, f"is not ascending: {value!r}", "let the ranges not overlap")
    return tuple(ranges)


def _versions(value: object, key: str, source: str) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict) or not value:
        raise _wrong(source, key, f"is {value!r}", 'write a table, e.g. { tensorrt = "10.3" }')
    result = {}
    for runtime, text in value.items():
        _one_of(runtime, TENSORRT_RUNTIMES, key, source)
        if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", text):
            raise _wrong(source, f"{key}.{runtime}", f"is {text!r}", 'write a version, e.g. "10.3"')
        result[runtime] = tuple(int(number) for number in text.split("."))
        if runtime == "tensorrt" and result[runtime] < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise _wrong(
                source, f"{key}.{runtime}", f"is {text}", f"{oldest} is the oldest supported"
            )
    return result


# Key -> reader of its value. The names are those of the fields.
_KEYS: dict[str, Any] = {
    "title": _text,
    "runtimes": _runtimes,
    "compute_capabilities": _capabilities,
    "frames": _frames,
    "tf32": _flag,
    "height": _pixels,
    "width": _pixels,
    "precisions": _precisions,
    "workspace_mib": _mebibytes,
    "optimization_level": _level,
    "hardware_compatibility": _hardware,
    "version_compatible": _flag,
    "timing_cache": _flag,
    "minimum_version": _versions,
}
_REQUIRED = tuple(
    field.name
    for field in dataclasses.fields(DeviceProfile)
    if field.name in _KEYS
    and field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
)
