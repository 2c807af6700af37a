"""The ``platform`` resource: data folders, lake and model registry of one installation."""

import dagster as dg
from pydantic import Field

from gradcamo_assets.defs.settings import Settings, read_settings
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.tables import Lake
from gradcamo_assets.training.model_registry import CHAMPION, ModelRegistry, ModelVersion


class Platform(dg.ConfigurableResource):
    """Folders, lake and registry of one installation."""

    root: str | None = Field(default=None, description="GRADCAMO_HOME; default: the environment variable.")
    model_name: str = Field(
        default="gradcamo-encoder", description="Name of the registered MLflow model whose champion scores."
    )

    @property
    def home(self) -> Home:
        """The data folders. They are not created here, so that an unreachable inbox does not become an empty one."""
        return Home.at(self.root) if self.root else Home.from_environment()

    @property
    def settings(self) -> Settings:
        """The current settings from ``gradcamo.toml``."""
        return read_settings(self.home)

    @property
    def lake(self) -> Lake:
        """The lake."""
        return Lake(self.home.lake)

    @property
    def registry(self) -> ModelRegistry:
        """The model registry."""
        uri = self.settings.registry.uri
        if uri is None and self.home.in_bucket:
            problem = "a home in a bucket needs an MLflow server"
            raise GradcamoError(problem, "Set uri in section [registry].", path=self.home.settings_file.name)
        return ModelRegistry(self.home.mlflow, self.model_name, uri)

    def champion(self) -> ModelVersion:
        """The current champion.

        Raises:
            dg.Failure: if there is no champion.
        """
        champion = self.registry.by_alias(CHAMPION)
        if champion is None:
            raise dg.Failure("There is no champion model. Launch the train_model job, or set the alias in MLflow.")
        return champion
