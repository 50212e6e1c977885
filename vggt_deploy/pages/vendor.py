"""Libraries that are not ours: `vendor/vendor.toml` names each file, its version, hash and licence.

They are files of npm packages as published, so that nothing is built here and anyone can compare.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from vggt_deploy.errors import ArtifactError

VENDOR = Path(__file__).with_name("vendor")
TABLE_NAME = "vendor.toml"

# Points at a file beside the original; in a page that is one file there is none.
_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)


@dataclass(frozen=True)
class Vendored:
    """One file of an npm package.

    member is its path in the package, file and licence_file are those in the vendor folder
    """

    package: str
    version: str
    member: str
    file: str
    sha256: str
    licence: str
    licence_file: str
    used_for: str

    @property
    def style(self) -> bool:
        """A style sheet, and not a script."""
        return self.file.endswith(".css")


def vendored(folder: Path = VENDOR) -> dict[str, Vendored]:
    """All that is vendored, by the name that pages use for it."""
    with (folder / TABLE_NAME).open("rb") as file:
        table = tomllib.load(file)
    names = {field.name for field in fields(Vendored)}
    for name, entry in table.items():
        if set(entry) != names:
            odd = ", ".join(sorted(set(entry) ^ names))
            raise ArtifactError(f"{TABLE_NAME}: {name} has or lacks: {odd}", "install again")
    return {name: Vendored(**entry) for name, entry in table.items()}


def library(name: str, folder: Path = VENDOR) -> str:
    """The text of a vendored file, without its pointer to a source map.

    Raises:
        ArtifactError: it is not the file that vendor.toml names.
    """
    entry = vendored(folder)[name]
    path = folder / entry.file
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise ArtifactError(
            f"{path} is not {entry.package} {entry.version} as published",
            "install vggt-deploy again",
        )
    return _SOURCE_MAP.sub("", content.decode("utf-8"))


def licence(entry: Vendored) -> str:
    """The text of its licence."""
    return (VENDOR / entry.licence_file).read_text(encoding="utf-8")
