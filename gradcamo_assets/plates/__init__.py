"""What a plate is: OME-Zarr HCS plates, plate maps, image quality, ingestion, and the inbox.

Nothing here knows segmentation, crops, models or Dagster.
"""

from gradcamo_assets.plates.inbox import InboxConfig, PlateState, list_inbox, plate_states
from gradcamo_assets.plates.ingest import IngestConfig, Ingested, ingest_plate
from gradcamo_assets.plates.omezarr import Field, Plate, field_version, open_plate, read_field, read_label
from gradcamo_assets.plates.plate_records import known_plate, known_plates, load_plate, still_current
from gradcamo_assets.plates.platemap import read_label_table, read_plate_map, treatment_class

__all__ = [
    "Field",
    "InboxConfig",
    "IngestConfig",
    "Ingested",
    "Plate",
    "PlateState",
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
    "still_current",
    "treatment_class",
]
