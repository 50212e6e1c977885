"""A network made ready: its integers chosen, its float tensors changed, all of it in one folder.

    <folder>/prepared.json         the label, the model, which layer has which format, input scales,
                                   what was chosen on the way, the hash of:
    <folder>/prepared.safetensors  <layer>.q int8 [as the weight], or uint8 nibbles for 4 bit;
                                   <layer>.scale float32 and <layer>.zero_point int8, as `qparams`;
                                   every float tensor that is not the checkpoint's, by its key

`prepare` writes it where a treatment was asked for (range search, smoothing, rotation, GPTQ),
`qat` after training; `export` and the PyTorch variant read it. Whoever has no folder quantizes the
checkpoint's weights by plain rounding: `Nearest`. Both are `Integers`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import vggt_deploy
from vggt_deploy import typed_json
from vggt_deploy.errors import ArtifactError, QuantizeError, UsageError
from vggt_deploy.manifest import hash_file
from vggt_deploy.model.sources import ModelOrigin, WeightSource
from vggt_deploy.quantize.packing import pack_int4, unpack_int4
from vggt_deploy.quantize.plan import LayerInfo
from vggt_deploy.quantize.qparams import QuantizedTensor, quantize
from vggt_deploy.quantize.schemes import (
    SCHEMES,
    Precision,
    Quantization,
    Scheme,
    WeightFormat,
    parse_format,
    parse_words,
)
from vggt_deploy.records import ModelRecord

RECORD_NAME = "prepared.json"
TENSORS_NAME = "prepared.safetensors"
SCHEMA = 1
MAX_RECORD_BYTES = 32 << 20
_FIX = "prepare it again with this version"


class Integers(Protocol):
    """Where the integers of a layer come from."""

    def quantized(
        self, layer: LayerInfo, form: WeightFormat, scale_dtype: Precision
    ) -> QuantizedTensor:
        """The layer's weight in this format, its scales values of `scale_dtype`."""
        ...


@dataclass(frozen=True)
class Nearest:
    """Each weight of a (folded) source rounded by itself, its range up to its largest value."""

    source: WeightSource

    def quantized(
        self, layer: LayerInfo, form: WeightFormat, scale_dtype: Precision
    ) -> QuantizedTensor:
        weight = self.source.load(f"{layer.name}.weight")
        try:
            return quantize(weight, form, axis=layer.axis, scale_dtype=scale_dtype)
        except QuantizeError as error:
            raise QuantizeError(f"{layer.name}: {error.message}", error.fix) from error


@dataclass(frozen=True)
class PreparedRecord:
    """What a folder of prepared weights is.

    label: as `schemes.parse_label` reads it; made_by: rounding after training, or with training
    formats: layer -> format; input_scales: layer -> scale, for static activations alone
    choices: what a search decided, by treatment (the exponents of smoothing, ...)
    images: file name -> SHA-256 of the pictures that were looked at
    heads: those whose layers were planned; include, exclude, sensitive: the patterns that did it
    """

    schema: int
    tool_version: str
    made_by: Literal["prepare", "qat"]
    model: ModelRecord
    label: str
    precision: str
    height: int
    width: int
    formats: dict[str, str]
    tensors_sha256: str
    input_scales: dict[str, float] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    heads: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared weights, opened: `Integers`, read one layer at a time."""

    folder: Path
    record: PreparedRecord

    def formats_of(self, layers: Iterable[LayerInfo]) -> dict[str, WeightFormat]:
        """Layer -> format of those among `layers` that are integers here, in the order given."""
        held = self.record.formats
        return {
            layer.name: parse_format(held[layer.name]) for layer in layers if layer.name in held
        }

    @property
    def quantization(self) -> Quantization:
        """What was asked for when it was made."""
        return _quantization(self.record)

    @property
    def precision(self) -> Precision:
        known: tuple[Precision, ...] = get_args(Precision)
        return next(name for name in known if name == self.record.precision)

    def require_precision(self, precision: Precision) -> None:
        """Its scales are numbers of one type, and its weights folded for that."""
        if precision != self.record.precision:
            raise UsageError(
                f"{self.folder} was prepared for precision {self.record.precision}, not "
                f"{precision}",
                f"use --precision {self.record.precision}, or prepare it anew",
            )

    def require(
        self,
        model: ModelRecord,
        precision: Precision,
        height: int,
        width: int,
        heads: frozenset[str],
    ) -> None:
        """Refuse it for other weights, another precision, heads that it was not made with, or with
        static ranges another size.

        Raises:
            UsageError: naming what differs.
        """
        self.require_precision(precision)
        theirs, size = self.record.model, (self.record.height, self.record.width)
        same = (theirs.spec, theirs.revision) == (model.spec, model.revision)
        if theirs.sha256 is not None and model.sha256 is not None:
            same = theirs.sha256 == model.sha256  # the same file may be known by several names
        if not same or theirs.config != model.config:
            raise UsageError(
                f"{self.folder} was prepared from {theirs.spec}, and these are other weights",
                f"give the same --model: {theirs.spec}",
            )
        if missing := sorted(heads - frozenset(self.record.heads)):
            raise UsageError(
                f"{self.folder} was prepared without the {missing[0]} head, whose layers would "
                "stay float unsaid",
                "leave its outputs out, or prepare it anew with them",
            )
        if self.record.input_scales and size != (height, width):
            raise UsageError(
                f"{self.folder} has static ranges for {size[0]} x {size[1]} pixels (height x "
                f"width), not {height} x {width}",
                f"use --height {size[0]} --width {size[1]}, or prepare it anew",
            )

    def quantized(
        self, layer: LayerInfo, form: WeightFormat, scale_dtype: Precision
    ) -> QuantizedTensor:
        name = layer.name
        if self.record.formats.get(name) != form.label:
            raise ArtifactError(
                f"{self.folder} holds {name} as {self.record.formats.get(name, 'float')}, not "
                f"{form.label}",
                "prepare and export with the same scheme and patterns",
            )
        q, scale = self._load(f"{name}.q"), self._load(f"{name}.scale")
        if form.bits == 4:
            count = 1
            for side in layer.shape:
                count *= side
            q = unpack_int4(q, count).view(layer.shape)
        if tuple(q.shape) != layer.shape:
            raise ArtifactError(f"{self.folder}: {name} has shape {list(q.shape)}", _FIX)
        zero_point = self._load(f"{name}.zero_point")
        return QuantizedTensor(q, scale, zero_point, form, layer.axis, scale_dtype)

    def source(self, folded: WeightSource) -> WeightSource:
        """The folded source with this folder's float tensors in place of its own."""
        with safe_open(self.folder / TENSORS_NAME, "pt") as file:
            names = frozenset(file.keys())
        layers = tuple(f"{name}." for name in self.record.formats)
        integers = frozenset(f"{layer}{part}" for layer in layers for part in _PARTS)
        return _Overridden(folded, self, names - integers)

    def _load(self, key: str) -> Tensor:
        try:
            with safe_open(self.folder / TENSORS_NAME, "pt") as file:
                value: Tensor = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{self.folder / TENSORS_NAME}: {key}: {error}", _FIX) from error
        return value


