"""Where each field's results lie, and what they were made from."""

from __future__ import annotations

from pathlib import Path

from gradcamo_assets.common import GradcamoError, Home
from gradcamo_assets.common.provenance import digest
from gradcamo_assets.plates import Field, Plate, known_plate


def mask_folder(home: Home, field: Field) -> Path:
    """Masks of one field."""
    return home.masks / field.plate / f"{field.well}_s{field.site}"


def crop_folder(home: Home, plate: str, well: str, site: int) -> Path:
    """Crops of one field."""
    return home.crops / plate / f"{well}_s{site}.zarr"


def plate_record(home: Home, plate: str) -> dict:
    """What ingestion recorded of a plate: source, signature, channels, voxel size, statistics.

    Raises:
        GradcamoError: if the plate was never ingested.
    """
    record = known_plate(home.plates, plate)
    if record is None:
        raise GradcamoError("this plate was never ingested", "Materialise plate_images for it.", plate=plate)
    return record


def field_signature(plate: Plate, field: Field) -> str:
    """Digest of a field's files by relative name, size and time, and of the light they are read under: cheap, and new
    whenever the pixels that are read are."""
    folder = plate.path / field.path
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and "labels" not in path.relative_to(folder).parts
    )
    inputs: list[object] = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    if plate.illumination is not None:
        inputs.append((plate.illumination.read_bytes().hex(), plate.camera_offset))
    return digest(inputs)
