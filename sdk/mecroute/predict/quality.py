"""Predicted quality: how likely a target's answer to this request is right."""

from __future__ import annotations

from mecroute.target import TargetState
from mecroute_registry.facts import Tier

#: Assumed accuracy where a model has none: the lower end of what each tier's models usually reach.
ASSUMED_ACCURACY: dict[Tier, float] = {"device": 0.60, "mec": 0.75, "cloud": 0.90}

#: The same of a model trained to tell classes apart, whatever its tier.
ASSUMED_CLASSIFIER_ACCURACY = 0.85


def predict_quality(state: TargetState, complexity: float) -> tuple[float, str]:
    """Interpolate between "anyone answers the easiest request" and the model's measured accuracy.

    quality = 1 - complexity × (1 - accuracy): 1 at complexity 0, the model's accuracy at complexity 1.

    Returns:
        The quality, 0..1, and a note that says what accuracy it stands on.
    """
    accuracy = state.accuracy
    source = state.accuracy_source
    if accuracy is None:
        accuracy, source = ASSUMED_ACCURACY[state.target.tier], "assumed"
        if "classify" in state.tasks:
            accuracy = ASSUMED_CLASSIFIER_ACCURACY
    return 1 - complexity * (1 - accuracy), f"accuracy {accuracy:.2f} ({source})"
