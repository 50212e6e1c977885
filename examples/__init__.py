"""Examples that use the package as a library; run with `python -m examples.<name>`."""
