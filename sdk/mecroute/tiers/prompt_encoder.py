"""The topics of prompts by an encoder of the device: bounded in tokens and in time."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from mecroute.errors import MecrouteError
from mecroute.predict.topic import TOPICS
from mecroute.target import Target
from mecroute.tiers.text_models import TextModels

if TYPE_CHECKING:
    from mecroute.engines.onnx.encoder import TextEncoder

_LOG = logging.getLogger("mecroute.router")
#: Read of a prompt; what it is about stands at its beginning, and time grows with the tokens.
MOST_TOKENS = 32
_MOST_CHARS = 16 * MOST_TOKENS
#: A decision does not wait longer for a model that is busy with other texts.
_PATIENCE_S = 0.025
_REMEMBERED = 4096
_NAMES = tuple(TOPICS)


class PromptEncoder:
    """Finds the topic of a prompt with one text model. For one event loop.

    The model is loaded when it is first wanted, in the background; nobody waits for that. The first prompt
    after it waits for the topics to be encoded.

    Args:
        texts: the text models of the device.
        target: the one that encodes.
    """

    def __init__(self, texts: TextModels, target: Target) -> None:
        self._texts = texts
        self._target = target
        self.name = target.model
        #: float32 [topics, dim], of length 1 each.
        self._topics: Any = None
        #: By digest of what was read, never by its text.
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._has_complained = False

    async def topic(self, text: str) -> str | None:
        """The topic nearest to the beginning of a prompt; None where it cannot be had in time."""
        read = text[:_MOST_CHARS]
        key = blake2b(read.encode("utf-8", "replace"), digest_size=16).digest()
        known = self._known.get(key)
        if known is not None:
            return known
        engine = self._texts.loaded(self._target)
        if engine is None:
            return None
        if engine.encoder is None:
            self._complain("it does not embed texts")
            return None
        try:
            if self._topics is None:
                self._topics, _ = await asyncio.to_thread(engine.encoder.embed, list(TOPICS.values()))
            found = await self._nearest(engine.encoder, read)
        except TimeoutError:
            return None
        except MecrouteError as error:
            self._complain(error.message)
            return None
        self._known[key] = found
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    async def _nearest(self, encoder: TextEncoder, text: str) -> str:
        groups, _ = encoder.groups([encoder.tokens(text, MOST_TOKENS)])
        submitted = asyncio.wrap_future(encoder.submit(groups[0]))
        outputs = await asyncio.wait_for(submitted, _PATIENCE_S)
        vector = encoder.vectors(groups[0], outputs)[0]
        return _NAMES[int((self._topics @ vector).argmax())]

    def _complain(self, why: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            _LOG.warning("prompts are not read with %s: %s", self.name, why)
