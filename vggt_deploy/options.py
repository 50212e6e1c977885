"""What the command line's words mean, as plain functions: text in, values or a UsageError out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from vggt_deploy.errors import UsageError
from vggt_deploy.outputs import OUTPUT_GROUPS, output_groups

if TYPE_CHECKING:
    from vggt_deploy.quantize.schemes import Quantization

PATCH_PX = 14
Precision = Literal["fp32", "fp16", "bf16"]
Mode = Literal["crop", "pad"]
DEFAULT_MODEL = "facebook/VGGT-1B"


def parse_scheme(
    label: str | None,
    recipe: Path | None = None,
    activations: str | None = None,
    words: Sequence[str] = (),
) -> Quantization:
    """`--scheme` or `--recipe`, with what `--activations`, `--smooth` and their like add to it.

    `int8_pc_sym+dynamic` says scheme and activations in one word.

    Raises:
        UsageError: neither or both, or words that mean nothing together.
    """
    from vggt_deploy.quantize.recipe import load_recipe
    from vggt_deploy.quantize.schemes import as_quantization, parse_activations, with_words

    if (label is None) == (recipe is None):
        given = "nothing" if label is None else "both --scheme and --recipe"
        raise UsageError(
            f"{given} was given to say what the weights become",
            "use --scheme, such as --scheme int8_pc_sym, or --recipe FILE, or --prepared DIR",
        )
    asked = load_recipe(recipe) if recipe is not None else as_quantization(str(label))
    mode = None if activations is None else parse_activations(activations)
    return with_words(as_quantization(asked, mode), words)


def only_prepared(
    folder: Path,
    label: str | None,
    recipe: Path | None,
    activations: str | None,
    words: Sequence[str],
) -> str:
    """`--prepared` alone: what the folder holds is said there. The name for the output."""
    options = {"--scheme": label, "--recipe": recipe, "--activations": activations}
    given = [name for name, value in options.items() if value is not None]
    if given or words:
        raise UsageError(
            f"--prepared was given, and {given[0] if given else '+'.join(words)} beside it",
            "leave it out: the folder knows its own scheme",
        )
    return folder.resolve().name


def treatment_words(
    *, smooth: str | None, rotate: bool, rounding: str | None, weight_range: str | None, apart: bool
) -> tuple[str, ...]:
    """The words of a label that these options stand for."""
    from vggt_deploy.quantize.methods import parse_method
    from vggt_deploy.quantize.treatment import ABSMAX, short_method

    words = []
    if weight_range is not None and parse_method(weight_range) != ABSMAX:
        words.append(f"w={short_method(parse_method(weight_range))}")
    if apart:
        words.append("apart")
    if smooth is not None:
        words.append("smooth" if smooth == "auto" else f"smooth={smooth}")
    if rotate:
        words.append("rotate")
    if rounding is not None and rounding != "nearest":
        words.append(rounding)
    return tuple(words)


def parse_precision(text: str | None) -> Precision | None:
    """fp32, fp16 or bf16; None leaves it to the scheme."""
    if text is None:
        return None
    known: tuple[Precision, ...] = get_args(Precision)
    for precision in known:
        if text == precision:
            return precision
    raise UsageError(f"unknown precision {text!r}", f"use one of: {', '.join(known)}")


def parse_mode(text: str) -> Mode:
    """How images are brought to size."""
    known: tuple[Mode, ...] = get_args(Mode)
    for mode in known:
        if text == mode:
            return mode
    raise UsageError(f"unknown mode {text!r}", "use --mode crop or --mode pad")


def parse_frames(text: str) -> tuple[int, int, int]:
    """`min:opt:max`, or one number for an artifact that takes exactly that many frames."""
    parts = text.split(":")
    fix = "give min:opt:max, e.g. --frames 1:5:16, or one number"
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"[0-9]{1,6}", part) for part in parts):
        raise UsageError(f"--frames {text!r} is not min:opt:max", fix)
    numbers = [int(part) for part in parts] * (3 if len(parts) == 1 else 1)
    smallest, usual, largest = numbers
    if not 1 <= smallest <= usual <= largest:
        raise UsageError(f"--frames {text}: 1 <= min <= opt <= max must hold", fix)
    return smallest, usual, largest


def parse_list(text: str, option: str) -> tuple[str, ...]:
    """Words between commas, spaces ignored, in order, each once."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise UsageError(f"{option} is empty", f"leave {option} out, or name at least one")
    return words


def parse_outputs(text: str) -> tuple[str, ...]:
    """`pose,depth,points` (or `all`) in that order, whatever order they are given in."""
    words = parse_list(text, "--outputs")
    if words == ("all",):
        return tuple(OUTPUT_GROUPS)
    return tuple(group.name for group in output_groups(words))


def check_size(option: str, pixels: int | None, patch: int = PATCH_PX) -> int | None:
    """`pixels`, if it is a positive multiple of the patch size; None leaves it to the model."""
    if pixels is None or (pixels > 0 and pixels % patch == 0):
        return pixels
    below = max(pixels, 0) // patch * patch
    nearest = [str(value) for value in (below, below + patch) if value > 0]
    raise UsageError(
        f"{option} {pixels} is not a multiple of {patch}, the patch size of VGGT",
        f"use {option} {' or '.join(nearest)}",
    )


def default_output(model: str, label: str) -> Path:
    """`<model>-<label>` in the working directory, plus signs as dashes.

    vggt-nano, int8_pc_sym -> vggt-nano-int8_pc_sym
    facebook/VGGT-1B, int8_pc_sym -> vggt-1b-int8_pc_sym
    random:vggt-1b, int8_pc_sym+dynamic -> random-vggt-1b-int8_pc_sym-dynamic
    runs/best.safetensors, int4_g128+gptq -> best-int4_g128-gptq
    """
    if not model.startswith("random:"):
        model = Path(model.rstrip("/")).name
        model = re.sub(r"\.(safetensors|pt|pth|bin)$", "", model)
    stem = re.sub(r"[^a-z0-9_.]+", "-", model.lower()).strip("-.") or "model"
    return Path(f"{stem}-{label.replace('+', '-')}")


def default_engine(artifact: Path, device: str) -> Path:
    """`<artifact>-<device>` in the working directory; a profile file counts by its stem."""
    stem = Path(device).stem if device.endswith(".toml") else device
    return Path(f"{artifact.resolve().name}-{stem}")


def parse_bundle_format(
    text: str, *, only_bundle: dict[str, object], only_triton: dict[str, object]
) -> Literal["bundle", "triton"]:
    """`--format`; options that only the other one has (those not None) are refused."""
    known: dict[str, Literal["bundle", "triton"]] = {"bundle": "bundle", "triton": "triton"}
    if text not in known:
        raise UsageError(f"unknown format {text!r}", "use --format bundle or --format triton")
    others = only_triton if text == "bundle" else only_bundle
    for option, value in others.items():
        if value is not None:
            raise UsageError(f"--format {text} has no {option}", f"leave {option} out")
    return known[text]


def parse_picture_size(text: str) -> tuple[int, int]:
    """`640x480` -> (width, height) in pixels."""
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    sides = () if match is None else (int(match[1]), int(match[2]))
    if not sides or min(sides) < 16 or max(sides) > 4096:
        raise UsageError(
            f"--size {text!r} is not WIDTHxHEIGHT of 16 to 4096 pixels", "e.g. --size 640x480"
        )
    return sides
