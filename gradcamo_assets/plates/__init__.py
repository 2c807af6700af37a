"""What a plate is: OME-Zarr HCS plates, plate maps, image quality, ingestion, the inbox, synthetic plates.

Nothing here knows of segmentation, crops, models or Dagster.
"""

from gradcamo_assets.plates.hcs import Field, Plate, field_version, open_plate, read_field, read_label
from gradcamo_assets.plates.inbox import InboxConfig, PlateState, list_inbox, plate_states
from gradcamo_assets.plates.ingest import IngestConfig, Ingested, ingest_plate
from gradcamo_assets.plates.platemap import read_label_table, read_plate_map, treatment_class
from gradcamo_assets.plates.store import known_plate, known_plates, load_plate, still_current
from gradcamo_assets.plates.synthetic import write_synthetic_plate
from gradcamo_assets.plates.synthetic_design import SyntheticPlate
from gradcamo_assets.plates.synthetic_field import render_field

__all__ = [
    "Field",
    "InboxConfig",
    "IngestConfig",
    "Ingested",
    "Plate",
    "PlateState",
    "SyntheticPlate",
    "field_version",
    "ingest_plate",
    "known_plate",
    "known_plates",
    "list_inbox",
    "load_plate",
    "open_plate",
    "plate_states",
    "read_field",
    "read_label",
    "read_label_table",
    "read_plate_map",
    "render_field",
    "still_current",
    "treatment_class",
    "write_synthetic_plate",
]
