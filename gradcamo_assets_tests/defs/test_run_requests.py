"""Run requests for partitions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

from gradcamo_assets.defs.automation.run_requests import partition_requests
from gradcamo_assets.retries import MAX_ATTEMPTS


def test_runs_that_succeed_without_effect_are_not_repeated_for_ever() -> None:
    todo, now, run_keys = {("P1", 1): "first crops"}, datetime.now(UTC), []
    with dg.DagsterInstance.ephemeral() as instance:
        while True:
            requests, given_up = partition_requests(instance, "rescore", todo, set(), now)
            if not requests:
                break
            (request,) = requests
            run_keys.append(request.run_key)
            tags = {**request.tags, "dagster/partition": str(request.partition_key)}
            instance.add_run(dg.DagsterRun("rescore", status=dg.DagsterRunStatus.SUCCESS, tags=tags))
        assert len(run_keys) == len(set(run_keys)) == MAX_ATTEMPTS
        assert "without effect" in given_up["P1", 1]
        later, others = now + timedelta(hours=2), {("P1", 1): "other crops"}
        assert partition_requests(instance, "rescore", others, set(), now)[0], "attempts are counted per version"
        assert partition_requests(instance, "rescore", todo, set(), later)[0], "it is retried after a while"