_PARTS = ("q", "scale", "zero_point")


@dataclass(frozen=True)
class _Overridden:
    """A source in which some tensors are another's."""

    inner: WeightSource
    prepared: Prepared
    replaced: frozenset[str]

    @property
    def origin(self) -> ModelOrigin:
        return self.inner.origin

    def keys(self) -> tuple[str, ...]:
        return self.inner.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self.inner.shape(key)

    def load(self, key: str) -> Tensor:
        return self.prepared._load(key) if key in self.replaced else self.inner.load(key)


def write_prepared(
    folder: Path,
    record: PreparedRecord,
    integers: Mapping[str, QuantizedTensor],
    floats: Mapping[str, Tensor],
) -> PreparedRecord:
    """Write both files into an existing folder, which the caller renames into place.

    `formats` and `tensors_sha256` of the record are filled in here. The record as written.
    """
    tensors: dict[str, Tensor] = {}
    for name, quantized in integers.items():
        four = quantized.format.bits == 4
        tensors[f"{name}.q"] = pack_int4(quantized.q) if four else quantized.q.contiguous()
        tensors[f"{name}.scale"] = quantized.scale.float().contiguous()
        tensors[f"{name}.zero_point"] = quantized.zero_point.to(torch.int8).contiguous()
    for key, value in floats.items():
        tensors[key] = value.detach().float().contiguous()
    save_file(tensors, folder / TENSORS_NAME)
    record = dataclasses.replace(
        record,
        schema=SCHEMA,
        tool_version=vggt_deploy.__version__,
        formats={name: quantized.format.label for name, quantized in integers.items()},
        tensors_sha256=hash_file(folder / TENSORS_NAME),
    )
    text = json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False) + "\n"
    (folder / RECORD_NAME).write_text(text, encoding="utf-8")
    return record


def read_prepared(folder: Path) -> Prepared:
    """Open a folder that `write_prepared` filled; the hash is checked before anything is read.

    Raises:
        ArtifactError: it is none, of another version, changed or cut short.
    """
    path = Path(folder) / RECORD_NAME
    if not path.is_file():
        raise ArtifactError(
            f"{folder} holds no {RECORD_NAME}",
            "give a folder that `vggt-deploy qat` wrote",
        )
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise _refuse(f"{path} is larger than any such record is")
    try:
        value = typed_json.parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise _refuse(f"{path} can't be read: {error}") from error
    record = cast(PreparedRecord, typed_json.decode(PreparedRecord, value, "prepared", _refuse))
    if record.schema != SCHEMA:
        raise _refuse(f"{path} has schema {record.schema}, this version reads {SCHEMA}")
    if record.precision not in get_args(Precision):
        raise _refuse(f"{path} has precision {record.precision!r}")
    _quantization(record)
    tensors = Path(folder) / TENSORS_NAME
    if not tensors.is_file() or hash_file(tensors) != record.tensors_sha256:
        raise _refuse(f"{tensors} is missing, or was changed or cut short after it was written")
    return Prepared(Path(folder), record)


def open_prepared(folder: Path, label: str | Quantization | None) -> Prepared:
    """`read_prepared`, and a UsageError where a scheme was asked for that it was not made for."""
    prepared = read_prepared(folder)
    asked = label.label if isinstance(label, Quantization) else label
    if asked is not None and asked != prepared.record.label:
        raise UsageError(
            f"{folder} holds {prepared.record.label}, and {asked} was asked for",
            "leave the scheme out: the folder knows its own",
        )
    return prepared


def _quantization(record: PreparedRecord) -> Quantization:
    """A scheme that is in no table was a recipe's: its layers are those of the record."""
    name, *words = record.label.split("+")
    if name in SCHEMES:
        return parse_words(SCHEMES[name], words)
    layers = tuple((layer, parse_format(label)) for layer, label in record.formats.items())
    return parse_words(Scheme(name, "a format for each layer", layers=layers), words)


def _refuse(problem: str) -> ArtifactError:
    return ArtifactError(problem, _FIX)
