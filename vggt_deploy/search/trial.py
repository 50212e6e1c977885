"""An assignment is tried: the network with these layers in integers, beside FP32, on scenes.

In PyTorch, weights rounded and turned back to float, as an exported graph computes them. FP32 ran
on the same scenes, and losses are taken scene by scene (`sensitivity.measure`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vggt_deploy.compare.scenes import Scene
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.quantize.apply import build_quantized
from vggt_deploy.quantize.plan import keeps_layer_scale
from vggt_deploy.quantize.schemes import Activations, Precision, Scheme, WeightFormat
from vggt_deploy.sensitivity.measure import baseline, losses, measures, run_scenes
from vggt_deploy.sensitivity.switch import switched
from vggt_deploy.sensitivity.table import Reference

if TYPE_CHECKING:
    from vggt_deploy.sensitivity.measure import Measures, Outputs


@dataclass(frozen=True)
class Measured:
    """Measure -> mean loss over the scenes, above 0 is worse, and its 95 % interval."""

    loss: dict[str, float]
    interval: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Trial:
    """What every assignment is tried on.

    network: FP32, folded; it is the same again after each trial
    exact, own: FP32's outputs and measures, scene by scene
    """

    config: VGGTConfig
    source: WeightSource
    network: VGGT
    scenes: Sequence[Scene]
    reference: Reference
    activations: Activations
    input_scales: Mapping[str, float] | None
    executor: Executor
    exact: Sequence[Outputs]
    own: Sequence[Measures]
    kept: dict[tuple[object, ...], Measured] = field(default_factory=dict)

    @property
    def baseline(self) -> dict[str, float]:
        """FP32's own measures against the truth; empty where FP32 is what stands for it."""
        return baseline(self.own) if self.reference == "truth" else {}

    def run(
        self,
        formats: Mapping[str, WeightFormat],
        precision: Precision = "fp32",
        activations: Activations | None = None,
    ) -> Measured:
        """Losses of this assignment; one that was tried before is not run again.

        Raises:
            QuantizeError: an output is not finite.
        """
        mode = self.activations if activations is None else activations
        key = (precision, mode, frozenset(formats.items()))
        if key not in self.kept:
            self.kept[key] = self._measured(formats, precision, mode)
        return self.kept[key]

    def _measured(
        self, formats: Mapping[str, WeightFormat], precision: Precision, activations: Activations
    ) -> Measured:
        scales = self.input_scales if activations == "static" else None
        if precision == "fp32":
            with switched(self.network, formats, activations=activations, input_scales=scales):
                outputs = run_scenes(self.network, self.scenes, self.executor)
        else:
            keep = keeps_layer_scale(precision)
            model = build_quantized(
                self.config,
                FoldedWeights(self.source, self.config, keep_layer_scale=keep),
                Scheme("trial", "an assignment that is tried", layers=tuple(formats.items())),
                activations=activations,
                input_scales=scales,
                heads=self.network_heads,
                precision=precision,
                formats=formats,
            )
            outputs = run_scenes(model, self.scenes, self.executor)
        found = [
            measures(one, right, scene, self.reference)
            for one, right, scene in zip(outputs, self.exact, self.scenes, strict=True)
        ]
        return Measured(*losses(found, self.own))

    @property
    def network_heads(self) -> frozenset[str]:
        """The heads that the FP32 network was built with."""
        parts = {name.partition(".")[0] for name, _ in self.network.named_parameters()}
        return frozenset(p.removesuffix("_head") for p in parts if p.endswith("_head"))


def begin_trial(
    config: VGGTConfig,
    source: WeightSource,
    network: VGGT,
    scenes: Sequence[Scene],
    reference: Reference,
    activations: Activations,
    input_scales: Mapping[str, float] | None,
    executor: Executor,
) -> Trial:
    """Run FP32 on the scenes."""
    exact = run_scenes(network, scenes, executor)
    own = [measures(one, one, scene, reference) for one, scene in zip(exact, scenes, strict=True)]
    return Trial(
        config,
        source,
        network,
        scenes,
        reference,
        activations,
        input_scales,
        executor,
        exact,
        own,
    )
