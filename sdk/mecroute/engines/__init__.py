"""Engines run a model in this process: `llama` runs GGUF models with llama.cpp, `onnx` ONNX models."""
