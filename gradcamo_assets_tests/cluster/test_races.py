"""Processes of several machines write to and read from one bucket at the same time. They share no lock and no disk."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gradcamo_assets.home import Home
from gradcamo_assets.storage import read_bytes, write_bytes
from gradcamo_assets.tables import Lake, publish, run_sql
from gradcamo_assets_tests.buckets import keys
from gradcamo_assets_tests.cluster.object_store import ObjectStore
from gradcamo_assets_tests.tables import rows
from gradcamo_assets_tests.tables.published import assert_equals_the_lake

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def objects() -> Iterator[ObjectStore]:
    server = ObjectStore()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.remove()


def start(code: str, home: Home, *arguments: object) -> subprocess.Popen[str]:
    program = f"import sys\nfrom gradcamo_assets.home import Home\nhome = Home.at(sys.argv[1])\n{code}"
    command = [sys.executable, "-c", program, home.address, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for processes, which must succeed; return what they print."""
    answers = [process.communicate(timeout=600) for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(error for _, error in answers)
    return [answer for answer, _ in answers]


@pytest.mark.slow
def test_requests_wait_while_the_server_is_away(objects: ObjectStore) -> None:
    home = Home.at("s3://lab/away")
    write_bytes(home.settings_file, b"1")
    lake = Lake(home.lake)
    lake.record_version("image_versions", "v1", None, 1, plate="P1", site=1)
    objects.stop()
    with ThreadPoolExecutor() as pool:
        answers = [
            pool.submit(read_bytes, home.settings_file),
            pool.submit(write_bytes, home.plates / "P1.json", b"2"),
            pool.submit(lake.record_version, "image_versions", "v2", "v1", 2, plate="P1", site=1),
        ]
        time.sleep(40)
        assert not any(answer.done() for answer in answers)
        objects.start()
        assert [answer.result() for answer in answers] == [b"1", None, None]
    assert read_bytes(home.plates / "P1.json") == b"2"
    assert lake.partition_versions("image_versions")["version"].to_list() == ["v2"]


COMMITS = """
from gradcamo_assets.storage import atomic_folder
with atomic_folder(home.masks / "P1" / "A01_s1" / "v1") as scratch:
    for name in ("cells", "nuclei", "record"):
        (scratch / name).write_text(sys.argv[2] * 100_000)
    print("ready", flush=True)
    sys.stdin.readline()
"""
READS = """
from gradcamo_assets.local_copies import fetch_folder, temporary_copies
seen = set()
print("ready", flush=True)
while len(seen) < 2:
    with temporary_copies():
        try:
            folder = fetch_folder(home.masks / "P1" / "A01_s1" / "v1")
        except FileNotFoundError:
            seen.add("")
            continue
        texts = {(folder / name).read_text() for name in ("cells", "nuclei", "record")}
        assert len(texts) == 1, "a reader saw files of two writers"
        seen |= texts
print(max(seen)[0])
"""


def test_of_sixteen_processes_that_commit_one_field_one_wins(objects: ObjectStore) -> None:
    home = Home.at("s3://lab/manifest")
    write_bytes(home.settings_file, b"")
    reader = start(READS, home)
    writers = [start(COMMITS, home, "0123456789abcdef"[number]) for number in range(16)]
    for process in (reader, *writers):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    finish(writers)
    (winner,) = finish([reader])
    assert winner.strip() in "0123456789abcdef"
    assert len([key for key in keys(home.root) if key.startswith("masks/")]) == 4, "the objects of others remain"


WRITES = """
import numpy as np
from gradcamo_assets.tables import Lake
from gradcamo_assets_tests.tables import rows
lake, first = Lake(home.lake), int(sys.argv[2])
for number in range(first, first + 50):
    lake.record_version("image_versions", f"v{number}", None, number, plate=f"P{number}", site=1)
    if number % 10 == 0:
        rows.put(lake, np.random.default_rng(number), f"P{number}", 1, 1, n=8)
"""
ASKS = """
from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables import run_sql
seen, question = [0], (
    "SELECT (SELECT count(*) FROM scores WHERE split <> 'train'), "
    "(SELECT coalesce(sum(n_cells), 0)::BIGINT FROM qc_by_plate), "
    "(SELECT count(DISTINCT Metadata_Plate) FROM scores)"
)
while seen[-1] < 40:
    try:
        ((cells, aggregated, plates),) = run_sql(home.database, question).rows()
    except StoreError as error:
        assert "does not exist yet" in str(error), error
        continue
    assert cells == aggregated and plates >= seen[-1], (cells, aggregated, plates, seen)
    seen.append(plates)
print(len(seen))
"""


@pytest.mark.slow
def test_eight_machines_write_while_one_publishes_and_one_asks(objects: ObjectStore, tmp_path: Path) -> None:
    home = Home.at("s3://lab/lake")
    write_bytes(home.settings_file, b"")
    lake = Lake(home.lake)
    lake.append("models", rows.model(1))
    reader = start(ASKS, home)
    writers = [start(WRITES, home, 50 * number) for number in range(8)]
    begin, publications = time.monotonic(), 0
    while any(writer.poll() is None for writer in writers):
        publications += bool(publish(lake, home.database).changed)
    print(f"400 partitions in {time.monotonic() - begin:.0f} s, {publications} publications meanwhile")
    finish(writers)
    publish(lake, home.database)
    assert int(*finish([reader])) > 2
    versions = lake.partition_versions("image_versions")
    assert sorted(versions["n"]) == list(range(400))
    assert versions.filter(version=versions["Metadata_Plate"].str.replace("P", "v")).height == 400
    assert run_sql(home.database, "SELECT count(DISTINCT Metadata_CellID) = count(*) FROM scores").item()
    assert_equals_the_lake(lake, home.database, tmp_path / "fresh.duckdb")
