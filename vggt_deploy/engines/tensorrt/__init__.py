"""TensorRT and TensorRT-RTX: one API under two module names, so one set of modules for both.

`library` finds the module, looks members up by name and keeps TensorRT's error lines; `cuda` is the
little of the CUDA runtime that running needs; `session` opens an engine and runs it.
"""
