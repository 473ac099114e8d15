"""OpenAI's Responses, without a store."""

from mecroute_server.formats.responses.answer import EVENTS, events, response
from mecroute_server.formats.responses.request import parse_response

__all__ = ["EVENTS", "events", "parse_response", "response"]
