"""How demanding a text is, as a learned predictor sees it: the source of a request's learned complexity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mecroute.errors import ConfigError
from mecroute.predict.quality_model import QualityModel, read_quality_model, shipped_quality_model

Difficulty = Callable[[str], float]

SHIPPED = "shipped"
OFF = "off"


def difficulty_source(predictor: str) -> Difficulty | None:
    """The difficulty function that a configuration names.

    Args:
        predictor: `shipped`, `off`, or the path of a file that `mecroute bench routing --save` wrote.

    Returns:
        A function of a text to 0..1; None where it is off. The shipped predictor is read on the first text.

    Raises:
        ConfigError: the file cannot be read, or is no predictor.
    """
    if predictor == OFF:
        return None
    if predictor == SHIPPED:
        return lambda text: difficulty(shipped_quality_model(), text)
    model = read_quality_model(Path(predictor).expanduser())
    if "weak" not in model.heads:
        raise ConfigError(f"the predictor {predictor} does not predict a model named 'weak'")
    return lambda text: difficulty(model, text)


def difficulty(model: QualityModel, text: str) -> float:
    """A model's predicted share of wrong answers to such a text, over its mean share; at most 1.

    Predicted errors of other models follow from theirs in proportion: error = difficulty × mean error, which
    is the shape of `predict_quality`.
    """
    accuracy = model.about.get("accuracy")
    mean = accuracy.get("weak") if isinstance(accuracy, dict) else None
    mean_error = 1 - mean if isinstance(mean, float) and 0 <= mean < 1 else 1.0
    error = 1 - model.predict(text)[model.heads.index("weak")]
    return min(1.0, max(0.0, error / mean_error))
