"""Speed of a model: what `mecroute bench` measures, in this process or on a node."""

from mecroute_quantize.measure.endpoint import measure_endpoint
from mecroute_quantize.measure.engine import measure_engine
from mecroute_quantize.measure.sample import REFERENCE_OUTPUT_TOKENS, REFERENCE_PROMPT_TOKENS

__all__ = ["REFERENCE_OUTPUT_TOKENS", "REFERENCE_PROMPT_TOKENS", "measure_endpoint", "measure_engine"]
