"""Looking at what the network saw: depth, confidence, points, cameras, as pictures and a page."""

from vggt_deploy.visualize.pipeline import Visualized, visualize

__all__ = ["Visualized", "visualize"]
