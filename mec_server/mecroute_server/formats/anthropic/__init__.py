"""Anthropic's Messages."""

from mecroute_server.formats.anthropic.answer import EVENTS, events, message
from mecroute_server.formats.anthropic.models import model_info, model_page
from mecroute_server.formats.anthropic.request import parse_count, parse_messages

__all__ = ["EVENTS", "events", "message", "model_info", "model_page", "parse_count", "parse_messages"]
