"""What is done to a network so that the same bits lose less: switches, as data.

    w=mse w=p99.9       the range of each weight: searched, not its largest value    (`ranges`)
    a=absmax a=p99.99   static activations: how the range is chosen; mse where nothing is said
    apart               static activations, GPTQ: camera and register tokens count as much as all
                        patches together
    smooth smooth=0.5   scale moved from activations into weights, by a searched or given exponent
                        (`smooth`)
    rotate              values of attention turned by a Hadamard matrix (`rotate`)
    gptq                each weight rounded so as to make up for the errors of those before it
                        (`gptq`)

None of them adds an operator to the graph: they change which numbers stand in it. A label is a
scheme, its activations, then these words in this order: `int8_pc_sym+static+smooth`,
`int4_g128+w=mse+rotate+gptq`. Nothing here imports torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.methods import DEFAULT_METHOD, Method, parse_method

Smooth = float | Literal["auto"]
Rounding = Literal["nearest", "gptq"]

ABSMAX = Method("absmax")
DEFAULT_INPUT_RANGE = parse_method(DEFAULT_METHOD)
WORDS = "w=mse, w=pP, a=absmax, a=mse, a=pP, apart, smooth, smooth=ALPHA, rotate, gptq"


@dataclass(frozen=True, slots=True)
class Treatment:
    """The switches. As made without arguments: none, the label says nothing.

    weight_range: how far the integers of a weight reach (absmax: to its largest value)
    input_range: the same of the inputs, for static activations alone
    apart: whether the few special tokens of a frame weigh as much as its patches
    smooth: exponent alpha in 0..1, or "auto": searched for each group of layers
    """

    weight_range: Method = ABSMAX
    input_range: Method = DEFAULT_INPUT_RANGE
    apart: bool = False
    smooth: Smooth | None = None
    rotate: bool = False
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if isinstance(self.smooth, float) and not 0 <= self.smooth <= 1:
            raise UsageError(f"smooth={self.smooth:g} is not in 0..1", "0.5 is a usual one")

    @property
    def words(self) -> tuple[str, ...]:
        """As in a label, in a fixed order; empty where nothing is done."""
        found = []
        if self.weight_range != ABSMAX:
            found.append(f"w={short_method(self.weight_range)}")
        if self.input_range != DEFAULT_INPUT_RANGE:
            found.append(f"a={short_method(self.input_range)}")
        if self.apart:
            found.append("apart")
        if self.smooth is not None:
            found.append("smooth" if self.smooth == "auto" else f"smooth={_plain(self.smooth)}")
        if self.rotate:
            found.append("rotate")
        if self.rounding != "nearest":
            found.append(self.rounding)
        return tuple(found)

    @property
    def label(self) -> str:
        """`w=mse+smooth`; "" where nothing is done."""
        return "+".join(self.words)

    @property
    def moves(self) -> bool:
        """Whether the float network is rewritten (into an equal one) before it is quantized."""
        return self.smooth is not None or self.rotate

    @property
    def rewriting(self) -> str:
        """The words of what rewrites the float network: `smooth+rotate`; "" where nothing does."""
        return "+".join(w for w in self.words if w == "rotate" or w.startswith("smooth"))

    @property
    def prepares(self) -> bool:
        """Whether weights become other integers than plain rounding gives."""
        return self.moves or self.rounding != "nearest" or self.weight_range != ABSMAX

    @property
    def looks(self) -> bool:
        """Whether pictures have to be run through the network for it, beside static ranges."""
        return self.smooth is not None or self.rounding == "gptq"


PLAIN = Treatment()


def parse_treatment(words: tuple[str, ...]) -> Treatment:
    """The inverse of `Treatment.words`, in any order.

    Raises:
        UsageError: an unknown word, or one said twice.
    """
    fields: dict[str, object] = {}
    for word in words:
        name, value = _field(word)
        if name in fields:
            raise UsageError(f"{'+'.join(words)!r} says {name} twice", "say it once")
        fields[name] = value
    return Treatment(**fields)  # type: ignore[arg-type]  # each by its own branch of _field


def _field(word: str) -> tuple[str, object]:
    match word.partition("="):
        case ("w", "=", text) if text != "absmax":
            return "weight_range", _method(text)
        case ("a", "=", text):
            return "input_range", _method(text)
        case ("apart", "", ""):
            return "apart", True
        case ("smooth", "", ""):
            return "smooth", "auto"
        case ("smooth", "=", text) if re.fullmatch(r"[01](\.[0-9]{1,6})?", text):
            return "smooth", float(text)
        case ("rotate", "", ""):
            return "rotate", True
        case ("gptq", "", ""):
            return "rounding", "gptq"
    raise UsageError(f"unknown word {word!r} in a label", f"after scheme and activations: {WORDS}")


def _method(text: str) -> Method:
    short = re.fullmatch(r"p[0-9.]+", text) is not None
    return parse_method(f"percentile:{text[1:]}" if short else text)


def _plain(alpha: float) -> str:
    """Six digits at most and no exponent: 0.5, 0, 0.000001."""
    return f"{alpha:.6f}".rstrip("0").rstrip(".")


def short_method(method: Method) -> str:
    """As in a label: `mse`, `p99.99`."""
    return f"p{method.percentile:.10g}" if method.name == "percentile" else method.name
