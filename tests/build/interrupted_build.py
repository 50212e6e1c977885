"""Started by a test: builds an artifact and says when TensorRT is at work."""

import sys
from pathlib import Path

from vggt_deploy.build import build


def progress(stage: str, done: int, total: int) -> None:
    if stage == "build":
        print("building", flush=True)


try:
    build(
        Path(sys.argv[1]),
        runtime="tensorrt-rtx",
        device="rtx4090",
        output_dir=Path(sys.argv[2]),
        progress=progress,
    )
except KeyboardInterrupt:
    sys.exit(130)
