"""Everything that can be set, ``gradcamo.toml`` as one model; and the two sections that only orchestration reads."""

import json
import tomllib

from pydantic import TypeAdapter, ValidationError

from gradcamo_assets.cells import CropConfig
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.plates import InboxConfig, IngestConfig
from gradcamo_assets.profiles import ProfilesConfig
from gradcamo_assets.scoring.settings import ScoringConfig
from gradcamo_assets.segmentation import SegmenterConfig
from gradcamo_assets.segmentation.cell_quality import QcConfig
from gradcamo_assets.settings import Count, describe_errors, section, setting
from gradcamo_assets.training.mlflow_runs import Links
from gradcamo_assets.training.promotion_rule import PromotionConfig
from gradcamo_assets.training.settings import TrainingConfig


@section
class AlertConfig:
    """Who is told of a failed run: section ``[alerts]``. Without ``webhook`` and ``mail_to`` nobody is.

    Where the environment holds ``GRADCAMO_SMTP_PASSWORD``, the mail server is spoken to over TLS.
    """

    # The address is a secret: it stands in no message.
    webhook: str | None = setting(
        None,
        "An address that takes JSON: https, or http on this machine.",
        repr=False,
        pattern=r"^(https://[^/?#\s]|http://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?([/?#]|$))",
    )
    mail_to: str | tuple[str, ...] = setting((), "One address or a list.")
    mail_from: str = setting("gradcamo@localhost", "The sender.")
    smtp_host: str = setting("localhost", "The mail server.")
    smtp_port: int = setting(25, "Its port.", ge=1, le=65535)
    smtp_user: str | None = setting(None, "Who logs in there; else mail_from.")


@section
class RetrainingConfig:
    """When an encoder is trained again by itself: section ``[retraining]``."""

    after_plates: Count = setting(0, "After how many new plates; 0: never.")


@section
class Settings:
    """All sections of ``gradcamo.toml`` by their names; what the file leaves out has its default."""

    inbox: InboxConfig = InboxConfig()
    plates: IngestConfig = IngestConfig()
    segmentation: SegmenterConfig = SegmenterConfig()
    segmentation_qc: QcConfig = QcConfig()
    crops: CropConfig = CropConfig()
    training: TrainingConfig = TrainingConfig()
    promotion: PromotionConfig = PromotionConfig()
    retraining: RetrainingConfig = RetrainingConfig()
    scoring: ScoringConfig = ScoringConfig()
    profiles: ProfilesConfig = ProfilesConfig()
    links: Links = Links()
    alerts: AlertConfig = AlertConfig()


_SETTINGS = TypeAdapter(Settings)


def read_settings(home: Home) -> Settings:
    """The settings of an installation, checked as a whole.

    Raises:
        GradcamoError: if the file is no TOML, or for all that is wrong in it: unknown sections and keys, types, values.
    """
    path = home.settings_file
    try:
        values = tomllib.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise GradcamoError(f"the settings cannot be read ({error})", "Mend the file.", path=path) from error
    try:
        # As JSON, where a list is the only sequence there is: from Python, pydantic tells lists from tuples.
        return _SETTINGS.validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise GradcamoError(describe_errors(error, Settings), "Mend the file.", path=path) from None
