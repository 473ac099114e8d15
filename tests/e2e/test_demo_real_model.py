"""`mecroute demo` as a newcomer runs it: a real model, real processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from support.process import run_cli


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_holds_with_a_real_model_and_again_at_once(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": os.environ["HOME"]}
    first = run_cli("demo", "--json", env=environment, timeout_s=600)
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout)
    assert summary["failures"] == []
    assert [a["tier"] for a in summary["answers"]] == ["device", "device", "mec", "cloud", "device"]
    segments = summary["failover"]["segments"]
    assert segments[0]["error"]
    assert segments[1]["error"] is None

    again = run_cli("demo", "--json", env=environment, timeout_s=300)
    assert again.returncode == 0, again.stderr
