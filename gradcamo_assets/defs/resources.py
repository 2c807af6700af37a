"""The one resource: where this installation keeps its data, its lake and its model registry."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from gradcamo_assets.defs.settings import Settings, read_settings
from gradcamo_assets.home import Home
from gradcamo_assets.tables import Lake
from gradcamo_assets.training.model_registry import CHAMPION, ModelRegistry, ModelVersion


class Platform(dg.ConfigurableResource):
    """Folders, lake and registry of one installation."""

    root: str | None = Field(default=None, description="GRADCAMO_HOME; by default the environment variable's.")
    model_name: str = Field(default="gradcamo-encoder", description="Registered model in MLflow whose champion scores.")

    @property
    def home(self) -> Home:
        """The folders. They are not made here: an inbox that is out of reach must not turn into an empty one."""
        return Home(Path(self.root).absolute()) if self.root else Home.from_environment()

    @property
    def settings(self) -> Settings:
        """What ``gradcamo.toml`` says at this moment."""
        return read_settings(self.home)

    @property
    def lake(self) -> Lake:
        """The Parquet lake."""
        return Lake(self.home.lake)

    @property
    def registry(self) -> ModelRegistry:
        """The model registry."""
        return ModelRegistry(self.home.mlflow, self.model_name)

    def champion(self) -> ModelVersion:
        """The champion of the moment.

        Raises:
            dg.Failure: if there is none yet.
        """
        found = self.registry.by_alias(CHAMPION)
        if found is None:
            raise dg.Failure("There is no champion model yet. Launch the train_model job, or move the alias in MLflow.")
        return found
