"""Conversations that leave the KV memory come back from RAM or disk, and say what they would have said."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mecroute.engines.llama import GREEDY, GenerationRequest, LlamaEngine, kv_spill
from mecroute.engines.llama.kv_snapshot import Fit, KvSnapshot
from mecroute.engines.llama.prefix_disk import PrefixDisk, PrefixDiskOptions, Stored
from mecroute.engines.llama.prefix_folder import PrefixFolder
from mecroute.engines.llama.prefix_ram import PrefixRam, Taken
from mecroute.errors import ConfigError
from support.oracle import Oracle

MakeEngine = Callable[..., LlamaEngine]
Asked = list[tuple[tuple[int, ...], str]]


@pytest.fixture(scope="module")
def talks(oracle: Oracle) -> Asked:
    """Eight prompts of 150 tokens that share nothing, and their answers."""
    rng = random.Random(11)
    return oracle.decided((tuple(rng.choices(range(261, 300), k=150)) for _ in range(1000)), 8, 8)


_is_faster = PrefixDisk._is_faster


@pytest.fixture(autouse=True)
def _leaves_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_spill, "MAX_IDLE_TOKENS", 200)
    # The tiny model computes about as fast as a disk reads.
    monkeypatch.setattr(PrefixDisk, "_is_faster", lambda *_: True)


def ask(engine: LlamaEngine, prompt: tuple[int, ...]) -> tuple[str, int]:
    """What it says, and how much of the prompt was not computed."""
    generation = engine.submit(GenerationRequest(prompt, 8, GREEDY))
    text = "".join(event.text for event in generation)
    assert generation.usage is not None
    return text, generation.usage.cached_tokens


def options(folder: Path, **fields: int) -> PrefixDiskOptions:
    return PrefixDiskOptions(folder, **{"max_bytes": 10_000_000, "min_tokens": 100, **fields})


def wait_for(condition: Callable[[], object]) -> None:
    ends_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


def opened(engine: LlamaEngine) -> None:
    wait_for(lambda: engine.disk_is_open)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.kv"))


# RAM


def test_what_left_the_kv_memory_comes_back_from_ram(engine: MakeEngine, talks: Asked) -> None:
    one = engine(n_parallel=2, n_ctx=512)
    for _ in range(3):
        for prompt, answer in talks:
            assert ask(one, prompt)[0] == answer
    assert all(ask(one, prompt) == (answer, 149) for prompt, answer in talks)
    stats = one.stats()
    assert stats.kv_used_tokens == stats.kv_cached_tokens <= 200
    assert stats.prefix_recalls >= 3 * 7
    assert stats.prefix_ram_bytes > 0
    assert len(one.residents()) == 8


def test_without_ram_it_is_computed_again(engine: MakeEngine, talks: Asked) -> None:
    one = engine(n_parallel=2, n_ctx=512, prefix_ram_bytes=0)
    for prompt, answer in talks * 2:
        assert ask(one, prompt) == (answer, 0)


@pytest.mark.parametrize("ram_bytes", [0, 1000])
def test_what_has_no_place_in_ram_stays_in_the_kv_memory(
    engine: MakeEngine, talks: Asked, ram_bytes: int
) -> None:
    one = engine(n_ctx=512, prefix_ram_bytes=ram_bytes)
    for prompt, answer in talks[:2]:
        assert ask(one, prompt) == (answer, 0)
    for prompt, answer in talks[:2]:
        assert ask(one, prompt) == (answer, 149)


def test_ram_is_bounded_and_the_oldest_goes() -> None:
    dropped: list[Taken] = []
    ram = PrefixRam(1000, on_drop=dropped.append)
    talks = [Taken(tuple(range(n, n + 50)), memoryview(bytes(400)), (), None) for n in (0, 100, 200)]
    for taken in talks:
        ram.put(taken)
    assert dropped == [talks[0]]
    assert ram.size_bytes == 800
    ram.put(Taken((1,), memoryview(bytes(1001)), (), None))
    assert len(dropped) == 2
    longer = Taken((*talks[1].tokens, 7), memoryview(bytes(400)), (), None)
    ram.put(longer)  # the same conversation, gone on
    assert ram.held() == [longer, talks[2]]
    assert ram.pop(talks[2].tokens, beyond=47) is None  # not worth it
    assert ram.pop(talks[2].tokens, beyond=0) == talks[2]
    assert ram.pop(talks[2].tokens, beyond=0) is None
    assert ram.pop_oldest() == longer
    assert ram.size_bytes == 0


# Disk


def test_a_conversation_survives_a_restart(engine: MakeEngine, talks: Asked, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    first = engine(n_parallel=2, n_ctx=512, prefix_disk=options(folder))
    opened(first)
    for prompt, answer in talks[:3]:
        assert ask(first, prompt) == (answer, 0)
    first.close()
    assert len(files(folder)) == 3
    assert {path.stat().st_mode & 0o777 for path in files(folder)} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700

    again = engine(n_parallel=2, n_ctx=512, prefix_disk=options(folder))
    opened(again)
    for prompt, answer in talks[:3]:
        assert ask(again, prompt) == (answer, 149)
    assert ask(again, talks[3][0]) == (talks[3][1], 0)
    stats = again.stats()
    assert stats.disk_hits == 3
    assert stats.disk_hit_tokens == 3 * 157


def test_requests_that_want_the_same_file_read_it_once(
    engine: MakeEngine, talks: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, answer = talks[0]
    first = engine(n_ctx=512, prefix_disk=options(tmp_path))
    opened(first)
    ask(first, prompt)
    first.close()
    gate, reads, read = threading.Event(), [], PrefixFolder.read

    def slowly(folder: PrefixFolder, path: Path) -> KvSnapshot | None:
        assert gate.wait(30)
        reads.append(path)
        return read(folder, path)

    monkeypatch.setattr(PrefixFolder, "read", slowly)
    again = engine(n_parallel=4, n_ctx=512, prefix_disk=options(tmp_path))
    opened(again)
    generations = [again.submit(GenerationRequest(prompt, 8, GREEDY)) for _ in range(4)]
    wait_for(lambda: again.stats().running == 4)
    generations[0].cancel()
    gate.set()
    assert ["".join(event.text for event in one) for one in generations] == ["", *([answer] * 3)]
    assert len(reads) == 1
    assert again.stats().disk_hits == 1


def test_a_disk_that_hangs_is_not_waited_for(
    engine: MakeEngine, talks: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, answer = talks[0]
    first = engine(n_ctx=512, prefix_disk=options(tmp_path))
    opened(first)
    ask(first, prompt)
    first.close()
    gate, read = threading.Event(), PrefixFolder.read

    def hanging(folder: PrefixFolder, path: Path) -> KvSnapshot | None:
        assert gate.wait(60)
        return read(folder, path)

    monkeypatch.setattr(PrefixFolder, "read", hanging)
    monkeypatch.setattr("mecroute.engines.llama.awaiting.DISK_PATIENCE_S", 0.1)
    monkeypatch.setattr("mecroute.engines.llama.residency.DISK_PATIENCE_S", 0.1)
    again = engine(n_ctx=512, prefix_disk=options(tmp_path))
    opened(again)
    assert ask(again, prompt) == (answer, 0)
    gate.set()


@pytest.mark.parametrize("damage", ["cut", "byte", "empty", "garbage", "other model", "swapped"])
def test_a_damaged_file_is_removed_and_computed_instead(
    engine: MakeEngine, talks: Asked, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = engine(n_ctx=512, prefix_disk=options(tmp_path))
    opened(first)
    for prompt, _ in talks[:2]:
        ask(first, prompt)
    first.close()
    one, other = files(tmp_path)
    whole = one.read_bytes()
    match damage:
        case "cut":
            one.write_bytes(whole[: len(whole) // 2])
        case "byte":
            one.write_bytes(whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:])
        case "empty":
            one.write_bytes(b"")
        case "garbage":
            one.write_bytes(os.urandom(5000))
        case "other model":
            one.write_bytes(whole.replace(b'"model": "sha256:', b'"model": "sha256;', 1))
        case "swapped":  # a whole file under the name of another one: its content counts
            one.write_bytes(other.read_bytes())
    foreign = one.parent / "notes.txt"
    foreign.write_text("not ours")
    caplog.clear()
    again = engine(n_ctx=512, prefix_disk=options(tmp_path))
    opened(again)
    answers = [ask(again, prompt) for prompt, _ in talks[:2]]
    assert [text for text, _ in answers] == [answer for _, answer in talks[:2]]
    assert sorted(cached for _, cached in answers) == [0, 149]
    assert foreign.read_text() == "not ours"
    if damage != "swapped":
        assert f"removing {one} from the prefix cache" in caplog.text


def test_a_forgotten_engine_with_a_disk_is_closed(random_model: Path, talks: Asked, tmp_path: Path) -> None:
    one = LlamaEngine(random_model, n_threads=1, n_ctx=512, prefix_disk=options(tmp_path))
    opened(one)
    ask(one, talks[0][0])
    del one
    gc.collect()
    assert not [thread for thread in threading.enumerate() if "prefix-disk" in thread.name]
    assert len(files(tmp_path)) == 1


def test_the_folder_is_bounded(engine: MakeEngine, talks: Asked, tmp_path: Path) -> None:
    probe = engine(n_ctx=512, prefix_disk=options(tmp_path / "probe"))
    opened(probe)
    ask(probe, talks[0][0])
    probe.close()
    size = files(tmp_path / "probe")[0].stat().st_size

    folder = tmp_path / "bounded"
    one = engine(n_ctx=512, prefix_ram_bytes=0, prefix_disk=options(folder, max_bytes=int(3.5 * size)))
    opened(one)
    for prompt, _ in talks:
        ask(one, prompt)
    one.close()
    assert len(files(folder)) == 3
    again = engine(n_ctx=512, prefix_disk=options(folder))
    opened(again)
    assert [ask(again, prompt)[1] for prompt, _ in talks] == [0] * 5 + [149] * 3


def test_what_is_sooner_computed_is_not_read(tmp_path: Path) -> None:
    disk = PrefixDisk(options(tmp_path), n_vocab=320)
    stored = Stored(tmp_path / "x", 10_000_000)  # 0.1 s at the rate assumed at first
    assert _is_faster(disk, stored, 100, 900.0)
    assert not _is_faster(disk, stored, 100, 1100.0)
    assert _is_faster(disk, stored, 1, None)


def test_short_conversations_are_not_stored(engine: MakeEngine, tmp_path: Path) -> None:
    one = engine(n_ctx=512, prefix_disk=options(tmp_path))
    opened(one)
    ask(one, (270,) * 80)
    one.close()
    assert files(tmp_path) == []


def test_a_folder_that_others_can_write_is_refused(random_model: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="other users"):
        LlamaEngine(random_model, prefix_disk=options(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        LlamaEngine(random_model, prefix_disk=options(tmp_path / "file"))


_WRITER = """
import sys, random
from pathlib import Path
from mecroute.engines.llama.kv_snapshot import Fit, KvSnapshot
from mecroute.engines.llama.prefix_folder import PrefixFolder
folder = PrefixFolder(Path(sys.argv[1]), max_bytes=20_000_000, fit=Fit("m", "b", "l"))
print("writing", flush=True)
number = 0
while True:
    number += 1
    tokens = tuple(range(number, number + 300))
    folder.write(KvSnapshot(Fit("m", "b", "l"), tokens, memoryview(bytes(2_000_000))))
"""


def test_kill_9_while_writing_leaves_only_whole_files(tmp_path: Path) -> None:
    for delay_s in (0.02, 0.05, 0.09):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        fit = Fit("m", "b", "l")
        folder = PrefixFolder(tmp_path, max_bytes=20_000_000, fit=fit)
        found = list(folder.scan())
        assert all(folder.read(path) is not None for path, _ in found)
        assert len(found) == len(files(tmp_path))
        assert not list(tmp_path.glob("*/.*.part"))
        assert folder.size_bytes() <= 20_000_000
    assert found


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    fit = Fit("m", "b", "l")
    folder = PrefixFolder(tmp_path / "kept", max_bytes=10_000, fit=fit)
    path = folder.write(KvSnapshot(fit, (1, 2), memoryview(b"state")))
    assert path is not None
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert list(folder.scan()) == []
    assert elsewhere.exists()
