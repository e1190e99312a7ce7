"""Many answers at a time on one GPU: keys and values in pages, steps of decoding as CUDA graphs.

    pool.py        pages of the cache, who uses them
    attention.py   the attention function that models call: writes new keys and values, reads pages
    kernels.py     attention over pages: Triton on a GPU, plain torch as its definition
    model.py       slots, reading prompts, one step of decoding (recorded once per batch size, replayed)
    continuous.py  evaluation: rows enter as others finish
    support.py     which models this can be used for

`luthier.serve` and evaluation share all of it. On a CPU everything runs through the definitions (tests do);
the paths for CPUs are `luthier.generation.batch` and `luthier.serve.engine.slots`.
"""
