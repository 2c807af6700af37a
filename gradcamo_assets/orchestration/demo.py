"""The demo: one synthetic plate, dropped into the inbox and led through every asset in a persistent instance."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from gradcamo_assets.common import GradcamoError, Home
from gradcamo_assets.learning.promotion import promote
from gradcamo_assets.learning.registry import CHALLENGER, CHAMPION
from gradcamo_assets.orchestration.build import build_definitions
from gradcamo_assets.orchestration.instance import open_instance
from gradcamo_assets.orchestration.partitions import PLATES, plate_site_key
from gradcamo_assets.orchestration.reconcile import scoring_state
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.plates import SyntheticPlate, load_plate, write_synthetic_plate
from gradcamo_assets.warehouse import qc_table, render

DEMO_SETTINGS = """\
# Settings of this installation, as the demo wrote them. What is left out has its default: the paper's crops are
# 21 x 128 x 128. Set them for plates of your own.
[segmentation]
mode = "stitch"  # Enough for the demo's cells, in a sixth of the time; without this line, stacks are segmented as one.

[crops]
shape = [12, 64, 64]

[training]
encoder = "efficientnet3d-small"
epochs = 16
"""


QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Events go to the instance, where the UI shows them, and not to the terminal."""


@contextmanager
def _stage(title: str) -> Iterator[None]:
    print(f"  {title} ...", end="", flush=True)
    start = time.perf_counter()
    yield
    print(f" {time.perf_counter() - start:.0f} s", flush=True)


def run_demo(home: Home, config: SyntheticPlate) -> None:
    """Synthesise a plate, run every asset on it, print the QC table and where to look next.

    Raises:
        GradcamoError: if a run fails; the UI shows where.
    """
    instance = open_instance(home)
    platform = Platform(root=str(home.root))
    definitions = build_definitions(platform)
    home.create()
    if not home.settings_file.exists():
        home.settings_file.write_text(DEMO_SETTINGS)

    def run(job: str, partition: str | None = None, **config: object) -> None:
        result = definitions.resolve_job_def(job).execute_in_process(
            instance=instance, partition_key=partition, raise_on_error=False, run_config={**QUIET, **config}
        )
        if not result.success:
            failures = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
            reason = failures[0].message.strip() if failures and failures[0] else "see the run"
            raise GradcamoError(
                f"job {job} failed{f' for {partition}' if partition else ''} ({reason})",
                f"Look at run {result.run_id} with make ui.",
            )

    print(
        f"{config.name}: {config.wells} wells x {config.sites} sites, "
        f"shortcut {config.shortcut}, labels by {config.labels}"
    )
    with _stage("synthesising the plate into the inbox"):
        write_synthetic_plate(home.inbox, config)
    with _stage("ingesting it"):
        instance.add_dynamic_partitions(str(PLATES.name), [config.name])
        run("ingest_plates", config.name)
    sites = sorted({field.site for field in load_plate(home.plates, config.name).fields})
    for site in sites:
        with _stage(f"segmenting and cropping site {site} of {len(sites)}"):
            run("process_fields", plate_site_key(config.name, site))
    with _stage("training the encoder"):
        run("train_model", ops={"data_split": {"config": {"plates": [config.name]}}})
    registry = platform.registry
    champion = registry.by_alias(CHALLENGER)
    if champion is None:
        raise GradcamoError("training registered no model", "Look at the run of train_model with make ui.")
    if champion != registry.by_alias(CHAMPION):
        promote(platform.lake, registry, champion, by="gradcamo demo", reason=f"trained on {config.name}")
    for plate, site in scoring_state(home, platform.lake, registry, champion).todo:
        with _stage(f"embedding and scoring {plate}, site {site}"):
            run("rescore", plate_site_key(plate, site))
    with _stage("profiles, map and QC database"):
        run("refresh_qc")
    with _stage("auditing the encoder"):
        run("audit_plates", config.name)
    with _stage("the report"):
        run("report_plates", config.name)
    print(f"\nWhere does {champion} look? Cells it was trained on are left out.\n")
    render(qc_table(home.database, by="dose,site").filter(Metadata_Plate=config.name))
    print(NEXT.format(report=home.reports / config.name / f"{champion.name}-v{champion.version}.html"))


NEXT = """
Next:
  make ui                                   the Dagster and MLflow pages on this very data
  .venv/bin/gradcamo qc --by dose           the ready-made tables: dose, site, dose,site, well, plate, model
  .venv/bin/gradcamo sql "SELECT looks_at, count(*) FROM current_scores GROUP BY ALL"
  .venv/bin/gradcamo demo --shortcut background     an encoder that cheats, and the score that says so
  {report}
"""


def demo_plate(shortcut: str, labels: str, seed: int) -> SyntheticPlate:
    """The demo's plate: its name says what is on it."""
    base = SyntheticPlate()
    name = f"demo-{shortcut}-{labels}-{seed}"
    return replace(base, name=name, shortcut=shortcut, labels=labels, seed=seed)  # type: ignore[arg-type]
