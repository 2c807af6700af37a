"""Which runs are asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

from gradcamo_assets.defs.automation.run_requests import partition_requests
from gradcamo_assets.retries import MAX_ATTEMPTS


def test_runs_that_succeed_and_leave_their_work_undone_are_no_endless_loop() -> None:
    todo, now, asked = {("P1", 1): "crops of today"}, datetime.now(UTC), []
    with dg.DagsterInstance.ephemeral() as instance:
        while True:
            requests, given_up = partition_requests(instance, "rescore", todo, set(), now)
            if not requests:
                break
            (request,) = requests
            asked.append(request.run_key)
            tags = {**request.tags, "dagster/partition": str(request.partition_key)}
            instance.add_run(dg.DagsterRun("rescore", status=dg.DagsterRunStatus.SUCCESS, tags=tags))
        assert len(asked) == len(set(asked)) == MAX_ATTEMPTS
        assert "left it undone" in given_up["P1", 1]
        later, others = now + timedelta(hours=2), {("P1", 1): "crops of tomorrow"}
        assert partition_requests(instance, "rescore", others, set(), now)[0], "other crops begin anew"
        assert partition_requests(instance, "rescore", todo, set(), later)[0], "it is tried now and then"
