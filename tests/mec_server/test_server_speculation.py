from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from mecroute.errors import MecrouteError
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node

BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Say it"}],
    "max_tokens": 60,
    "temperature": 0,
}


@pytest.mark.parametrize("speculation", ["prompt-lookup", "draft"])
def test_a_node_that_speculates_answers_the_same(tiny: Path, tmp_path: Path, speculation: str) -> None:
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path,
        model_files=(tiny,),
        threads=1,
        parallel=2,
        speculation=speculation,  # type: ignore[arg-type] # one of its values
        draft_model=tiny if speculation == "draft" else None,
    )
    with running_node(settings) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        for _ in range(2):
            answer = http.post("/v1/chat/completions", json=BODY)
            assert answer.status_code == 200, answer.text
            text = answer.json()["choices"][0]["message"]["content"]
            assert text
            assert (SAYS * 60).startswith(text)
            assert answer.json()["usage"]["completion_tokens"] == 60


def test_a_draft_model_that_is_not_there_fails_the_start(tiny: Path, tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path,
        model_files=(tiny,),
        threads=1,
        speculation="draft",
        draft_model=tmp_path / "missing.gguf",
    )
    with NodeServer(settings) as server, pytest.raises(MecrouteError, match="missing.gguf"):
        server.run()
