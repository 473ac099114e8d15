"""What the steps of the demo share: the stack, the screen, the variants, and what was checked so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mecroute_cli.demo.screen import Screen
from mecroute_cli.output import Output
from mecroute_cli.stack.stack import Stack

if TYPE_CHECKING:
    from mecroute import Client
    from mecroute_quantize import Variant
    from mecroute_registry import Registry


@dataclass
class Scene:
    """The state of a running demo.

    Args:
        output, screen: where things are printed.
        stack: the processes.
        registry: the demo's own registry.
        source: the GGUF file that everything is made from.
        name: the model's name in the registry.
    """

    output: Output
    screen: Screen
    stack: Stack
    registry: Registry
    source: Path
    name: str
    variants: dict[str, Variant] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    client: Client | None = None

    def close(self) -> None:
        """Close the client, if one was made."""
        if self.client is not None:
            self.client.close()
            self.client = None

    def check(self, ok: bool, claim: str, otherwise: str = "") -> None:
        """Check a claim and say so; a claim that does not hold makes the demo fail at its end."""
        self.screen.result(ok, claim if ok or not otherwise else f"{claim}: {otherwise}")
        if not ok:
            self.failures.append(f"{claim}: {otherwise}" if otherwise else claim)
