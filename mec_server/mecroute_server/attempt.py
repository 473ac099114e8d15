"""One attempt to make a model ready: whatever it ends with, its slot says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mecroute.errors import MecrouteError
from mecroute_server.residency import AbandonedError
from mecroute_server.slot import ModelSlot

_log = logging.getLogger(__name__)


@contextmanager
def attempt(slot: ModelSlot) -> Iterator[None]:
    """Record in the slot what an attempt ends with, whatever that is."""
    try:
        yield
    except asyncio.CancelledError:
        slot.rest("cancelled")
        raise
    except AbandonedError:
        raise
    except MecrouteError as error:
        _log.warning("%s: %s", slot.ref, error)
        slot.fail(error)
        raise
    except Exception as error:
        # The edge of a background task: nobody above it would see the exception.
        _log.exception("%s could not be made ready", slot.ref)
        failure = MecrouteError(
            f"'{slot.ref}' could not be made ready: {type(error).__name__}: {error}",
            hint="the server's log has the details",
            model=slot.ref,
        )
        slot.fail(failure)
        raise failure from error
