"""What every room may use: settings, errors, names checked before they become paths, atomic writes, provenance.

Nothing here knows a plate format, a network or Dagster.
"""

from gradcamo_assets.common.errors import GradcamoError
from gradcamo_assets.common.names import natural_key, plate_name, slug, well_name
from gradcamo_assets.common.settings import Home

__all__ = ["GradcamoError", "Home", "natural_key", "plate_name", "slug", "well_name"]
