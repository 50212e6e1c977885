"""The classifier through the quantizer: after training, with training, and to ONNX Runtime.

Every call of `vggt_deploy` here is one that serves any network: nothing of it was written for this
one, and nothing here is about VGGT.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from examples.point_cloud.shapes import Clouds
from examples.point_cloud.train import WITH_QUANTIZATION, Predict, Schedule, train
from vggt_deploy.export.module import ModuleArtifact, export_module, open_session
from vggt_deploy.qat.fake import Finished, finish, input_scales_of, insert_fake
from vggt_deploy.quantize.apply import ModuleWeights, replace_layers
from vggt_deploy.quantize.module import Searched, module_input_scales, observe_module
from vggt_deploy.quantize.plan import layers_in, plan
from vggt_deploy.quantize.prepared import Integers
from vggt_deploy.quantize.schemes import Activations, WeightFormat, parse_label

CALIBRATION_BATCH = 64
EXAMPLE = 4  # clouds that the graph is traced and verified with


@dataclass(frozen=True)
class Ready:
    """A network, and what its layers become.

    model: with float weights, those that the integers were made of
    """

    model: nn.Module
    formats: Mapping[str, WeightFormat]
    integers: Integers
    activations: Activations
    input_scales: Mapping[str, float]

    def in_torch(self) -> nn.Module:
        """The PyTorch variant: modules that hold the integers."""
        variant = copy.deepcopy(self.model)
        replace_layers(
            variant,
            self.formats,
            self.integers,
            activations=self.activations,
            input_scales=self.input_scales,
        )
        return variant

    def export(self, clouds: Clouds, folder: Path) -> ModuleArtifact:
        """The QDQ graphs; any number of clouds at a time."""
        return export_module(
            self.model,
            {"points": torch.from_numpy(clouds.points[:EXAMPLE])},
            ["logits"],
            self.formats,
            self.integers,
            output_dir=folder,
            activations=self.activations,
            input_scales=self.input_scales,
            dynamic={"points": {0: "clouds"}},
        )


def after_training(
    model: nn.Module, label: str, clouds: Clouds, form: WeightFormat | None = None
) -> Ready:
    """Post-training quantization: ranges from the weights and from these clouds.

    form: in place of the scheme's, for every layer; it may be one that no scheme has.
    """
    asked = parse_label(label)
    formats = plan(asked.scheme, layers_in(model), include=("*",))
    if form is not None:
        formats = dict.fromkeys(formats, form)
    scales: dict[str, float] = {}
    if asked.activations == "static":
        batches = torch.split(torch.from_numpy(clouds.points), CALIBRATION_BATCH)
        seen = observe_module(model, batches)
        scales = module_input_scales(seen, formats, asked.treatment.input_range)
    integers = Searched(ModuleWeights(model), asked.treatment.weight_range)
    return Ready(model, formats, integers, asked.activations, scales)


def with_training(start: Ready, clouds: Clouds, schedule: Schedule = WITH_QUANTIZATION) -> Ready:
    """Quantization-aware training that begins with what post-training quantization gave."""
    model = copy.deepcopy(start.model)
    insert_fake(model, start.formats, start.activations, start.integers, start.input_scales)
    train(model, clouds, schedule)
    integers = Finished(finish(model))
    scales = input_scales_of(model)
    trained = copy.deepcopy(start.model)
    trained.load_state_dict(_without_steps(model))
    return Ready(trained, start.formats, integers, start.activations, scales)


def _without_steps(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of the network itself, without those of fake quantization inside its layers."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if ".fake_weight." not in name and ".fake_input." not in name
    }


def in_onnxruntime(artifact: ModuleArtifact) -> Predict:
    """An exported network as a function of arrays."""
    session = open_session(artifact)

    def predict(points: NDArray[np.float32]) -> NDArray[np.float32]:
        (logits,) = session.run(["logits"], {"points": points})
        found: NDArray[np.float32] = np.asarray(logits)
        return found

    return predict
