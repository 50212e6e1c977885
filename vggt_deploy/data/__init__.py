"""Images in: folders as people have them, upstream's preprocessing, and own sample pictures.

Knows nothing of ONNX, of the model or of torch: numpy and Pillow only.
"""

from __future__ import annotations

from vggt_deploy.data.folders import ImageFolder, find_images
from vggt_deploy.data.images import ImageBatch, Placement, SkippedImage, load_images
from vggt_deploy.data.samples import write_sample_images

__all__ = [
    "ImageBatch",
    "ImageFolder",
    "Placement",
    "SkippedImage",
    "find_images",
    "load_images",
    "write_sample_images",
]
