"""A point-cloud classifier through the quantizer; see README.md."""
