"""`mecroute placement`: which models should lie on which node, by demand."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mecroute_cli import formats
from mecroute_cli.help import examples
from mecroute_cli.nouns import Noun
from mecroute_cli.session import Session, session_of
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute.config import NodeConfig
    from mecroute.nodes.report import NodeReport
    from mecroute.placement.demand import Demand
    from mecroute.placement.plan import ModelNeed, Place, Plan


def _names(refs: list[str]) -> str:
    return ", ".join(refs) or "-"


DEMAND = (
    Column("model", "model"),
    Column("size_bytes", "memory", formats.size, right=True),
    Column("requests_per_hour", "expected/h", lambda v: formats.decimals(v, 1), right=True),
    Column("capacity_per_hour", "a copy serves/h", lambda v: formats.decimals(v, 0) if v else "", right=True),
)
PLACES = (
    Column("node", "node"),
    Column("budget_bytes", "for models", formats.size, right=True),
    Column("wanted", "should hold", _names),
    Column("load", "load", _names),
    Column("unload", "unload", _names),
)
#: Of a node's free memory, what may be filled: the rest is for the requests themselves.
_SHARE_OF_FREE = 0.8
#: Weights, KV cache and work buffers, over the size of the model file.
_MEMORY_FACTOR = 1.25
#: Output tokens of an answer, to turn a node's speed into requests.
_TOKENS_PER_REQUEST = 128


def build() -> typer.Typer:
    """`mecroute placement …`."""
    noun = Noun("Which models should lie on which node.")
    noun.verb(
        "plan",
        plan_placement,
        examples(
            "mecroute placement plan                    by what is expected in an hour",
            "mecroute placement plan --hours-ahead 8    tonight, for tomorrow morning",
            "mecroute placement plan --apply            and have the nodes do it",
        ),
    )
    return noun.app


def plan_placement(
    ctx: typer.Context,
    hours_ahead: Annotated[
        float, typer.Option("--hours-ahead", min=0, max=24, help="Whose demand: so many hours from now.")
    ] = 1.0,
    apply: Annotated[bool, typer.Option("--apply", help="Unload and load on the nodes.")] = False,
) -> None:
    """Plan which models should be loaded on which node, by what this client was asked for."""
    from mecroute.placement.demand import Demand
    from mecroute.placement.plan import plan
    from mecroute.placement.store import load_demand
    from mecroute.state.store import StateStore

    session = session_of(ctx)
    state = session.config.state
    demand = Demand()
    demand.restore(load_demand(StateStore(state.path.expanduser() if state.path else None).path))
    reports = _reports(session)
    needs = _needs(session, demand, [report for _, report in reports], hours_ahead)
    places = [_place(session, node, report, needs) for node, report in reports]
    made = plan(needs, places)
    _show(session, needs, places, made)
    if apply:
        _apply(session, reports, made)
    elif made.load or made.unload:
        session.output.hint("`mecroute placement plan --apply` does it")


def _reports(session: Session) -> list[tuple[NodeConfig, NodeReport]]:
    from mecroute.errors import MecrouteError
    from mecroute_cli.discovered import discovered_nodes
    from mecroute_cli.node_api import NodeApi

    nodes = {node.url: node for node in session.config.nodes}
    for source in discovered_nodes(session.config):
        for node in source.nodes:
            nodes.setdefault(node.url, node)

    def ask(node: NodeConfig) -> tuple[NodeConfig, NodeReport] | str:
        try:
            with NodeApi(node) as api:
                return node, api.report()
        except MecrouteError as error:
            return error.message

    with ThreadPoolExecutor(max_workers=max(1, min(8, len(nodes)))) as pool:
        answers = list(pool.map(ask, nodes.values()))
    for answer in answers:
        if isinstance(answer, str):
            session.output.note(f"left out: {answer}")
    return [answer for answer in answers if not isinstance(answer, str)]


def _needs(
    session: Session, demand: Demand, reports: list[NodeReport], hours_ahead: float
) -> list[ModelNeed]:
    """Every model that a node has or could be given, with what is expected of it."""
    from mecroute.placement.plan import ModelNeed

    sizes = {m.ref: m.size_bytes for m in session.registry().list() if "mec" in m.deployment_tiers}
    speeds: dict[str, float] = {}
    for report in reports:
        for model in report.models:
            if model.size_bytes:
                sizes.setdefault(model.ref, model.size_bytes)
            if model.decode_tokens_per_s and model.parallel:
                speed = model.decode_tokens_per_s * model.parallel
                speeds[model.ref] = min(speed, speeds.get(model.ref, math.inf))
    return [
        ModelNeed(
            ref,
            int(size * _MEMORY_FACTOR),
            demand.expected_per_hour(ref, hours_ahead=hours_ahead),
            capacity_per_hour=speeds[ref] * 3600 / _TOKENS_PER_REQUEST if ref in speeds else math.inf,
        )
        for ref, size in sorted(sizes.items())
        if size > 0
    ]


def _place(session: Session, node: NodeConfig, report: NodeReport, needs: list[ModelNeed]) -> Place:
    from mecroute.placement.plan import Place

    loaded = frozenset(model.ref for model in report.models if model.state == "ready")
    budget = session.config.placement.node_budget_bytes
    if budget is None:
        held = sum(need.size_bytes for need in needs if need.ref in loaded)
        budget = held + int(_SHARE_OF_FREE * report.memory_available_bytes)
    return Place(node.name, budget, loaded)


def _show(session: Session, needs: list[ModelNeed], places: list[Place], made: Plan) -> None:
    out = session.output
    rows: list[dict[str, Any]] = [
        {
            "model": need.ref,
            "size_bytes": need.size_bytes,
            "requests_per_hour": need.requests_per_hour,
            "capacity_per_hour": need.capacity_per_hour if math.isfinite(need.capacity_per_hour) else None,
        }
        for need in needs
    ]
    out.table("models", rows, DEMAND, empty="no model is known")
    planned = [
        {
            "node": place.name,
            "budget_bytes": place.budget_bytes,
            "wanted": sorted(made.wanted[place.name]),
            "load": list(made.load.get(place.name, ())),
            "unload": list(made.unload.get(place.name, ())),
        }
        for place in places
    ]
    out.table("nodes", planned, PLACES, empty="no node answers")


def _apply(session: Session, reports: list[tuple[NodeConfig, NodeReport]], made: Plan) -> None:
    from mecroute_cli.node_api import NodeApi

    digests = {model.ref: model.digest for model in session.registry().list()}
    for node, report in reports:
        there = {model.ref for model in report.models}
        with NodeApi(node) as api:
            for ref in made.unload.get(node.name, ()):
                api.change(ref, "unload")
                session.output.note(f"{node.name}: unloaded {ref}")
            for ref in made.load.get(node.name, ()):
                if ref in there:
                    api.change(ref, "load")
                else:
                    api.deploy(ref, digests.get(ref))
                session.output.note(f"{node.name}: loading {ref}")
