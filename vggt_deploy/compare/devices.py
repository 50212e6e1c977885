"""Which device engines are built for: a device profile, checked before anything is exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggt_deploy.build.profiles import DeviceProfile, load_profile, shipped_profiles
from vggt_deploy.build.settings import choose_frames
from vggt_deploy.compare.variants import Variant
from vggt_deploy.engines.runtime import check_frames
from vggt_deploy.errors import UsageError
from vggt_deploy.records import FramesRange


@dataclass(frozen=True)
class DeviceQuestion:
    """A device profile as it was asked for: `asked` is a shipped name or an absolute path."""

    asked: str
    profile: DeviceProfile

    @property
    def note(self) -> str:
        """For the report."""
        return f"engines: built for {self.profile.title} (device profile {self.profile.name})"

    def to_json(self) -> dict[str, Any]:
        """The part of the comparison's question that it is."""
        return {"name": self.profile.name, "profile": self.profile.text}

    def check_pictures(self, count: int, accepted: FramesRange, height: int, width: int) -> None:
        """Refuse pictures that the engines would not take.

        accepted: the frame counts of the artifacts that they are built from.

        Raises:
            UsageError: other size than the profile's, or a count outside its ranges.
        """
        profile = self.profile
        if profile.height is not None and (profile.height, profile.width) != (height, width):
            raise UsageError(
                f"the device profile {profile.name} is for {profile.height} x {profile.width} "
                f"pixels, the pictures come to {height} x {width}",
                f"give --height {profile.height} --width {profile.width}, or another --device",
            )
        try:
            ranges, _ = choose_frames(profile, accepted, None)
            check_frames(count, ranges)
        except UsageError as error:
            raise UsageError(
                f"{count} pictures, and engines of the device profile {profile.name} take "
                + " or ".join(f"{r.min} to {r.max}" for r in profile.frames),
                "choose as many with --max-images, or give a profile with other frames",
            ) from error


def ask_device(device: str | None, variants: Sequence[Variant]) -> DeviceQuestion | None:
    """Check `--device` against the variants; None where no variant is an engine.

    Raises:
        UsageError: engines without a profile, a profile without engines, or one for another
            runtime.
    """
    runtimes = list(dict.fromkeys(variant.runtime for variant in variants if variant.engine))
    if device is None:
        if not runtimes:
            return None
        raise UsageError(
            f"{runtimes[0]} runs engines, and an engine is built for a device",
            f"give --device: one of {', '.join(shipped_profiles())}, or the path of a profile",
        )
    if not runtimes:
        raise UsageError(
            f"--device {device} was given, and no runtime of this comparison builds engines",
            "add tensorrt or tensorrt-rtx to --runtimes, or leave --device out",
        )
    profile = load_profile(device)
    for runtime in runtimes:
        if runtime not in profile.runtimes:
            raise UsageError(
                f"the device profile {profile.name} is for {' or '.join(profile.runtimes)}, "
                f"not for {runtime}",
                f"use --runtimes ...,{profile.runtimes[0]}, or another --device",
            )
    shipped = device in shipped_profiles()
    return DeviceQuestion(device if shipped else str(Path(device).expanduser().absolute()), profile)
