"""Quantization-aware training.

Fake quantization of any network (`fake`), and the training of a VGGT with it against its own FP32
outputs (`recipe`, `scenes`, `distill`, `loop`, `pipeline`).
"""
