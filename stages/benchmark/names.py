"""The names of the benchmark's backends, which a plan checks without torch."""

BACKENDS = {
    "torch_fp32": "stages.benchmark.torch_backends:TorchFp32",
    "torch_bf16": "stages.benchmark.torch_backends:TorchBf16",
    "torch_int8": "stages.benchmark.torch_backends:TorchInt8",
    "torch_csr": "stages.benchmark.torch_backends:TorchCsr",
    "engine_fp32": "stages.benchmark.engine_backends:EngineFp32",
    "engine_bf16": "stages.benchmark.engine_backends:EngineBf16",
    "engine_int8": "stages.benchmark.engine_backends:EngineInt8",
    "engine_int8_head": "stages.benchmark.engine_backends:EngineInt8Head",
    "squarehead_w8a8": "stages.benchmark.torch_backends:SquareheadW8A8",
    "onnxruntime_fp32": "stages.benchmark.peer_backends:OnnxRuntimeFp32",
    "onnxruntime_int8": "stages.benchmark.peer_backends:OnnxRuntimeInt8",
    "deepsparse_fp32": "stages.benchmark.peer_backends:DeepSparseFp32",
    "deepsparse_int8": "stages.benchmark.peer_backends:DeepSparseInt8",
    "llamacpp_q8_0": "stages.benchmark.peer_backends:LlamaCppQ8",
    "llamacpp_q4_k": "stages.benchmark.peer_backends:LlamaCppQ4K",
}
"""Name -> where its class is; imported when asked for."""
