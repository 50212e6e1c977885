"""Half precision in the PyTorch variant, where an exported graph has it.

    x: FP32 -> cast -> [attention or MLP] -> cast -> FP32

The casts are hooks on the outermost modules of `plan.in_half_region`, so the network itself knows
nothing of precision. This is not autocast, where a list of operators decides what is half.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vggt_deploy.quantize.plan import in_half_region


def half_inside(model: nn.Module, dtype: torch.dtype) -> None:
    """Register the casts. The float tensors inside the region must have `dtype` already."""
    for name, module in model.named_modules():
        if in_half_region(name) and not in_half_region(name.rpartition(".")[0]):
            # partial and not a closure: hooks are pickled with the model.
            module.register_forward_pre_hook(partial(_enter, dtype), with_kwargs=True)
            module.register_forward_hook(_leave)


def _enter(
    dtype: torch.dtype, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _cast(args, dtype), {name: _cast(value, dtype) for name, value in kwargs.items()}


def _leave(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.float()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors, also those in a tuple (the RoPE tables); numbers and None as they are."""
    match value:
        case Tensor():
            return value.to(dtype)
        case tuple():
            return tuple(_cast(item, dtype) for item in value)
    return value
