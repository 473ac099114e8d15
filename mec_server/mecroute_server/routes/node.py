"""How a route reaches the node it answers for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from mecroute_server.node import Node


async def current_node(request: Request) -> Node:
    """The node of the app that this request came to."""
    node = request.app.state.node
    assert isinstance(node, Node)
    return node


CurrentNode = Annotated[Node, Depends(current_node)]
