"""Engines run a model in this process; `mecroute.engines.llama` runs GGUF models with llama.cpp."""
