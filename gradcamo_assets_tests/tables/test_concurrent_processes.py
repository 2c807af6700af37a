"""Concurrent readers, publishers and user sessions in separate processes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

from gradcamo_assets.tables import Lake, publish, run_sql
from gradcamo_assets_tests.tables import rows
from gradcamo_assets_tests.tables.published import assert_equals_the_lake, count

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


def python(code: str, *arguments: Path | str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


READERS = """
import sys, duckdb
from pathlib import Path
path, end, held = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "held"
connection, generations = duckdb.connect(path, read_only=True) if held else None, set()
while True:
    last = end.exists()
    reader = connection or duckdb.connect(path, read_only=True)
    runs, cells, aggregated = reader.execute(
        "SELECT (SELECT list(DISTINCT run_id) FROM scores), (SELECT count(*) FROM scores WHERE split <> 'train'), "
        "(SELECT sum(n_cells)::BIGINT FROM qc_by_plate)"
    ).fetchone()
    assert len(runs) == 1 and cells == aggregated, (runs, cells, aggregated)
    if not generations:
        print("reading", flush=True)
    generations.add(runs[0])
    if not held:
        reader.close()
    if last:
        break
print(len(generations))
"""


def test_readers_see_complete_publications_only(tmp_path: Path) -> None:
    lake, database, end = Lake(tmp_path / "lake"), tmp_path / "qc.duckdb", tmp_path / "end"

    def generation(number: int) -> None:
        for site in (1, 2):
            rows.put(lake, np.random.default_rng(number), "P1", site, 1)
            frame = lake.read("scores", site=site).with_columns(run_id=pl.lit(f"g{number}"))
            lake.write("scores", frame, plate="P1", site=site, model_run=rows.run_of(1))
        lake.compact("scores")
        publish(lake, database)

    lake.append("models", rows.model(1))
    generation(0)
    readers = [python(READERS, database, end, how) for how in ("held", "opened again and again")]
    for reader in readers:
        assert reader.stdout is not None
        reader.stdout.readline()
    for number in range(1, 5):
        generation(number)
    end.touch()
    (held, held_error), (again, again_error) = (reader.communicate(timeout=120) for reader in readers)
    assert (held, held_error, again_error) == ("1\n", "", "")
    assert int(again) >= 2


@pytest.mark.parametrize("opened_by", ["nobody", "this process", "a writing session"])
def test_publication_works_while_the_file_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened_by: str
) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1), tmp_path / "qc.duckdb"
    publish(lake, database)
    copies: list[object] = []
    copyfile = shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda *paths: copies.append(paths) or copyfile(*paths))
    session = None
    if opened_by == "a writing session":
        database.chmod(0o644)
        session = python("import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(flush=True); input()", database)
        assert session.stdout is not None
        session.stdout.readline()
    with duckdb.connect(database, read_only=True) if opened_by == "this process" else nullcontext():
        publication = publish(lake, database)
        assert not publication.changed and not publication.rebuilt and not copies
        rows.put(lake, np.random.default_rng(5), "P1", 3, 1)
        assert not publish(lake, database).rebuilt and len(copies) == 1
    if session is not None:
        session.communicate("\n", timeout=60)
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")


KILLED = """
import os, signal, sys
from pathlib import Path
from gradcamo_assets.tables import Lake, publish
module = sys.modules["gradcamo_assets.tables.publish"]
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "filling":
    module.refresh_summaries = die
elif sys.argv[3] == "noting":
    module._write_notes = die
else:
    replace = Path.replace
    Path.replace = lambda self, to: die() if to.name == "qc.duckdb" else replace(self, to)
publish(Lake(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", ["filling", "noting", "renaming"])
def test_a_killed_publisher_leaves_the_last_good_file(tmp_path: Path, moment: str) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1), tmp_path / "qc.duckdb"
    publish(lake, database)
    before, bytes_before = count(database), database.read_bytes()
    rows.put(lake, np.random.default_rng(5), "P1", 3, 1)
    killed = python(KILLED, lake.root, database, moment)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".qc.duckdb.*.tmp"))
    assert database.read_bytes() == bytes_before and count(database) == before
    publication = publish(lake, database)
    assert publication.changed and not publication.rebuilt
    assert count(database) > before
    assert not list(tmp_path.glob(".qc.duckdb.*.tmp*"))


PUBLISHES = """
import sys
from pathlib import Path
import numpy as np
from gradcamo_assets.tables import Lake, publish
from gradcamo_assets_tests.tables import rows
lake, seed = Lake(Path(sys.argv[1])), int(sys.argv[3])
print(flush=True)
for site in range(seed, seed + 50):
    rows.put(lake, np.random.default_rng(site), "P1", site, 1, n=8)
    publish(lake, Path(sys.argv[2]))
"""


def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1, sites=1, versions=1), tmp_path / "qc.duckdb"
    publish(lake, database)
    rng = np.random.default_rng(0)
    seen = count(database)
    for kill in range(20):
        publisher = python(PUBLISHES, lake.root, database, str(2 + 50 * kill))
        assert publisher.stdout is not None
        publisher.stdout.readline()
        time.sleep(rng.uniform(0.1, 0.8))
        publisher.kill()
        publisher.communicate(timeout=60)
        sql = "SELECT (SELECT count(*) FROM scores WHERE split <> 'train'), (SELECT sum(n_cells) FROM qc_by_plate)"
        assert len(set(run_sql(database, sql).row(0))) == 1
        assert count(database) >= seen
        seen = count(database)
    publish(lake, database)
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")


SESSION = """
import os, sys, duckdb
os.chmod(sys.argv[1], 0o644)
connection = duckdb.connect(sys.argv[1])
connection.execute("CREATE TABLE other AS SELECT range AS a FROM range(1000)")
os.kill(os.getpid(), 9)
"""


def test_the_log_of_a_writing_session_is_removed(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1), tmp_path / "qc.duckdb"
    publish(lake, database)
    log = tmp_path / "qc.duckdb.wal"
    python(SESSION, database).communicate(timeout=60)
    assert log.exists()
    left = log.read_bytes()
    rows.put(lake, np.random.default_rng(5), "P1", 3, 1)
    publish(lake, database)
    assert not log.exists()
    after = count(database)
    # A session that outlives the publication may still leave its log beside the new file.
    log.write_bytes(left)
    assert count(database) == after
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")


MANY = """
import sys
from pathlib import Path
import numpy as np
from gradcamo_assets.tables import Lake, publish
from gradcamo_assets_tests.tables import rows
lake, plate = Lake(Path(sys.argv[1])), sys.argv[3]
for site in (1, 2):
    rows.put(lake, np.random.default_rng(site), plate, site, 1, n=20)
    lake.append("models", rows.model(1))
    publish(lake, Path(sys.argv[2]))
"""


def test_eight_publishers_at_once_lose_no_row(tmp_path: Path) -> None:
    lake, database = Lake(tmp_path / "lake"), tmp_path / "qc.duckdb"
    publishers = [python(MANY, lake.root, database, f"P{number}") for number in range(8)]
    for publisher in publishers:
        _, error = publisher.communicate(timeout=120)
        assert publisher.returncode == 0, error
    assert not publish(lake, database).changed
    assert run_sql(database, "SELECT DISTINCT Metadata_Plate, Metadata_Site FROM scores").height == 16
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")
