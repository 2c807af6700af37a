"""A home in a bucket: what is written is read again, whole or not at all, also by another machine and after errors."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest

from gradcamo_assets import buckets
from gradcamo_assets.errors import StoreError
from gradcamo_assets.home import Home
from gradcamo_assets.local_copies import (
    fetch_file,
    fetch_folder,
    fetch_level,
    fetch_tree,
    fetch_unchanging,
    temporary_copies,
)
from gradcamo_assets.storage import (
    address,
    atomic_file,
    atomic_folder,
    create_marker,
    exists,
    file_sizes,
    folder_exists,
    list_visible,
    path_of,
    publish_file,
    read_bytes,
    read_json,
    read_start,
    remove,
    replaced_folder,
    upload_tree,
    write_bytes,
    write_json,
)
from gradcamo_assets.storage_errors import is_storage_failure
from gradcamo_assets_tests.buckets import fail, forget_copies, keys, memory_bucket


@pytest.fixture
def root() -> Path:
    return memory_bucket()


def copies(root: Path) -> list[str]:
    """The files on this machine, without scratch files."""
    files = (path for path in root.rglob("*") if path.is_file())
    return sorted(name for file in files if not (name := file.relative_to(root).as_posix()).startswith("."))


def write_folder(folder: Path, **files: str) -> None:
    with atomic_folder(folder) as scratch:
        for name, text in files.items():
            (scratch / "deep").mkdir(exist_ok=True)
            (scratch / "deep" / name).write_text(text)


def test_files_are_objects_and_hidden_names_stay_on_the_machine(root: Path) -> None:
    write_json(root / "a" / "b.json", {"x": 1})
    create_marker(root / "a" / "known")
    write_bytes(root / "a" / ".hidden", b"scratch")
    with atomic_file(root / "c.txt") as file:
        file.write_text("c")
    assert keys(root) == ["a/b.json", "a/known", "c.txt"] and copies(root) == ["a/.hidden"]
    assert read_json(root / "a" / "b.json") == {"x": 1} and read_bytes(root / "a" / "none") is None
    assert read_start(root / "a" / "b.json", 4) == (len('{\n  "x": 1\n}\n'), b"{\n  ")
    assert list_visible(root / "a") == [root / "a" / "b.json", root / "a" / "known"]
    assert list_visible(root, "*/*.json") == [root / "a" / "b.json"] and list_visible(root / "nowhere") == []
    assert list_visible(root) == [root / "a", root / "c.txt"]
    assert exists(root / "a") and exists(root / "c.txt") and not exists(root / "b")
    assert file_sizes(root / "c.txt") == [1] and file_sizes(root / "a") == [13, 0]
    remove(root / "a", root / "never there")
    assert keys(root) == ["c.txt"]


def test_names_that_begin_alike_are_different_folders(root: Path) -> None:
    for name in ("P1", "P10", "P1.zarr"):
        write_bytes(root / name / "x", name.encode())
    remove(root / "P1")
    assert keys(root) == ["P1.zarr/x", "P10/x"] and not exists(root / "P1")


def test_a_folder_exists_when_its_manifest_does(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "masks" / "v1"
    with pytest.raises(FileNotFoundError):
        fetch_folder(folder)
    with monkeypatch.context() as patch:
        fail(patch, "put", after=2)
        with pytest.raises(OSError, match="does not answer") as raised:
            write_folder(folder, one="1", two="2", three="3")
    assert is_storage_failure(raised.value) and len(keys(root)) == 2 and copies(root) == []
    assert not folder_exists(folder)
    write_folder(folder, one="1", two="2")
    assert folder_exists(folder)
    forget_copies(root)
    assert sorted(path.name for path in (fetch_folder(folder) / "deep").iterdir()) == ["one", "two"]
    remove(folder)
    assert not folder_exists(folder) and keys(root) == [] and copies(root) == []


def test_a_folder_in_a_folder_that_was_copied_before_is_copied(root: Path) -> None:
    write_folder(root / "v1", record="1")
    forget_copies(root)
    fetch_folder(root / "v1")
    found = buckets.find(root)
    assert found is not None
    found[0].create("v1/pixels/a/shard", b"2")
    found[0].create("v1/pixels/manifest.json", b'{"folder": "a", "files": ["shard"]}')
    assert (fetch_folder(root / "v1" / "pixels") / "shard").read_bytes() == b"2"


def test_one_of_sixteen_writers_of_a_folder_wins_whole(root: Path) -> None:
    folder, barrier = root / "masks" / "v1", threading.Barrier(16)

    def write(number: int) -> None:
        with atomic_folder(folder) as scratch:
            for name in ("cells", "nuclei"):
                (scratch / name).write_text(str(number))
            barrier.wait()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(16)))
    forget_copies(root)
    fetch_folder(folder)
    assert (folder / "cells").read_text() == (folder / "nuclei").read_text()
    assert len(keys(root)) == 3, "the objects of the others remain"


def test_a_write_whose_answer_was_lost_counts_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = obstore.put

    def put_twice(*arguments: object, **named: object) -> object:
        put(*arguments, **named)
        return put(*arguments, **named)

    monkeypatch.setattr(obstore, "put", put_twice)
    write_folder(root / "v1", one="1")
    assert (fetch_folder(root / "v1") / "deep" / "one").read_text() == "1" and len(keys(root)) == 2


def test_errors_of_the_store_are_those_of_a_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from obstore.exceptions import PermissionDeniedError

    write_folder(root / "v1", one="1")
    forget_copies(root)
    with monkeypatch.context() as patch:
        fail(patch, "get", after=1)
        with pytest.raises(OSError, match="does not answer"):
            fetch_folder(root / "v1")
        with pytest.raises(OSError, match="does not answer"):
            read_bytes(root / "x")
    with monkeypatch.context() as patch:
        fail(patch, "put", error=PermissionDeniedError("not for you"))
        with pytest.raises(PermissionError) as raised:
            write_bytes(root / "x", b"")
    assert raised.value.errno == errno.EACCES
    assert (fetch_folder(root / "v1") / "deep" / "one").read_text() == "1"


def test_copies_are_whole_current_and_deleted_after_use(root: Path) -> None:
    write_folder(root / "v1", one="1")
    for name in ("A/01/0/zarr.json", "A/01/0/c/0", "A/01/1/zarr.json"):
        write_bytes(root / "plate" / name, name.encode())
    write_bytes(root / "table.csv", b"old")
    forget_copies(root)
    with temporary_copies():
        fetch_folder(root / "v1")
        with temporary_copies():
            fetch_tree(root / "plate" / "A" / "01" / "0")
            fetch_folder(root / "v1")
            assert copies(root) == ["plate/A/01/0/c/0", "plate/A/01/0/zarr.json", "v1/deep/one"]
        assert copies(root) == ["v1/deep/one"]
    assert copies(root) == []
    assert fetch_file(root / "table.csv").read_text() == "old"
    write_bytes(root / "table.csv", b"new")
    assert fetch_file(root / "table.csv").read_text() == "new"
    fetch_unchanging([root / "plate" / "A" / "01" / "1" / "zarr.json"])
    assert copies(root) == ["plate/A/01/1/zarr.json", "table.csv"]
    with pytest.raises(FileNotFoundError):
        fetch_file(root / "none.csv")


def test_the_files_of_one_level_are_copied_and_deleted_ones_vanish(root: Path) -> None:
    for name in ("inbox/P1.csv", "inbox/P2.csv", "inbox/P1/image.tif"):
        write_bytes(root / name, b"1")
    fetch_level(root / "inbox")
    assert copies(root) == ["inbox/P1.csv", "inbox/P2.csv"]
    found = buckets.find(root)
    assert found is not None
    found[0].delete(["inbox/P1.csv"])
    write_bytes(root / "inbox" / "P2.csv", b"22")
    fetch_level(root / "inbox")
    assert copies(root) == ["inbox/P2.csv"] and (root / "inbox" / "P2.csv").read_text() == "22"


def test_trees_and_published_files_replace_what_was_there(root: Path, tmp_path: Path) -> None:
    for text in ("old", "new"):
        with replaced_folder(root / "exports" / "P1") as scratch:
            (scratch / f"{text}.parquet").write_text(text)
        (tmp_path / "qc.duckdb").write_text(text)
        publish_file(tmp_path / "qc.duckdb", root / "qc.duckdb")
        assert fetch_file(root / "qc.duckdb").read_text() == text
    (tmp_path / "plate" / "A").mkdir(parents=True)
    (tmp_path / "plate" / "A" / "0").write_text("0")
    upload_tree(tmp_path / "plate", root / "plates" / "P1.zarr")
    assert keys(root) == ["exports/P1/new.parquet", "plates/P1.zarr/A/0", "qc.duckdb"]
    assert not (tmp_path / "plate").exists()


def test_addresses_are_the_same_on_every_machine(root: Path, tmp_path: Path) -> None:
    file = root / "lake" / "scores" / "a.parquet"
    assert address(file).startswith("memory://") and address(file).endswith("/lake/scores/a.parquet")
    assert path_of(address(file)) == file
    assert address(tmp_path / "a") == str(tmp_path / "a") and path_of(str(tmp_path / "a")) == tmp_path / "a"
    assert str(StoreError("it is damaged", "Delete it.", path=file)).startswith(f"file {address(file)}: ")
    home = Home(root)
    assert home.in_bucket and home.address == address(root) and Home.at(home.address) == home
    assert not Home(tmp_path).in_bucket and Home(tmp_path).address == str(tmp_path)


@pytest.mark.parametrize("text", ["s3://", "s3://bucket/a b", "s3://bucket/../a", "s3://bucket//a", "s3://bucket/.a"])
def test_only_plain_addresses_are_accepted(text: str) -> None:
    with pytest.raises(StoreError, match="is not the address"):
        Home.at(text)


def test_an_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        Home.at("nosuch://bucket/screens")


def test_dagster_needs_a_folder_of_its_own(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with pytest.raises(StoreError, match="DAGSTER_HOME"):
        _ = Home(root).dagster
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert Home(root).dagster == tmp_path


def test_the_scratch_folder_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from gradcamo_assets.buckets import mount\n"
        "from obstore.store import MemoryStore\n"
        "folder = mount('memory://a', MemoryStore()); (folder / 'copy').touch()\n"
        "print(folder, flush=True); time.sleep(float(sys.argv[1]))"
    )
    environment = {**os.environ, "GRADCAMO_SCRATCH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    running = subprocess.Popen([*command, "60"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert running.stdout is not None
        kept = Path(running.stdout.readline().strip())
        ended = subprocess.run([*command, "0"], capture_output=True, text=True, check=True, env=environment)
        assert (kept / "copy").exists() and not Path(ended.stdout.strip()).exists()
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert (kept / "copy").exists()
        subprocess.run([*command, "0"], capture_output=True, check=True, env=environment)
        assert list(tmp_path.iterdir()) == []
    finally:
        running.kill()
        running.wait()
        if running.stdout is not None:
            running.stdout.close()
