"""Images in: folders as people have them, upstream's preprocessing, scenes with truth.

Knows nothing of ONNX, of the model or of torch: numpy and Pillow only.
"""

from __future__ import annotations

from vggt_deploy.data.folders import ImageFolder, find_images
from vggt_deploy.data.images import ImageBatch, Placement, SkippedImage, load_images

__all__ = [
    "ImageBatch",
    "ImageFolder",
    "Placement",
    "SkippedImage",
    "find_images",
    "load_images",
]
