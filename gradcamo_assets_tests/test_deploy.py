"""The files in ``deploy/`` parse, and name variables, settings, assets, options and versions that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import dropwhile
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from gradcamo_assets.cli import main
from gradcamo_assets.defs.settings import Settings, read_settings
from gradcamo_assets.home import Home

REPOSITORY = Path(__file__).parents[1]
DEPLOY = REPOSITORY / "deploy"
FILES = sorted(DEPLOY.iterdir())
DAGSTER, COMPOSE, KUBERAY = "dagster-cluster.yaml", "compose.yaml", "kuberay-values.yaml"
SLURM = (DEPLOY / "slurm.sbatch").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
_SECRET = re.compile(r"PASSWORD|TOKEN$|_KEY$|SECRET|_KEY_ID$|ACCESS_KEY$")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text())


def needed_variables() -> set[str]:
    """The variables of the environment that the Dagster instance of a cluster reads."""
    return set(re.findall(r"\{env: (\w+)\}", (DEPLOY / DAGSTER).read_text()))


def variables(name: str) -> dict[str, dict[str, Any]]:
    """The environment of each process that a file starts, by the name of the process."""
    if name == COMPOSE:
        return {key: service.get("environment", {}) for key, service in load(name)["services"].items()}
    values = load(name)
    return {"common": {variable["name"]: variable for variable in values["common"]["containerEnv"]}}


def commands() -> Iterator[list[str]]:
    """The command lines of the files."""
    yield from (service["command"] for service in load(COMPOSE)["services"].values() if "command" in service)
    yield from (container["command"] for container in load(KUBERAY)["head"]["sidecarContainers"])
    for line in SLURM.replace("\\\n", " ").splitlines():
        if line.startswith("srun "):
            before, _, after = line.partition(" -- ")
            yield [*dropwhile(lambda word: word.startswith(("srun", "--")), shlex.split(before))]
            yield shlex.split(after)


def commands_of(program: str) -> list[list[str]]:
    found = [command[1:] for command in commands() if command[0] == program]
    assert found, program
    return found


def check_options(command: click.Command, words: list[str]) -> None:
    """Raise a click exception for an unknown option."""
    command.make_parser(click.Context(command)).parse_args(words)


def test_every_file_is_checked_here() -> None:
    names = {path.name for path in FILES}
    assert names == {"Dockerfile", COMPOSE, DAGSTER, "gradcamo-cluster.toml", KUBERAY, "slurm.sbatch"}


def test_the_settings_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "gradcamo.toml").write_bytes((DEPLOY / "gradcamo-cluster.toml").read_bytes())
    assert read_settings(Home(tmp_path)) != Settings()


def test_the_dagster_instance_is_accepted() -> None:
    from dagster._config import validate_config
    from dagster._core.instance.config import dagster_instance_config_schema

    from gradcamo_assets.definitions import defs

    settings = load(DAGSTER)
    assert validate_config(dagster_instance_config_schema(), settings).success
    launcher = settings["run_launcher"]
    known = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert set(launcher["config"]["assets"]) <= known
    pytest.importorskip("dagster_ray", reason="the extra cluster is not installed")
    assert hasattr(import_module(launcher["module"]), launcher["class"])


def test_no_variable_is_unknown() -> None:
    sources = [*(REPOSITORY / "gradcamo_assets").rglob("*.py"), DEPLOY / DAGSTER]
    known = {name for path in sources for name in re.findall(r"\bGRADCAMO_[A-Z_]+\b", path.read_text())}
    known |= {"GRADCAMO_S3_KEY", "GRADCAMO_S3_SECRET"}  # Of the S3 server alone.
    for path in FILES:
        named = set(re.findall(r"\bGRADCAMO_[A-Z_0-9]+[A-Z0-9]\b", path.read_text()))
        assert named <= known, path.name


@pytest.mark.parametrize("name", [COMPOSE, KUBERAY])
def test_every_process_gets_the_variables_that_dagster_needs(name: str) -> None:
    needed = needed_variables() | {"GRADCAMO_HOME", "DAGSTER_HOME", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    assert len(needed) == 9
    found = variables(name)
    for process in [process for process in found if process in ("common", "ui", "ray-head", "ray-worker")]:
        assert needed <= set(found[process]), process


def test_the_batch_job_has_the_variables_that_dagster_needs() -> None:
    given = set(re.findall(r"\$\{(\w+):\?\}", SLURM)) | set(re.findall(r"^export (\w+)=", SLURM, re.MULTILINE))
    assert needed_variables() | {"GRADCAMO_HOME", "DAGSTER_HOME", "RAY_AUTH_MODE"} <= given
    assert subprocess.run(["bash", "-n", DEPLOY / "slurm.sbatch"], check=False).returncode == 0


def test_passwords_are_references() -> None:
    for service in load(COMPOSE)["services"].values():
        for variable, value in service.get("environment", {}).items():
            assert not _SECRET.search(variable) or re.fullmatch(r"\$\{\w+:\?\}", value), variable
    for variable in load(KUBERAY)["common"]["containerEnv"]:
        assert not _SECRET.search(variable["name"]) or "secretKeyRef" in variable["valueFrom"], variable
    assert not re.search(r"://[^/\s]*:[^/@\s]+@", "".join(path.read_text() for path in FILES))


def test_ports_are_published_on_the_loopback_address_only() -> None:
    services = load(COMPOSE)["services"].values()
    ports = [port for service in services for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    assert all("private" in service["networks"] for service in services)
    assert load(COMPOSE)["networks"]["private"] == {"internal": True}
    assert load(KUBERAY)["service"] == {"type": "ClusterIP"}


def test_gradcamo_has_the_options() -> None:
    for words in commands_of("gradcamo"):
        check_options(main.commands[words[0]], words[1:])


def test_mlflow_has_the_options() -> None:
    # Its module of commands takes seconds to import.
    specs = [find_spec(name) for name in ("mlflow.cli", "mlflow.utils.cli_args")]
    sources = [Path(spec.origin).read_text() for spec in specs if spec and spec.origin]
    known = {option for source in sources for option in re.findall(r'"(--[\w-]+)"', source)}
    for words in commands_of("mlflow"):
        assert words[0] == "server" and {word.partition("=")[0] for word in words[1:]} <= known


def test_ray_has_the_options() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="the extra cluster is not installed")
    for words in commands_of("ray"):
        if words[0] == "symmetric-run":
            words = ["start", *words[words.index("--num-cpus") :]]
        check_options(scripts.cli.commands[words[0]], words[1:])


def test_the_image_has_what_it_copies_and_ray_the_version_of_the_constraints() -> None:
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        assert all((REPOSITORY / source).exists() for source in line.split()[:-1]), line
    extras = re.search(r'"\.\[([\w,]+)\]"', DOCKERFILE)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert extras and set(extras[1].split(",")) <= set(project["optional-dependencies"])
    ray = re.search(r"^ray==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert ray and load(KUBERAY)["head"]["rayVersion"] == ray[1]
