"""The command tree: which command stands where. The commands themselves live one module per noun or verb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mecroute_cli.commands import (
    bench,
    budgets,
    cache,
    cascade,
    chat,
    config,
    decisions,
    demo,
    deploy,
    dev,
    doctor,
    keys,
    learned,
    models,
    nodes,
    placement,
    pull,
    push,
    quantize,
    registry,
    route,
    serve,
    simulate,
)
from mecroute_cli.help import Command, Group, examples

TRY = "Try it"
MAKE = "Make and keep models"
RUN = "Run them at the edge"
ROUTE = "Route requests"
LOOK = "Look after it"


def _print_version(value: bool) -> None:
    if value:
        from mecroute_registry._version import __version__

        typer.echo(f"mecroute {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="PATH", help="Read this file in place of the usual ones."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Run AI where it should run: on the device, on a nearby edge server, or in the cloud."""
    # main() has read --config and --json already, for they may stand anywhere on the line.
    del version, config, as_json


def build_app() -> typer.Typer:
    """Build the whole command tree; nothing heavy is imported for it."""
    app = typer.Typer(
        cls=Group,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        epilog=examples(
            "mecroute demo                          the whole story on this machine, nothing to set up",
            'mecroute chat "What is an edge server?" --privacy edge',
            "mecroute doctor                        what is installed, reachable, missing",
        ),
    )
    app.callback()(_root)

    def add(command: object, name: str, panel: str, epilog: str) -> None:
        app.command(name, cls=Command, rich_help_panel=panel, epilog=epilog)(command)  # type: ignore[type-var]

    def add_noun(noun: typer.Typer, name: str, panel: str) -> None:
        app.add_typer(noun, name=name, rich_help_panel=panel)

    add(demo.demo, "demo", TRY, demo.EXAMPLES)
    add(dev.dev, "dev", TRY, dev.EXAMPLES)
    add(quantize.quantize, "quantize", MAKE, quantize.EXAMPLES)
    add_noun(models.build(), "models", MAKE)
    add_noun(registry.build(), "registry", MAKE)
    add(push.push, "push", MAKE, push.EXAMPLES)
    add(pull.pull, "pull", MAKE, pull.EXAMPLES)
    add(serve.serve, "serve", RUN, serve.EXAMPLES)
    add(deploy.deploy, "deploy", RUN, deploy.EXAMPLES)
    add_noun(nodes.build(), "nodes", RUN)
    add_noun(placement.build(), "placement", RUN)
    add_noun(keys.build(), "keys", RUN)
    add_noun(bench.build(), "bench", RUN)
    add(chat.chat, "chat", ROUTE, chat.EXAMPLES)
    add(route.route, "route", ROUTE, route.EXAMPLES)
    add(simulate.simulate, "simulate", ROUTE, simulate.EXAMPLES)
    add_noun(cache.build(), "cache", ROUTE)
    add_noun(cascade.build(), "cascade", ROUTE)
    add_noun(decisions.build(), "decisions", ROUTE)
    add_noun(learned.build(), "learned", ROUTE)
    add(budgets.budgets, "budgets", ROUTE, budgets.EXAMPLES)
    add_noun(config.build(), "config", LOOK)
    add(doctor.doctor, "doctor", LOOK, doctor.EXAMPLES)
    return app
