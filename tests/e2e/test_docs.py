"""Every snippet of the documentation runs: Python, console commands and configuration."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from mecroute.config import load_config
from mecroute.simulate.scenario import Scenario, read_scenario
from support.process import ROOT, child_environment
from support.s3 import free_port, s3_server
from support.server import SAYS
from support.tiny_gguf import write_tiny_gguf

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
_DEFAULT_PORT = "8100"


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and position, text) of every fenced block of a language."""
    return [
        (f"{page.name}-{number}", match[2])
        for page in PAGES
        for number, match in enumerate(_BLOCK.finditer(page.read_text(encoding="utf-8")), 1)
        if match[1] == language
    ]


def ids(found: list[tuple[str, str]]) -> list[str]:
    return [name for name, _ in found]


@dataclass
class Workspace:
    """A folder with a model, and a node and an S3 server that its `mecroute.toml` names."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("docs")
    (folder / ".git").mkdir()
    write_tiny_gguf(folder / "smollm2.gguf", says=SAYS, context_length=2048)
    with ExitStack() as running:
        s3 = running.enter_context(s3_server(folder))
        port = free_port()
        (folder / "mecroute.toml").write_text(
            f'[registry]\npath = "{folder / "registry"}"\n'
            f'[store]\nuri = "s3://models/edge"\nendpoint_url = "{s3.endpoint_url}"\n'
            "[device]\nthreads = 1\n"
            f'[state]\npath = "{folder / "state.sqlite3"}"\n'
            f'[[nodes]]\nname = "mec-1"\nurl = "http://127.0.0.1:{port}"\n'
        )
        bin_folder = Path(sys.executable).parent
        environment = child_environment({**s3.environment(), "HOME": str(folder)})
        environment = {k: v for k, v in environment.items() if not k.startswith("MECROUTE_")}
        environment["PATH"] = f"{bin_folder}:{environment['PATH']}"
        space = Workspace(folder, environment)
        running.enter_context(_node(space, port))
        for command in (("quantize", "smollm2.gguf", "--name", "smollm2"), ("push", "smollm2:q8_0")):
            done = space.run("mecroute", *command)
            assert done.returncode == 0, done.stderr
        yield space


PYTHON = blocks("python")
CONSOLE = blocks("console")
TOML = blocks("toml")


def test_there_is_something_to_run() -> None:
    assert len(PYTHON) >= 5
    assert len(CONSOLE) >= 5
    assert len(TOML) >= 2


@pytest.mark.parametrize("text", [t for _, t in PYTHON], ids=ids(PYTHON))
def test_python_snippets_run(workspace: Workspace, text: str) -> None:
    done = workspace.run(sys.executable, "-W", "error", "-c", text)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("text", [t for _, t in CONSOLE], ids=ids(CONSOLE))
def test_console_commands_succeed(workspace: Workspace, text: str) -> None:
    port = str(free_port())
    background: list[subprocess.Popen[bytes]] = []
    try:
        for line in text.splitlines():
            if not line.startswith("$ ") or line.startswith("$ make "):
                continue  # the output of a command; make's targets are run by CI itself
            command = line[2:].replace(_DEFAULT_PORT, port)
            if command.endswith("&"):
                background.append(_start(workspace, command.removesuffix("&"), port))
                continue
            done = workspace.run("bash", "-o", "pipefail", "-c", command)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr
    finally:
        for process in background:
            process.terminate()
            process.wait(30)


@contextmanager
def _node(workspace: Workspace, port: int) -> Iterator[None]:
    """The node `mec-1`, with a registry of its own."""
    environment = {**workspace.environment, "MECROUTE_REGISTRY_PATH": str(workspace.folder / "node")}
    command = f"mecroute serve --node mec-1 --port {port} --threads 1 --ctx 2048 --parallel 2"
    process = _start(replace(workspace, environment=environment), command, str(port), "healthz")
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _start(workspace: Workspace, command: str, port: str, ready: str = "readyz") -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=workspace.folder,
        env=workspace.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/{ready}", timeout=2).status_code == 200:
                return process
        except httpx.HTTPError:
            pass
        assert process.poll() is None, f"{command} ended with {process.returncode}"
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise AssertionError(f"{command} was never ready")


@pytest.mark.parametrize(("name", "text"), TOML, ids=ids(TOML))
def test_configuration_snippets_are_valid(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / "mecroute.toml"
    file.write_text(text)
    if name.startswith("simulation.md"):
        assert read_scenario(file) != Scenario()
    else:
        assert list(load_config(file).settings())


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    documented = {table: set(block) for table, block in _tables(page)}
    for name, value, _ in load_config(environ={}).settings():
        table, _, field = name.partition(".")
        if field:
            assert field in documented[table], f"[{table}] {field} is not in docs/configuration.md"
        else:
            assert value == []


def _tables(page: str) -> Iterator[tuple[str, list[str]]]:
    for match in re.finditer(r"^\[+(\w+)\]+[^\n]*\n((?:[a-z_]+ = [^\n]*\n)*)", page, re.M):
        yield match[1], re.findall(r"^([a-z_]+) =", match[2], re.M)


def test_every_make_target_the_docs_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        named = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text(encoding="utf-8")))
        assert named <= targets, f"{page.name} names {named - targets}"
