"""What gates.toml says: how much each variant may lose by the truth, and on what that was measured.

    [protocol]              a report that was made otherwise is refused
    model = "vggt-nano"     the spec; with `sha256`, any spec of exactly these weights
    scenes = 16             at least so many scenes with truth
    views = 4               of each
    height = 84
    width = 112

    [reference]             PyTorch FP32 itself: AUC at least, errors at most (what all rows lost
    auc30 = 50.0            together is no loss against FP32)
    abs_rel = 0.1

    [most.int8_pc_sym]      the most that a scheme may lose against PyTorch FP32, on every runtime
    auc30 = 0.5             AUC@30 and AUC@5 in points of percent
    auc5 = 1.0
    abs_rel = 0.002         absolute: 0.002 is from 0.100 to 0.102
    point_error = 0.002     of the scene's size

    [most."onnxruntime/int8_pc_sym+static"]     instead of the scheme's, for one runtime
    auc30 = 1.0

The numbers are a mean over scenes each, as in `paired.TruthLoss` and `truth.TruthMean`. A quantity
that is left out has no gate. A scheme that gained has lost less than nothing and passes.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import cast

from vggt_deploy.compare.variants import RUNTIMES
from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.schemes import parse_label
from vggt_deploy.typed_json import decode

NAME = "gates.toml"
# In a checkout it lies where people edit it; an installed package carries it all the same.
_PACKAGED = Path(__file__).with_name(NAME)
_CHECKOUT = Path(__file__).parents[2] / "compare" / NAME
_FIX = "correct it; the head of vggt_deploy/compare/gates.py shows a whole file"


@dataclass(frozen=True)
class Protocol:
    """How a report must have been made. height, width in pixels."""

    model: str
    scenes: int
    views: int
    height: int
    width: int
    sha256: str | None = None


@dataclass(frozen=True)
class Limits:
    """The worst that may be; None: no gate."""

    auc30: float | None = None
    auc5: float | None = None
    abs_rel: float | None = None
    point_error: float | None = None

    def given(self) -> dict[str, float]:
        """Quantity -> limit, of those that have one."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Gates:
    """`most`: by scheme label, or by runtime/scheme label, which goes first."""

    protocol: Protocol
    most: dict[str, Limits]
    reference: Limits | None = None

    def limits(self, label: str) -> Limits | None:
        """Of a row, by its label such as `onnxruntime/int8_pc_sym+static`."""
        return self.most.get(label) or self.most.get(label.partition("/")[2])


def default_gates() -> Path:
    """The gates that come with vggt-deploy."""
    return _PACKAGED if _PACKAGED.is_file() else _CHECKOUT


def load_gates(path: Path | None = None) -> Gates:
    """Read gates; None: those that come with vggt-deploy.

    Raises:
        UsageError: naming the file and what is wrong in it.
    """
    path = default_gates() if path is None else path
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the gates {path} can't be read ({error})", "give a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the gates {path} are not TOML ({error})", "correct that line") from error

    def refuse(problem: str) -> UsageError:
        return UsageError(f"{path}: {problem}", _FIX)

    gates = cast("Gates", decode(Gates, table, "gates", refuse))
    problem = next(_problems(gates), None)
    if problem is not None:
        raise refuse(problem)
    return gates


def _problems(gates: Gates) -> Iterator[str]:
    """What has the right type and makes no sense."""
    for field in fields(Protocol):
        value = getattr(gates.protocol, field.name)
        if isinstance(value, int) and value < 1:
            yield f"gates.protocol.{field.name} is {value}, expected 1 or more"
    if not gates.most:
        yield "gates.most is empty: nothing would be held against anything"
    for label, limits in gates.most.items():
        where = f"gates.most[{label}]"
        yield from (f"{where}: {problem}" for problem in _label_problems(label))
        yield from _limit_problems(where, limits)
    if gates.reference is not None:
        yield from _limit_problems("gates.reference", gates.reference)


def _label_problems(label: str) -> Iterator[str]:
    runtime, slash, scheme = label.rpartition("/")
    if slash and runtime not in RUNTIMES:
        yield f"unknown runtime {runtime!r}, expected one of {', '.join(RUNTIMES)}"
    if label == "torch/fp32":
        yield "this is the reference, which loses nothing against itself: use [reference]"
    try:
        parsed = parse_label(scheme)
    except UsageError as error:
        yield error.message
        return
    if scheme != parsed.label:
        yield f"no row has this label: write {parsed.label}"


def _limit_problems(where: str, limits: Limits) -> Iterator[str]:
    given = limits.given()
    if not given:
        yield f"{where} holds no limit"
    for name, value in given.items():
        if not (math.isfinite(value) and value >= 0.0):
            yield f"{where}.{name} is {value}, expected a number of 0 or more"
