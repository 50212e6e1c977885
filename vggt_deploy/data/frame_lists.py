"""Fixed frame lists: which pictures of which scenes, and in which order, a comparison uses.

    schema = 1
    name = "eth3d-5"                 the name of the file
    source = "..."                   where the pictures and the knowledge about them are from
    rule = "..."                     how they were chosen, so that anyone can choose them again

    [scenes]                         file names without folders, in the order that the network gets
    courtyard = ["DSC_0303.JPG", "DSC_0322.JPG"]

    [left_out]                       what the rule never looks at, for example sideways frames
    relief = ["DSC_0427.JPG"]

Scores of different frames are not comparable, so a list is named in a report by its name and the
SHA-256 of its file. Lists that come with vggt-deploy lie in `compare/frames`; any other is given by
its path.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from vggt_deploy.errors import UsageError
from vggt_deploy.typed_json import decode

SCHEMA = 1
SUFFIX = ".toml"
# In a checkout they lie where people edit them; an installed package carries them all the same.
_PACKAGED = Path(__file__).parents[1] / "compare" / "frames"
_CHECKOUT = Path(__file__).parents[2] / "compare" / "frames"
_FIX = "correct it; the head of vggt_deploy/data/frame_lists.py shows a whole file"


@dataclass(frozen=True)
class FrameList:
    """scenes: scene -> file names in order; sha256: of the file that says so."""

    name: str
    sha256: str
    scenes: dict[str, tuple[str, ...]]
    source: str
    rule: str
    left_out: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class _File:
    """What the TOML holds."""

    schema: int
    name: str
    source: str
    rule: str
    scenes: dict[str, tuple[str, ...]]
    left_out: dict[str, tuple[str, ...]] = field(default_factory=dict)


def default_folder() -> Path:
    """Where the lists that come with vggt-deploy are."""
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def list_names() -> tuple[str, ...]:
    """Names of the lists that come with vggt-deploy."""
    return tuple(sorted(path.stem for path in default_folder().glob(f"*{SUFFIX}")))


def load_frame_list(name_or_path: str | Path) -> FrameList:
    """A list that comes with vggt-deploy by its name, or any by the path of its .toml file.

    Raises:
        UsageError: no such list, or what is wrong in it.
    """
    path = _find(name_or_path)
    try:
        content = path.read_bytes()
        table = tomllib.loads(content.decode("utf-8-sig"))  # some editors begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the frame list {path} can't be read ({error})", "give a TOML file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the frame list {path} is not TOML ({error})", _FIX) from error
    except RecursionError as error:
        raise UsageError(f"the frame list {path} is nested too deeply", _FIX) from error

    def refuse(problem: str) -> UsageError:
        return UsageError(f"{path}: {problem}", _FIX)

    found = cast("_File", decode(_File, table, "frame list", refuse))
    problem = next(_problems(found, path.stem), None)
    if problem is not None:
        raise refuse(problem)
    return FrameList(
        name=found.name,
        sha256=hashlib.sha256(content).hexdigest(),
        scenes=found.scenes,
        source=found.source,
        rule=found.rule,
        left_out=found.left_out,
    )


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == SUFFIX or len(path.parts) > 1:
        return path.expanduser()
    names = list_names()
    if path.name not in names:
        raise UsageError(
            f"there is no frame list {path.name!r}",
            f"give one of {', '.join(names)}, or the path of a {SUFFIX} file",
        )
    return default_folder() / f"{path.name}{SUFFIX}"


def _problems(found: _File, stem: str) -> Iterator[str]:
    """What has the right type and makes no sense."""
    if found.schema != SCHEMA:
        yield f"it has schema {found.schema}, this version reads {SCHEMA}"
    if found.name != stem:
        yield f"its name is {found.name!r}, the file's {stem!r}"
    if not found.scenes:
        yield "it lists no scene"
    for scene, names in found.scenes.items():
        if not names:
            yield f"scenes.{scene} lists no picture"
        folders = [name for name in names if Path(name).name != name or name in (".", "..")]
        if folders:
            yield f"scenes.{scene} names {folders[0]!r}, expected a file name without folders"
        if len(set(names)) != len(names):
            yield f"scenes.{scene} names a picture twice"
        again = set(names) & set(found.left_out.get(scene, ()))
        if again:
            yield f"scenes.{scene} names {min(again)}, which left_out.{scene} leaves out"
    if strange := sorted(set(found.left_out) - set(found.scenes)):
        yield f"left_out.{strange[0]} is of a scene that is not listed"
