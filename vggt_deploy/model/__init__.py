"""VGGT itself: sizes, network, exact weight rewrites, and where weights come from.

Importing this package costs nothing; its modules other than `config` import torch.
"""
