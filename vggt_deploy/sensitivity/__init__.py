"""What each block, layer or head loses when it alone is quantized, and which one broke an artifact.

    sensitivity   one unit at a time in integers: local error, then geometry -> `table`
    bisect        an artifact beside FP32, block by block: the first that leaves it, and the cure

Nothing heavy is imported here.
"""
