"""Plates: OME-Zarr HCS plates, plate maps, image quality, ingestion, and the inbox.

This package does not import segmentation, crops, models or Dagster.
"""

from gradcamo_assets.plates.inbox import InboxConfig, PlateState, list_inbox, plate_states
from gradcamo_assets.plates.ingest import IngestConfig, IngestedPlate, ingest_plate
from gradcamo_assets.plates.omezarr import Field, Plate, field_version, open_plate, read_field, read_label
from gradcamo_assets.plates.plate_records import is_current, list_known_plates, load_plate, read_plate_record
from gradcamo_assets.plates.platemap import read_label_table, read_plate_map, treatment_class

__all__ = [
    "Field",
    "InboxConfig",
    "IngestConfig",
    "IngestedPlate",
    "Plate",
    "PlateState",
    "field_version",
    "ingest_plate",
    "is_current",
    "list_inbox",
    "list_known_plates",
    "load_plate",
    "open_plate",
    "plate_states",
    "read_field",
    "read_label",
    "read_label_table",
    "read_plate_map",
    "read_plate_record",
    "treatment_class",
]
