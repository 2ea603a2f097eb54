"""Other CPU runtimes, measured beside the engine: ONNX Runtime, DeepSparse 1.8, llama.cpp.

Each runs in a process of its own (`process`), in the environment that it needs (`environments`); none is a dependency.
"""
