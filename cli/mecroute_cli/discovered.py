"""Asks every source of nodes once, for commands that run once."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mecroute.config import Config
    from mecroute.nodes.discovery.follow import SourceWatch


def discovered_nodes(config: Config) -> tuple[SourceWatch, ...]:
    """Each source of `[[discovery]]` after one look: its nodes, or what went wrong."""
    if not config.discovery:
        return ()
    from mecroute.nodes.discovery import open_discovery
    from mecroute.nodes.discovery.follow import SourceWatch
    from mecroute.nodes.fleet import find_once

    sources = tuple(
        SourceWatch(source, partial(open_discovery, source, config.store)) for source in config.discovery
    )
    asyncio.run(find_once(sources))
    return sources
