"""The sizes of a VGGT, as data. No torch here: the command line reads this to list what it knows.

All have one architecture. `vggt-1b` is facebook/VGGT-1B; `vggt-nano` is trained on rendered scenes
and lies in this package; `vggt-small` and `vggt-tiny` have no trained weights and are for tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vggt_deploy.errors import UsageError

PATCH = 14
MLP_RATIO = 4
HEADS = ("camera", "depth", "point", "track")


@dataclass(frozen=True)
class TrackConfig:
    """Sizes of the point tracker.

    `features` is the width of its feature map and of a point's latent; a token has
    3 * features + 4 channels (flow embedding, correlation, latent, and twice the flow itself).
    """

    features: int = 128
    hidden: int = 384
    attention_heads: int = 8
    blocks: int = 6
    virtual_tracks: int = 64
    corr_levels: int = 7
    corr_radius: int = 4
    iterations: int = 4
    down_ratio: int = 2
    max_scale: int = 518

    @property
    def token_width(self) -> int:
        return 3 * self.features + 4


@dataclass(frozen=True)
class VGGTConfig:
    """Sizes of one model; everything that a state dict's shapes depend on, and the iterations.

    `size` (height, width) is what the model was trained at, and so what it is run at unless asked.
    `img_size` is the native grid of the positional embedding times the patch size, not a limit on
    the images. Encoder, frame and global blocks share `embed` and `heads`; the camera trunk and the
    prediction heads work at 2 * embed, the concatenation of a frame and a global block's output.
    """

    name: str
    embed: int
    heads: int
    depth: int
    encoder_depth: int
    camera_depth: int
    camera_heads: int
    dpt_layers: tuple[int, int, int, int]
    dpt_features: int
    dpt_channels: tuple[int, int, int, int]
    img_size: int = 518
    size: tuple[int, int] = (350, 518)
    patch: int = PATCH
    registers: int = 4
    camera_iterations: int = 4
    track: TrackConfig | None = field(default=None)

    def __post_init__(self) -> None:
        # Two axes times two rotated halves: RoPE needs a head width divisible by four.
        if self.embed % self.heads or self.head_dim % 4 or (2 * self.embed) % self.camera_heads:
            raise ValueError(f"{self.name}: widths and heads do not divide")
        if max(self.dpt_layers) >= self.depth:
            raise ValueError(f"{self.name}: dpt_layers {self.dpt_layers} exceed depth {self.depth}")

    @property
    def head_dim(self) -> int:
        return self.embed // self.heads

    @property
    def special_tokens(self) -> int:
        """Tokens before the patches: camera (or cls) and registers."""
        return 1 + self.registers

    @property
    def native_grid(self) -> int:
        """Side of the square grid on which the positional embedding is stored."""
        return self.img_size // self.patch

    @property
    def available_heads(self) -> frozenset[str]:
        return frozenset(h for h in HEADS if h != "track" or self.track is not None)

    def image_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """What was asked for, in pixels; where nothing was, what the model works best at."""
        return (
            self.size[0] if height is None else height,
            self.size[1] if width is None else width,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Image size in pixels -> patch grid (h, w)."""
        if height <= 0 or width <= 0 or height % self.patch or width % self.patch:
            raise UsageError(
                f"image size {height} x {width} (height x width) is not a multiple of {self.patch}",
                f"take the nearest multiples, for example "
                f"{max(1, round(height / self.patch)) * self.patch} x "
                f"{max(1, round(width / self.patch)) * self.patch}",
            )
        return height // self.patch, width // self.patch


CONFIGS: dict[str, VGGTConfig] = {
    config.name: config
    for config in (
        VGGTConfig(
            name="vggt-1b",
            embed=1024,
            heads=16,
            depth=24,
            encoder_depth=24,
            camera_depth=4,
            camera_heads=16,
            dpt_layers=(4, 11, 17, 23),
            dpt_features=256,
            dpt_channels=(256, 512, 1024, 1024),
            track=TrackConfig(),
        ),
        VGGTConfig(
            name="vggt-nano",
            embed=128,
            heads=4,
            depth=6,
            encoder_depth=4,
            camera_depth=2,
            camera_heads=4,
            dpt_layers=(1, 2, 4, 5),
            dpt_features=24,
            dpt_channels=(24, 48, 96, 96),
            img_size=112,
            size=(84, 112),
        ),
        VGGTConfig(
            name="vggt-small",
            embed=128,
            heads=2,
            depth=4,
            encoder_depth=4,
            camera_depth=2,
            camera_heads=4,
            dpt_layers=(0, 1, 2, 3),
            dpt_features=64,
            dpt_channels=(32, 64, 128, 128),
        ),
        VGGTConfig(
            name="vggt-tiny",
            embed=32,
            heads=2,
            depth=4,
            encoder_depth=2,
            camera_depth=2,
            camera_heads=2,
            dpt_layers=(0, 1, 2, 3),
            dpt_features=16,
            dpt_channels=(8, 16, 32, 32),
            img_size=112,
            track=TrackConfig(
                features=8,
                hidden=32,
                attention_heads=4,
                blocks=1,
                virtual_tracks=8,
                corr_levels=3,
                iterations=2,
            ),
        ),
    )
}


def get_config(name: str) -> VGGTConfig:
    if name not in CONFIGS:
        raise UsageError(f"unknown model config {name!r}", f"known configs: {', '.join(CONFIGS)}")
    return CONFIGS[name]
