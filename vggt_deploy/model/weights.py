"""From what a user names to a config and its weights.

    vggt-nano                                 the weights in this package (./vggt-nano: a folder)
    checkpoint.safetensors, checkpoint.pt     a file
    folder/                                   with model.safetensors or model.pt
    facebook/VGGT-1B                          a Hugging Face id, revision pinned to a commit
    random:vggt-tiny, random:vggt-1b:7        the deterministic recipe, with a seed

The config is found by comparing keys and shapes. A checkpoint that fits none is refused in one
error that names the first differences and what was expected.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import torch

from vggt_deploy.errors import ModelError, UsageError
from vggt_deploy.model.config import CONFIGS, HEADS, VGGTConfig, get_config
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.packaged import LICENCE, PACKAGED, packaged_checkpoint
from vggt_deploy.model.sources import (
    ModelOrigin,
    OriginFactory,
    RandomWeights,
    SafetensorsWeights,
    TorchWeights,
    WeightSource,
    file_origin,
    sha256_of,
)
from vggt_deploy.model.vggt import VGGT

RANDOM_PREFIX = "random:"
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
NAMED_DIFFERENCES = 4


@cache
def expected_shapes(config: VGGTConfig, heads: frozenset[str]) -> dict[str, tuple[int, ...]]:
    """Every key of an unfolded model with these heads (none: the aggregator alone)."""
    with torch.device("meta"):
        model = VGGT(config, heads=heads or frozenset({"camera"}))
    return {
        key: tuple(value.shape)
        for key, value in model.state_dict().items()
        if heads or key.startswith("aggregator.")
    }


def open_weights(
    spec: str | Path, *, config: VGGTConfig | str | None = None, revision: str | None = None
) -> tuple[VGGTConfig, WeightSource]:
    """Find the weights that `spec` names. Reads no tensor yet; downloads if it is a Hub id.

    `config` is a config or the name of one, and skips the matching. `revision` is for Hub ids only.
    """
    spec = str(spec)
    given = get_config(config) if isinstance(config, str) else config
    if spec.startswith(RANDOM_PREFIX):
        if revision is not None:
            raise _no_revision(spec)
        return _open_random(spec, given)
    source = _open_file(*_locate(spec, revision))
    if given is None and spec in PACKAGED:
        given = get_config(spec)
    if given is None:
        given = match_config(source)
    else:
        check_keys(source, given, frozenset())
    return given, source


def checkpoint_path(spec: str, revision: str | None = None) -> Path | None:
    """The file that `open_weights` reads; None for random weights, which have none.

    Downloads if it is a Hub id that is not in the cache.
    """
    return None if spec.startswith(RANDOM_PREFIX) else _locate(spec, revision)[0]


def match_config(source: WeightSource) -> VGGTConfig:
    """The config whose aggregator has exactly this source's keys and shapes."""
    found = {key: source.shape(key) for key in source.keys() if key.startswith("aggregator.")}  # noqa: SIM118
    differing: dict[str, int] = {}
    for config in CONFIGS.values():
        expected = expected_shapes(config, frozenset())
        if expected == found:
            return config
        differing[config.name] = len(dict(expected.items() ^ found.items()))
    nearest = CONFIGS[min(differing, key=lambda name: differing[name])]
    check_keys(
        source, nearest, frozenset(), what=f"any known config; beside the nearest, {nearest.name}"
    )
    raise AssertionError("unreachable: an aggregator that differs passes no check")


def check_keys(
    source: WeightSource,
    config: VGGTConfig,
    heads: frozenset[str] | None = None,
    *,
    what: str | None = None,
) -> None:
    """Raise one ModelError if the source lacks a key, has a wrong shape, or a key of no known part.

    Only the aggregator and `heads` are needed (None: all the config has; empty: the aggregator
    alone). Whatever the checkpoint holds for other heads is not looked at.
    """
    needed = config.available_heads if heads is None else heads
    expected = expected_shapes(config, needed)
    ignored = tuple(f"{head}_head." for head in HEADS if head not in needed)
    keys = frozenset(source.keys())
    problems = [
        f"missing {key} {_dims(shape)}" for key, shape in expected.items() if key not in keys
    ]
    for key in source.keys():  # noqa: SIM118  (a Protocol, not a dict)
        if key not in expected:
            if not key.startswith(ignored):
                problems.append(f"unexpected {key} {_dims(source.shape(key))}")
        elif source.shape(key) != expected[key]:
            problems.append(f"{key} is {_dims(source.shape(key))}, not {_dims(expected[key])}")
    if not problems:
        return
    listed = "".join(f"\n    {problem}" for problem in problems[:NAMED_DIFFERENCES])
    more = len(problems) - NAMED_DIFFERENCES
    raise ModelError(
        f"the checkpoint does not fit {what or config.name}: {len(problems)} keys differ:{listed}"
        + (f"\n    and {more} more" if more > 0 else ""),
        f"give a checkpoint of one of {', '.join(CONFIGS)}, or name its config; a head that the "
        "checkpoint lacks can be left out",
    )


