"""What was received of a file so far, and which version of which file that is.

archive.7z.part         what was received so far
archive.7z.part.json    the address and version (ETag or Last-Modified) that it belongs to
archive.7z.part.new     a body that begins anew, until it is worth more than the part
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vggt_deploy.typed_json import decode, parse

_MAX_VERSION = 256  # characters: longer ones are refused by servers when they come back


@dataclass(frozen=True)
class Origin:
    """What a part belongs to, beside it as JSON."""

    url: str
    total: int | None
    etag: str | None
    last_modified: str | None

    @property
    def version(self) -> str | None:
        """For If-Range, which takes strong validators only (RFC 9110, 13.1.5)."""
        if _sendable(self.etag) and not str(self.etag).startswith("W/"):
            return self.etag
        return self.last_modified if _sendable(self.last_modified) else None

    def differs(self, other: Origin) -> bool:
        """Whether a validator that both have says that they are of different versions."""
        pairs = ((self.etag, other.etag), (self.last_modified, other.last_modified))
        return any(None not in pair and pair[0] != pair[1] for pair in pairs)


def _sendable(validator: str | None) -> bool:
    return (
        validator is not None
        and validator.isascii()
        and validator.isprintable()
        and 0 < len(validator) <= _MAX_VERSION
    )


@dataclass
class Part:
    """The part of the file `target` from `url`. earlier: bytes of it from before this call."""

    url: str
    target: Path
    earlier: int = 0

    @property
    def path(self) -> Path:
        """What was received."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def fresh(self) -> Path:
        """A body that begins anew beside a part that may still be good."""
        return self.target.with_name(f"{self.target.name}.part.new")

    @property
    def _origin_path(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part.json")

    def received(self) -> int:
        """Bytes of the part."""
        return self.path.stat().st_size if self.path.exists() else 0

    def origin(self) -> Origin | None:
        """None where there is none, it can't be read, or it is of another address."""
        try:
            value = parse(self._origin_path.read_text("utf-8"))
            origin = decode(Origin, value, "part", ValueError)
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        return origin if isinstance(origin, Origin) and origin.url == self.url else None

    def write_origin(self, origin: Origin) -> None:
        """Whole or not at all."""
        temporary = self._origin_path.with_name(f"{self._origin_path.name}.tmp")
        temporary.write_text(json.dumps(asdict(origin), indent=1) + "\n", "utf-8")
        temporary.replace(self._origin_path)

    def usable(self) -> tuple[int, Origin | None]:
        """Bytes that may be continued, and of what; anything else that lies there is dropped."""
        origin, received = self.origin(), self.received()
        if (
            origin is None
            or (origin.total is not None and received > origin.total)
            or (origin.version is None and received != origin.total)
        ):
            self.drop()
            return 0, None
        return received, origin

    def whole(self) -> bool:
        """Whether all was received before, say by a run that was killed before the rename."""
        origin = self.origin()
        return (
            origin is not None and origin.total is not None and origin.total == self.received() > 0
        )

    def drop(self) -> None:
        """Forget what was received; the next request begins at 0."""
        self.path.unlink(missing_ok=True)
        self._origin_path.unlink(missing_ok=True)
        self.earlier = 0

    def begin(self, origin: Origin) -> None:
        """Forget what was received, for a body of `origin`."""
        self.drop()
        self.write_origin(origin)

    def promote(self, origin: Origin) -> None:
        """What was received anew is the part from now on."""
        self.drop()
        self.fresh.replace(self.path)
        self.write_origin(origin)

    def finish(self) -> None:
        """The part is whole and right: it gets its name."""
        self.path.replace(self.target)
        self._origin_path.unlink(missing_ok=True)
        self.fresh.unlink(missing_ok=True)
