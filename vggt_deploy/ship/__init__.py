"""From engines to one file, from that file to a device; and model repositories for Triton.

    index      what a bundle says about itself       container  its bytes: writing, checked reading
    signing    Ed25519 over the index                contract   pixels in, tensors out
    accuracy   what was measured, from a comparison  fit        can this device run that engine?
    bundle     make one                              verify     check one, unpack it
    rebuild    the engine again, on this device      triton     a repository for Triton's server

Nothing here needs torch or onnx. `rebuild` calls the builder, which needs onnx and TensorRT.
"""
