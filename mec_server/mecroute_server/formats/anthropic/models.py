"""Models as Anthropic's `/v1/models` describes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mecroute_server.slot import ModelSlot


def model_info(slot: ModelSlot) -> dict[str, Any]:
    """One model."""
    loaded, model = slot.loaded, slot.model
    n_ctx = loaded.engine.n_ctx if loaded is not None else None
    since = datetime.fromtimestamp(0, UTC) if model is None else model.created
    if loaded is not None:
        since = loaded.since
    return {
        "type": "model",
        "id": slot.ref,
        "display_name": slot.ref,
        "created_at": since.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": n_ctx,
        "max_tokens": n_ctx,
    }


def model_page(slots: list[ModelSlot]) -> dict[str, Any]:
    """All models, which are always one page."""
    models = [model_info(slot) for slot in slots]
    return {
        "data": models,
        "has_more": False,
        "first_id": models[0]["id"] if models else None,
        "last_id": models[-1]["id"] if models else None,
    }
