"""The package's public face: its names, and what importing it does not load."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import mecroute
from mecroute import errors

HEAVY = ("llama_cpp", "onnxruntime", "torch", "boto3", "fastapi", "numpy", "httpx", "pydantic", "openai")


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_mecroute_loads_nothing_heavy() -> None:
    assert loaded_by("import mecroute") == set()


def test_making_a_client_loads_only_what_validates() -> None:
    code = "from mecroute import Client, Config\nClient(Config()).close()"
    assert loaded_by(code) == {"pydantic"}


def test_every_public_name_resolves_and_is_documented() -> None:
    for name in mecroute.__all__:
        value = getattr(mecroute, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name} has no docstring"
    assert set(mecroute.__all__) <= set(dir(mecroute))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        _ = mecroute.Klient  # type: ignore[attr-defined]


def test_the_error_tree_in_the_docstring_is_the_real_one() -> None:
    tree = errors.__doc__ or ""
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.MecrouteError)
        assert name in tree, f"{name} is missing from the drawing"
    depth = {}
    for line in tree.splitlines():
        name = next((word for word in line.replace("│", " ").split() if word.endswith("Error")), None)
        if name:
            depth[name] = line.index(name) // 4 + 1
    for name, level in depth.items():
        parents = [c.__name__ for c in getattr(errors, name).__mro__ if c.__name__ in depth]
        assert level == len(parents), f"{name} is drawn at the wrong depth"
