"""Read and check ``gradcamo.toml``; define its sections ``[alerts]`` and ``[retraining]``."""

import ipaddress
import json
import tomllib
from typing import Annotated

from pydantic import AfterValidator, TypeAdapter, ValidationError

from gradcamo_assets.cells import CropConfig
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.networks.settings import EncodersConfig
from gradcamo_assets.plates import InboxConfig, IngestConfig
from gradcamo_assets.profiles import ProfilesConfig
from gradcamo_assets.scoring.settings import ScoringConfig
from gradcamo_assets.segmentation import SegmenterConfig
from gradcamo_assets.segmentation.cell_quality import QcConfig
from gradcamo_assets.settings import Count, describe_errors, section, setting
from gradcamo_assets.storage import read_bytes
from gradcamo_assets.storage_errors import is_storage_failure
from gradcamo_assets.training.mlflow_runs import Links, RegistryConfig
from gradcamo_assets.training.promotion_rule import PromotionConfig
from gradcamo_assets.training.settings import TrainingConfig


def _check_network(network: str) -> str:
    ipaddress.ip_network(network, strict=False)
    return network


@section
class AlertConfig:
    """Recipients of alerts on failed runs: section ``[alerts]``. Without ``webhook`` and ``mail_to``, none are sent.

    If the environment variable ``GRADCAMO_SMTP_PASSWORD`` is set, mail is sent over TLS with a login.
    """

    # The address is secret (repr=False): no message contains it.
    webhook: str | None = setting(
        None,
        "URL to which alerts are posted as JSON: https, or http on this machine. Redirects are not followed.",
        repr=False,
        pattern=r"^(https://[^/?#\s]|http://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?([/?#]|$))",
    )
    webhook_networks: tuple[Annotated[str, AfterValidator(_check_network)], ...] = setting(
        (),
        'Networks that are not public in which the webhook, or a proxy to it, may be, such as `["10.1.0.0/16"]`, or '
        '`["127.0.0.1"]` for this machine. Nothing is sent to any other private, loopback or link-local address.',
    )
    mail_to: str | tuple[str, ...] = setting((), "Recipient: an address or a list of addresses.")
    mail_from: str = setting("gradcamo@localhost", "Sender address.")
    smtp_host: str = setting("localhost", "Host name of the mail server.")
    smtp_port: int = setting(25, "Port of the mail server.", ge=1, le=65535)
    smtp_user: str | None = setting(None, "Login name at the mail server; default: mail_from.")


@section
class RetrainingConfig:
    """Automatic training of a new encoder: section ``[retraining]``."""

    after_plates: Count = setting(0, "Number of new plates after which an encoder is trained; 0: never.")


@section
class Settings:
    """All sections of ``gradcamo.toml``. Omitted settings have their defaults."""

    inbox: InboxConfig = InboxConfig()
    plates: IngestConfig = IngestConfig()
    segmentation: SegmenterConfig = SegmenterConfig()
    segmentation_qc: QcConfig = QcConfig()
    crops: CropConfig = CropConfig()
    encoders: EncodersConfig = EncodersConfig()
    training: TrainingConfig = TrainingConfig()
    promotion: PromotionConfig = PromotionConfig()
    retraining: RetrainingConfig = RetrainingConfig()
    scoring: ScoringConfig = ScoringConfig()
    profiles: ProfilesConfig = ProfilesConfig()
    registry: RegistryConfig = RegistryConfig()
    links: Links = Links()
    alerts: AlertConfig = AlertConfig()


_SETTINGS = TypeAdapter(Settings)


def read_settings(home: Home) -> Settings:
    """Read the settings of an installation and check all of them.

    Raises:
        GradcamoError: if the file is not TOML, or lists all unknown sections and keys, wrong types and wrong values.
    """
    path = home.settings_file
    try:
        values = tomllib.loads((read_bytes(path) or b"").decode())
    except (OSError, ValueError) as error:
        if is_storage_failure(error):
            raise
        raise GradcamoError(f"the settings cannot be read ({error})", "Correct the file.", path=path) from error
    try:
        # JSON, since strict validation of Python objects would reject lists for fields that are tuples.
        return _SETTINGS.validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise GradcamoError(describe_errors(error, Settings), "Correct the file.", path=path) from None
