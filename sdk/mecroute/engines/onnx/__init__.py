"""ONNX models through ONNX Runtime. Importing this does not import onnxruntime; making an engine does."""

from mecroute.engines.onnx.batcher import OnnxStats
from mecroute.engines.onnx.encoder import TextEncoder, open_onnx
from mecroute.engines.onnx.engine import OnnxEngine
from mecroute.engines.onnx.model import TensorSpec
from mecroute.engines.onnx.native import choose_providers

__all__ = ["OnnxEngine", "OnnxStats", "TensorSpec", "TextEncoder", "choose_providers", "open_onnx"]
