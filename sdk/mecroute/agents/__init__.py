"""The five agents that decide where a request runs, one class each."""

from mecroute.agents.cache import CacheAgent
from mecroute.agents.context import ContextAgent
from mecroute.agents.monitor import MonitorAgent
from mecroute.agents.resource import ResourceAgent
from mecroute.agents.router import RouterAgent

__all__ = ["CacheAgent", "ContextAgent", "MonitorAgent", "ResourceAgent", "RouterAgent"]