def load_model(
    spec: str | Path | WeightSource,
    config: VGGTConfig | str | None = None,
    *,
    heads: frozenset[str] | None = None,
    folded: bool = False,
    revision: str | None = None,
) -> VGGT:
    """A VGGT with its weights, in eval mode, without gradients.

    A source needs its config; a spec finds it. `heads` None is all the config has.
    """
    if isinstance(spec, str | Path):
        sizes, source = open_weights(spec, config=config, revision=revision)
    else:
        if config is None:
            raise UsageError("a weight source alone has no config", "pass config= beside it")
        sizes, source = get_config(config) if isinstance(config, str) else config, spec
    check_keys(source, sizes, heads)
    if folded:
        source = FoldedWeights(source, sizes)
    with torch.device("meta"):
        model = VGGT(sizes, heads=heads, folded=folded)
    # Parameters of a meta model have no storage: each tensor read here becomes the parameter.
    values = {key: source.load(key) for key in model.state_dict()}
    model.load_state_dict(values, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _open_random(spec: str, given: VGGTConfig | None) -> tuple[VGGTConfig, WeightSource]:
    name, _, seed = spec.removeprefix(RANDOM_PREFIX).partition(":")
    config = get_config(name)
    if given is not None and given != config:
        raise UsageError(f"{spec!r} and config {given.name!r} disagree", "drop one of them")
    if seed and not seed.isdecimal():
        raise UsageError(f"{spec!r}: {seed!r} is no seed", "write random:<config>:<whole number>")
    shapes = expected_shapes(config, config.available_heads)
    return config, RandomWeights(config.name, shapes, int(seed or 0))


def _locate(spec: str, revision: str | None) -> tuple[Path, OriginFactory]:
    """The checkpoint file of a spec that is not random, and what tells where it is from.

    The names in this package go first: a folder in the working directory must not change them.
    """
    path = Path(spec).expanduser()
    here = spec in PACKAGED or path.exists()
    if here and revision is not None:
        raise _no_revision(spec)
    if spec in PACKAGED:
        return packaged_checkpoint(spec), partial(_packaged_origin, spec)
    if path.exists():
        return (_checkpoint_in(path) if path.is_dir() else path), file_origin
    return _on_the_hub(spec, revision)


def _packaged_origin(name: str, path: Path) -> ModelOrigin:
    return ModelOrigin(name, "package", sha256=sha256_of(path), licence=LICENCE)


def _open_file(path: Path, origin: OriginFactory) -> WeightSource:
    if path.suffix == ".safetensors":
        return SafetensorsWeights(path, origin)
    if path.suffix in TORCH_SUFFIXES:
        return TorchWeights(path, origin)
    raise ModelError(
        f"{path}: unknown kind of checkpoint {path.suffix!r}",
        f"give .safetensors or {', '.join(TORCH_SUFFIXES)}",
    )


def _checkpoint_in(folder: Path) -> Path:
    names = ("model.safetensors", "model.pt")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(
        f"{folder} holds none of {', '.join(names)}", "name the checkpoint file itself"
    )


def _on_the_hub(spec: str, revision: str | None) -> tuple[Path, OriginFactory]:
    from vggt_deploy.model import hub  # only a Hub id needs the network library

    if not hub.HUB_ID.fullmatch(spec) or Path(spec).suffix in (".safetensors", *TORCH_SUFFIXES):
        raise ModelError(
            f"no file or folder {spec!r}",
            f"give a checkpoint, a folder, a Hugging Face id (owner/name), {', '.join(PACKAGED)} "
            "or random:<config>",
        )
    fetched = hub.fetch(spec, revision)

    def origin(path: Path) -> ModelOrigin:
        return ModelOrigin(
            spec=spec,
            kind="hub",
            revision=fetched.revision,
            sha256=sha256_of(path),
            licence=hub.LICENCES.get(spec),
        )

    return fetched.path, origin


def _no_revision(spec: str) -> UsageError:
    return UsageError(f"{spec!r} has no revisions", "a revision is for Hugging Face ids only")


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape) if shape else "scalar"
