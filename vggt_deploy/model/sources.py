"""Where weights come from, one tensor at a time.

A `WeightSource` names tensors, tells their shapes without reading them, and reads one when asked.
Nothing here holds more than the tensor it returns, so a model of any size passes through in the
memory of a few of its largest weights (67 MB in VGGT-1B).
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vggt_deploy.errors import ModelError
from vggt_deploy.model.recipe import recipe_tensor

HASH_CHUNK = 1 << 24
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
BROKEN_FILE_FIX = "copy or download the file again"
BROKEN_PICKLE_FIX = (
    "copy or download the file again; one from before torch 1.6 must be saved anew with torch.save"
)


OriginKind = Literal["file", "package", "hub", "random"]


@dataclass(frozen=True)
class ModelOrigin:
    """What made the weights: enough to find the same ones again.

    revision  the commit hash of a Hugging Face repository
    kind      "package": weights that come with vggt-deploy, named by their config
    sha256    of the checkpoint file; None for random weights, which their spec determines
    licence   of known published checkpoints; anything derived from them keeps it
    """

    spec: str
    kind: OriginKind
    revision: str | None = None
    sha256: str | None = None
    licence: str | None = None


class WeightSource(Protocol):
    """Named float32 tensors."""

    @property
    def origin(self) -> ModelOrigin: ...

    def keys(self) -> tuple[str, ...]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def load(self, key: str) -> Tensor:
        """The tensor, float32, on the CPU."""
        ...


OriginFactory = Callable[[Path], ModelOrigin]


def file_origin(path: Path) -> ModelOrigin:
    return ModelOrigin(spec=str(path), kind="file", sha256=sha256_of(path))


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class RandomWeights:
    """The deterministic values of `recipe.recipe_tensor` for given keys and shapes."""

    def __init__(self, name: str, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> None:
        self.origin = ModelOrigin(spec=f"random:{name}:{seed}", kind="random")
        self._shapes = shapes
        self._seed = seed

    def keys(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def load(self, key: str) -> Tensor:
        return recipe_tensor(key, self._shapes[key], self._seed)


class SafetensorsWeights:
    """A .safetensors file, read with ordinary reads.

    Not through the library's memory map: pages of a map stay counted in the process until the
    kernel wants them back, and a streaming export of a 5 GB file would show 5 GB of memory.
    """

    def __init__(self, path: Path, origin: OriginFactory = file_origin) -> None:
        try:
            with safe_open(path, framework="pt"):  # validates header, offsets and file length
                pass
            with path.open("rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(header_bytes))
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} is not readable as safetensors: {error}", BROKEN_FILE_FIX
            ) from error
        header.pop("__metadata__", None)
        self._path = path
        self._data_start = 8 + header_bytes
        self._entries = header
        self._make_origin = origin

    @cached_property
    def origin(self) -> ModelOrigin:
        """Hashes the file when first asked for."""
        return self._make_origin(self._path)

    def keys(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._entries[key]["shape"])

    def load(self, key: str) -> Tensor:
        entry = self._entries[key]
        dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise _not_float(self._path, key, entry["dtype"])
        start, end = entry["data_offsets"]
        buffer = bytearray(end - start)
        with self._path.open("rb") as file:
            file.seek(self._data_start + start)
            count = file.readinto(buffer)
        if count != end - start:
            raise ModelError(f"{self._path} ended inside {key}", BROKEN_FILE_FIX)
        return torch.frombuffer(buffer, dtype=dtype).reshape(self.shape(key)).float()


class TorchWeights:
    """A state dict saved by torch.save, memory-mapped, unpickled with weights_only.

    Pages of the map count as this process's memory until the kernel wants them back; .safetensors
    is the format for a small footprint. The file may be the state dict itself or hold it under
    "model", as VGGT's trainer saves it.
    """

    def __init__(self, path: Path, origin: OriginFactory = file_origin) -> None:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"{path} holds more than tensors, or is damaged; its pickle was not executed",
                "save a plain state dict, best as .safetensors",
            ) from error
        except (RuntimeError, EOFError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{path} is not readable as a PyTorch checkpoint: {reason}", BROKEN_PICKLE_FIX
            ) from error
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            content = content["model"]
        if not isinstance(content, dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
        ):
            raise ModelError(
                f"{path} holds no state dict (names to tensors)",
                "save model.state_dict(), or that under the key 'model'",
            )
        self._path = path
        self._tensors: dict[str, Tensor] = content
        self._make_origin = origin

    @cached_property
    def origin(self) -> ModelOrigin:
        """Hashes the file when first asked for."""
        return self._make_origin(self._path)

    def keys(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def load(self, key: str) -> Tensor:
        tensor = self._tensors[key]
        if not tensor.is_floating_point():
            raise _not_float(self._path, key, str(tensor.dtype))
        return tensor.detach().float().contiguous()


def _not_float(path: Path, key: str, dtype: str) -> ModelError:
    return ModelError(
        f"{path}: {key} is {dtype}, not a floating-point tensor",
        "give the original checkpoint; quantized ones are outputs of this tool, not inputs",
    )
