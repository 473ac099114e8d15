"""Make a model fit a tier, and measure what that cost.

Importing this loads no engine: each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mecroute_quantize.evaluation import accuracy_standard_error, evaluate
    from mecroute_quantize.formats import QUANTIZATIONS, parse_quantization
    from mecroute_quantize.gguf import QuantizedFile, quantize_gguf
    from mecroute_quantize.measure import measure_endpoint, measure_engine
    from mecroute_quantize.pipeline import Variant, make_variant
    from mecroute_quantize.recipes import RECIPES, Recipe, recipe_for

__all__ = [
    "QUANTIZATIONS",
    "RECIPES",
    "QuantizedFile",
    "Recipe",
    "Variant",
    "accuracy_standard_error",
    "evaluate",
    "make_variant",
    "measure_endpoint",
    "measure_engine",
    "parse_quantization",
    "quantize_gguf",
    "recipe_for",
]

_HOME = {
    "QUANTIZATIONS": "formats",
    "RECIPES": "recipes",
    "QuantizedFile": "gguf",
    "Recipe": "recipes",
    "Variant": "pipeline",
    "accuracy_standard_error": "evaluation",
    "evaluate": "evaluation",
    "make_variant": "pipeline",
    "measure_endpoint": "measure",
    "measure_engine": "measure",
    "parse_quantization": "formats",
    "quantize_gguf": "gguf",
    "recipe_for": "recipes",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
