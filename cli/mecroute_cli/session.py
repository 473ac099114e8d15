"""What one run of the program shares: its output, its configuration, and the registry they point at."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

    from mecroute.config import Config, LoadedConfig, NodeConfig
    from mecroute_cli.output import Output
    from mecroute_registry import Registry


class Session:
    """One run of `mecroute`. The configuration is read on first use and once.

    Args:
        output: where results go.
        config_path: the file named with `--config`, in place of the project and user files.
    """

    def __init__(self, output: Output, config_path: Path | None = None) -> None:
        self.output = output
        self.config_path = config_path

    @cached_property
    def loaded(self) -> LoadedConfig:
        """The configuration with the source of each value."""
        return self.load()

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.loaded.config

    def load(self, **overrides: Any) -> LoadedConfig:
        """Load the configuration with flags on top; `server__port` stands for `server.port`."""
        from mecroute.config import load_config

        flags = {name.replace("__", "."): value for name, value in overrides.items()}
        return load_config(self.config_path, overrides=flags)

    def registry(self) -> Registry:
        """The local registry that the configuration names."""
        from mecroute_registry import Registry

        return Registry(self.config.registry.path)

    def node(self, name: str) -> NodeConfig:
        """A node by name: a configured one, or else one that a source of nodes finds now.

        Raises:
            NodeNotFoundError: there is none; the message lists those that there are.
        """
        from mecroute.errors import NodeNotFoundError
        from mecroute_cli.discovered import discovered_nodes

        nodes = {node.name: node for node in self.config.nodes}
        if name not in nodes:
            for source in discovered_nodes(self.config):
                nodes |= {node.name: node for node in source.nodes}
        if name in nodes:
            return nodes[name]
        known = ", ".join(nodes)
        raise NodeNotFoundError(
            f"no node named '{name}' is configured" + (f"; known: {known}" if known else ""),
            hint="add a [[nodes]] table with name and url to the file that `mecroute config path` names",
        )


def session_of(ctx: typer.Context) -> Session:
    """The session that `main` gave to this command."""
    session = ctx.find_root().obj
    assert isinstance(session, Session)
    return session
