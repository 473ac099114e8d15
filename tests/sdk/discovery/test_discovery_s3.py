"""A directory of nodes in S3: heartbeats, time to live and rubbish, against a real S3 server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import boto3
import pytest

from mecroute.config import S3Source
from mecroute.config.schema import StoreConfig
from mecroute.errors import MecrouteError, RemoteStoreError, UsageError
from mecroute.nodes.discovery import Found, open_discovery
from mecroute_registry.remote.node_directory import NodeDirectory, NodeEntry
from mecroute_server.announce import Announcement, Announcer
from support.s3 import S3Server, s3_server

URI = "s3://nodes/edge/live"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=server.endpoint_url)
    if "nodes" in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        for item in client.list_objects_v2(Bucket="nodes").get("Contents", ()):
            client.delete_object(Bucket="nodes", Key=item["Key"])
    return server


def find(s3: S3Server, uri: str = URI) -> Found:
    source = S3Source(kind="s3", name="bucket", uri=uri)
    return asyncio.run(open_discovery(source, StoreConfig(endpoint_url=s3.endpoint_url)).find())


def test_a_node_is_listed_while_it_runs_and_not_after(s3: S3Server) -> None:
    async def run() -> None:
        stopping = False
        announcer = Announcer(
            Announcement(
                directory_uri=URI,
                directory_endpoint_url=s3.endpoint_url,
                advertise_url="https://mec-1.example:8100",
            ),
            node="mec-1",
            zone="hall",
            region="eu-1",
            url="http://0.0.0.0:8100",
            stopping=lambda: stopping,
        )
        task = asyncio.create_task(announcer.run())
        directory = NodeDirectory(URI, endpoint_url=s3.endpoint_url)
        ends_at = time.monotonic() + 20
        while True:
            try:
                if nodes := await asyncio.to_thread(directory.live):
                    break
            except RemoteStoreError:
                pass  # the bucket is made with the first heartbeat
            assert time.monotonic() < ends_at
            await asyncio.sleep(0.05)
        assert nodes == [NodeEntry("mec-1", "https://mec-1.example:8100", 30.0, "hall", "eu-1")]
        stopping = True
        await asyncio.wait_for(task, 20)
        assert await asyncio.to_thread(directory.live) == []

    asyncio.run(run())


def test_an_entry_runs_out_by_the_service_s_own_clock(s3: S3Server) -> None:
    directory = NodeDirectory(URI, endpoint_url=s3.endpoint_url)
    directory.put(NodeEntry("long", "https://b.example", 3600))
    directory.put(NodeEntry("short", "https://a.example", 5))
    assert [n.node for n in directory.live()] == ["long", "short"]
    gone_by = time.monotonic() + 30
    while [n.name for n in find(s3).nodes] != ["long"]:
        assert time.monotonic() < gone_by
        time.sleep(0.5)
    directory.put(NodeEntry("short", "https://a.example", 5))
    assert [n.node for n in directory.live()] == ["long", "short"], "a heartbeat brings it back"


def test_what_is_no_entry_is_left_out(s3: S3Server) -> None:
    directory = NodeDirectory(URI, endpoint_url=s3.endpoint_url)
    directory.put(NodeEntry("good", "https://a.example", 60))
    client = boto3.client("s3", endpoint_url=s3.endpoint_url)
    rubbish = {
        "a.json": b"not json", "b.json": b"[]", "c.json": b'{"node": 1, "url": "x", "ttl_s": 60}',
        "d.json": b'{"node": "d", "url": "https://d", "ttl_s": 1e9}', "e.json": b"x" * 5000, "f.txt": b"{}",
        "g.json": b'{"node": "g", "url": "https://g", "ttl_s": true}',
    }  # fmt: skip
    for key, content in rubbish.items():
        client.put_object(Bucket="nodes", Key=f"edge/live/{key}", Body=content)
    assert [n.name for n in find(s3).nodes] == ["good"]


def test_a_bucket_that_is_not_there_is_named(s3: S3Server) -> None:
    with pytest.raises(MecrouteError, match="no such bucket"):
        find(s3, "s3://elsewhere/x")


def test_a_name_that_would_leave_the_folder_is_refused(s3: S3Server) -> None:
    with pytest.raises(UsageError, match="cannot be listed"):
        NodeDirectory(URI, endpoint_url=s3.endpoint_url).put(NodeEntry("../x", "https://x", 60))
