"""NVIDIA ModelOpt on the same network: the rows, and how it is told to quantize the same layers.

A row takes the bits of weights and inputs, and the algorithm, from a configuration that ModelOpt
publishes (`modelopt.torch.quantization.INT4_AWQ_CFG`, ...). Those enable every layer but some of
known language models; here the layers are named one by one, those of our scheme, all others off, so
that both have the same integers to choose. Convolutions get what our schemes give them: 8 bit for
each output channel, inputs float.

What ModelOpt leaves in the network stays there: SmoothQuant and AWQ keep a multiplication by a
vector before each Linear. It is counted among the bytes, and how many there are is said.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from vggt_deploy.errors import QuantizeError
from vggt_deploy.quantize.plan import LayerInfo, planned_bytes
from vggt_deploy.quantize.schemes import Quantization, WeightFormat, parse_label

if TYPE_CHECKING:
    from torch import nn

PACKAGE = "nvidia-modelopt"
MODULE = "modelopt.torch.quantization"
NOT_INSTALLED = f"not run: {PACKAGE} is not installed (pip install {PACKAGE})"
FLOAT_BYTES = 4


@dataclass(frozen=True)
class ModelOptRow:
    """One row.

    config: the published configuration; algorithm: put in place of the configuration's own
    layers: label of ours whose layers, and whose kind of inputs, it has; beside: the label of ours
        that does most nearly the same
    """

    label: str
    config: str
    layers: str
    beside: str
    algorithm: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def quantization(self) -> Quantization:
        """Scheme and activations of the label whose layers it has."""
        return parse_label(self.layers)


_INT8, _INT4 = "int8_pc_sym+static", "int4_g128"
_INT4_CONFIG = "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"
ROWS: tuple[ModelOptRow, ...] = (
    ModelOptRow("modelopt:int8", "INT8_DEFAULT_CFG", _INT8, f"{_INT8}+a=absmax"),
    ModelOptRow("modelopt:int8_smoothquant", "INT8_SMOOTHQUANT_CFG", _INT8, f"{_INT8}+smooth"),
    ModelOptRow(
        "modelopt:int8_smoothquant_0.5",
        "INT8_SMOOTHQUANT_CFG",
        _INT8,
        f"{_INT8}+smooth=0.5",
        {"method": "smoothquant", "alpha": 0.5},
    ),
    ModelOptRow("modelopt:int4", _INT4_CONFIG, _INT4, _INT4),
    ModelOptRow("modelopt:int4_mse", _INT4_CONFIG, _INT4, f"{_INT4}+w=mse", {"method": "mse"}),
    ModelOptRow("modelopt:int4_awq", "INT4_AWQ_CFG", _INT4, f"{_INT4}+smooth"),
    ModelOptRow(
        "modelopt:int4_awq_full",
        "INT4_AWQ_CFG",
        _INT4,
        f"{_INT4}+w=mse+smooth",
        {"method": "awq_full"},
    ),
    ModelOptRow("modelopt:int4_gptq", _INT4_CONFIG, _INT4, f"{_INT4}+gptq", {"method": "gptq"}),
)
BY_LABEL = {row.label: row for row in ROWS}


@dataclass(frozen=True)
class Made:
    """What ModelOpt made of a network.

    multiplications: Linears that keep a multiplication by a vector of their inputs before them
    """

    version: str
    configured: str
    stored_bytes: int
    multiplications: int


def installed() -> bool:
    """Whether ModelOpt can be imported; nothing is imported for that."""
    return importlib.util.find_spec("modelopt") is not None


def configuration(
    published: Mapping[str, Any], row: ModelOptRow, layers: Sequence[LayerInfo]
) -> dict[str, Any]:
    """A configuration for just these layers, from the published one: last entry wins.

    Raises:
        QuantizeError: the published one is not built as this version of the bench knows it.
    """
    entries = {entry["quantizer_name"]: entry for entry in published["quant_cfg"]}
    try:
        weights, inputs = entries["*weight_quantizer"], entries["*input_quantizer"]
        bits = weights["cfg"]
    except KeyError as error:
        raise QuantizeError(
            f"{row.config} of this version of ModelOpt has no entry {error}",
            "use the version of ModelOpt that bench/README.md names",
        ) from error
    quantizers: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for layer in layers:
        linear = layer.kind == "linear"
        chosen = bits if linear else {"num_bits": 8, "axis": layer.axis}
        quantizers.append(_entry(f"{layer.name}.weight_quantizer", chosen))
        if linear and "cfg" in inputs:
            quantizers.append(_entry(f"{layer.name}.input_quantizer", inputs["cfg"]))
    algorithm = published["algorithm"] if row.algorithm is None else dict(row.algorithm)
    return {"quant_cfg": quantizers, "algorithm": copy.deepcopy(algorithm)}


def quantize(
    network: nn.Module,
    row: ModelOptRow,
    layers: Sequence[LayerInfo],
    formats: Mapping[str, WeightFormat],
    show: Callable[[Any], None],
) -> Made:
    """Quantize a folded FP32 network in place, calibrated by `show`, which runs it on the pictures.

    layers: all of the network; formats: those that become integers.

    Raises:
        QuantizeError: what ModelOpt switched on is not what was asked for.
    """
    mtq = importlib.import_module(MODULE)
    floats = sum(parameter.numel() for parameter in network.parameters())
    chosen = [layer for layer in layers if layer.name in formats]
    asked = configuration(getattr(mtq, row.config), row, chosen)
    mtq.quantize(network, asked, show)
    static = row.quantization.activations == "static"
    linears = {layer.name for layer in chosen if layer.kind == "linear"}
    _require(network, "weight_quantizer", set(formats))
    _require(network, "input_quantizer", linears if static else set())
    moved = [
        int(scale.numel())
        for module in network.modules()
        if (scale := _pre_scale(module)) is not None
    ]
    floats -= sum(layer.weights for layer in chosen)
    stored = planned_bytes(layers, formats) + FLOAT_BYTES * (floats + sum(moved))
    return Made(metadata.version(PACKAGE), _words(row, asked), stored, len(moved))


def _entry(name: str, cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {"quantizer_name": name, "cfg": copy.deepcopy(dict(cfg)), "enable": True}


def _words(row: ModelOptRow, asked: Mapping[str, Any]) -> str:
    return f"{row.config}, algorithm {asked['algorithm']}, layers of {row.layers}"


def _require(network: nn.Module, kind: str, wanted: set[str]) -> None:
    """An own mistake in the names, or a rule of ModelOpt's, must not make a row of another set."""
    found = {
        name.removesuffix(f".{kind}")
        for name, module in network.named_modules()
        if name.endswith(f".{kind}") and getattr(module, "is_enabled", False)
    }
    if found != wanted:
        different = sorted(found ^ wanted)
        raise QuantizeError(
            f"ModelOpt has {len(found)} {kind}s on, {len(wanted)} were asked for; the first that "
            f"differs: {different[0]}",
            "use the version of ModelOpt that bench/README.md names",
        )


def _pre_scale(module: nn.Module) -> Any:
    """The vector that a Linear's inputs are multiplied with; None where there is none."""
    quantizer = getattr(module, "input_quantizer", None)
    return None if quantizer is None else getattr(quantizer, "pre_quant_scale", None)
