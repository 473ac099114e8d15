"""The Open Inference Protocol (KServe v2) over HTTP: requests, answers and datatypes."""

from mecroute_server.kserve.answer import encode_answer, model_metadata
from mecroute_server.kserve.request import InferRequest, check_datatypes, parse_infer

__all__ = ["InferRequest", "check_datatypes", "encode_answer", "model_metadata", "parse_infer"]
