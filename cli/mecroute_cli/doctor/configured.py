"""Checks of what the configuration names: registry, store, nodes, clouds. Each really asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mecroute_cli.doctor.check import Check

if TYPE_CHECKING:
    from mecroute.config import CloudConfig, Config, NodeConfig
    from mecroute_cli.session import Session

_CLOUD_TIMEOUT_S = 5.0


def check_configured(session: Session) -> Iterator[Check]:
    """Look at the configuration and at everything in it; remote places are asked at the same time."""
    from mecroute.errors import MecrouteError

    try:
        config = session.config
    except MecrouteError as error:
        yield Check("config", "settings", "broken", error.message, error.hint or "mend that setting")
        return
    files = sorted({source for source in session.loaded.sources.values() if source.endswith(".toml")})
    yield Check("config", "settings", "ok", ", ".join(files) or "defaults only")
    yield _registry(session)
    yield from _text_models(session)
    yield from _keys_file(config)
    jobs: list[Callable[[], Check]] = [lambda: _store(session)]
    jobs += [lambda node=node: _node(node) for node in config.nodes]  # type: ignore[misc]
    jobs += [lambda cloud=cloud: _cloud(cloud) for cloud in config.cloud]  # type: ignore[misc]
    with ThreadPoolExecutor(max_workers=8) as pool:
        yield from pool.map(lambda job: job(), jobs)
    yield from _discovery(config)
    if not config.nodes and not config.discovery:
        fix = "add a [[nodes]] table with name and url; `mecroute serve` starts a node"
        yield Check("nodes", "MEC nodes", "missing", "none configured", fix)
    if not config.cloud:
        yield Check(
            "cloud", "clouds", "missing", "none configured", "add a [[cloud]] table, where one is wanted"
        )


def _registry(session: Session) -> Check:
    from mecroute.errors import MecrouteError

    try:
        registry = session.registry()
        models = registry.list()
    except MecrouteError as error:
        return Check("registry", "models", "broken", error.message, error.hint or "")
    except OSError as error:
        return Check("registry", "models", "broken", str(error), "check the permissions of that folder")
    if not models:
        fix = "mecroute quantize SOURCE.gguf --name NAME, or mecroute pull REF"
        return Check("registry", "models", "missing", f"none in {registry.root}", fix)
    return Check("registry", "models", "ok", f"{', '.join(model.ref for model in models)} in {registry.root}")


def _text_models(session: Session) -> Iterator[Check]:
    if not session.config.device.text_models:
        return
    from mecroute.device.text_models import describe_files

    for config in session.config.device.text_models:
        model = describe_files(config)
        if model.problem is not None:
            yield Check("text models", config.name, "broken", model.problem, "mend [[device.text_models]]")
            continue
        classes = f" among {len(model.labels)} classes" if model.labels is not None else ""
        yield Check("text models", config.name, "ok", f"{' and '.join(sorted(model.tasks))}{classes}")


def _keys_file(config: Config) -> Iterator[Check]:
    from mecroute.errors import MecrouteError
    from mecroute_server.keys import KeyFile

    path = config.server.keys_file
    if path is None:
        return
    try:
        keys = KeyFile(path).read()
    except MecrouteError as error:
        yield Check("server", "API keys", "broken", error.message, error.hint or "mend [server] keys_file")
        return
    if keys or config.server.api_key is not None:
        yield Check("server", "API keys", "ok", f"{len(keys)} in {path}")
        return
    fix = f"mecroute keys create --name app --scope infer --file {path}"
    yield Check("server", "API keys", "missing", f"none in {path}: `mecroute serve` would admit nobody", fix)


def _store(session: Session) -> Check:
    from mecroute.errors import MecrouteError
    from mecroute_cli.stores import remote_store

    uri = session.config.store.uri
    if uri is None:
        fix = "set uri under [store] to s3://bucket/prefix, where models are to be shared"
        return Check("store", "S3", "missing", "none configured", fix)
    try:
        models = remote_store(session, None, None, None).list()
    except MecrouteError as error:
        return Check("store", uri, "broken", error.message, error.hint or "")
    return Check("store", uri, "ok", f"{len(models)} models")


def _node(node: NodeConfig) -> Check:
    from mecroute_cli.commands.nodes import state_of

    state = state_of(node)
    if state["error"]:
        return Check(
            "nodes", node.name, "broken", state["error"], f"start it, or mend its url and key ({node.url})"
        )
    shown = state["models_shown"] or "no model yet"
    fix = "" if state["models_shown"] else f"mecroute deploy REF --to {node.name}"
    return Check("nodes", node.name, "ok", f"{node.url}: {shown}", fix)


def _discovery(config: Config) -> Iterator[Check]:
    from mecroute_cli.discovered import discovered_nodes

    for source in discovered_nodes(config):
        name = f"discovery {source.source.name}"
        if source.problem is not None:
            yield Check("nodes", name, "broken", source.problem, "mend or remove that [[discovery]]")
            continue
        found = ", ".join(f"{node.name} ({node.url})" for node in source.nodes) or "no node found"
        detail = "; ".join((found, *source.notes))
        yield Check("nodes", name, "ok" if source.nodes else "missing", detail)


def _cloud(cloud: CloudConfig) -> Check:
    import httpx

    from mecroute.errors import MecrouteError

    if cloud.api_key_env and not cloud.key():
        detail = f"the variable {cloud.api_key_env} is not set"
        return Check("cloud", cloud.name, "broken", detail, f"export {cloud.api_key_env}=…")
    key = cloud.key()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = cloud.base_url.rstrip("/") + "/models"
    try:
        tls = cloud.tls()
        verify = tls.context() if tls is not None else True
        answer = httpx.get(url, headers=headers, timeout=_CLOUD_TIMEOUT_S, verify=verify)
    except MecrouteError as error:
        return Check("cloud", cloud.name, "broken", error.message, error.hint or "")
    except httpx.HTTPError as error:
        detail = f"{url} cannot be reached: {type(error).__name__}"
        return Check("cloud", cloud.name, "broken", detail, "check base_url and the network")
    if answer.status_code in (401, 403):
        return Check("cloud", cloud.name, "broken", f"{url} refuses the key", "check api_key or api_key_env")
    label = f"{cloud.model} at {cloud.base_url}" + (" (a local stand-in)" if cloud.stand_in else "")
    # Not every compatible API lists models; an answer at all shows that it is there.
    return Check("cloud", cloud.name, "ok", label)
