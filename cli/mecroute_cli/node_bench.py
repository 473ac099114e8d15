"""Measures a model on a node: over its endpoint, with what only the node itself can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mecroute_cli.output import Output

if TYPE_CHECKING:
    from mecroute.config import NodeConfig
    from mecroute_registry import ModelVersion, Profile


def bench_node(
    output: Output,
    node: NodeConfig,
    model: ModelVersion,
    *,
    runs: int,
    prompt_tokens: int | None = None,
    output_tokens: int | None = None,
) -> Profile:
    """Measure one model on one node; peak memory is that of the node's process.

    Args:
        runs: measured requests, >= 1.
        prompt_tokens, output_tokens: the size of a request; default: the reference request.

    Raises:
        NodeNotReadyError: the node does not serve that model.
        TierError: it cannot be reached.
    """
    from mecroute.errors import NodeNotReadyError
    from mecroute_cli.node_api import NodeApi
    from mecroute_quantize.measure import (
        REFERENCE_OUTPUT_TOKENS,
        REFERENCE_PROMPT_TOKENS,
        measure_endpoint,
    )

    with NodeApi(node) as api:
        report = api.report()
        served = next((m for m in report.models if m.ref == model.ref), None)
        if served is None or served.state != "ready":
            raise NodeNotReadyError(
                f"node '{node.name}' does not serve {model.ref} "
                f"({served.state if served else 'not deployed'})",
                hint=f"mecroute deploy {model.ref} --to {node.name}",
                tier="mec",
                model=model.ref,
            )
        with output.progress(f"measuring {model.ref} on {node.name}", unit="share") as update:
            profile = measure_endpoint(
                node.url.rstrip("/") + "/v1",
                model.ref,
                api_key=node.key(),
                runs=runs,
                prompt_tokens=prompt_tokens or REFERENCE_PROMPT_TOKENS,
                output_tokens=output_tokens or REFERENCE_OUTPUT_TOKENS,
                tier="mec",
                hardware=report.hardware or "unknown",
                threads=served.threads or report.cpu_count,
                progress=lambda share: update(share, 1),
            )
        return profile.model_copy(update={"peak_memory_bytes": api.report().peak_memory_bytes})
