"""Tiny exports of every format, written from arrays. ``pixels``: {(well, site): (C, Z, Y, X) uint16}."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import tifffile
from numpy.typing import NDArray

from gradcamo_assets.names import normalise_well_name, row_index

Pixels = Mapping[tuple[str, int], NDArray[np.uint16]]
CHANNELS = ("DNA", "ER")
_V5 = "http://www.perkinelmer.com/PEHH/HarmonyV5"
_V6 = "http://www.perkinelmer.com/PEHH/HarmonyV6"
_BTS = "http://www.yokogawa.co.jp/BTS/BTSSchema/1.0"


def some_pixels(
    wells: Sequence[str] = ("B02", "C11"),
    sites: int = 2,
    shape: tuple[int, int, int, int] = (2, 3, 5, 7),
    seed: int = 0,
) -> dict[tuple[str, int], NDArray[np.uint16]]:
    """Noise, so that no plane equals another."""
    noise = np.random.default_rng(seed)
    fields = [(well, site) for well in wells for site in range(1, sites + 1)]
    return {field: noise.integers(0, 65536, shape, dtype=np.uint16) for field in fields}


def write_metaxpress(
    folder: Path, pixels: Pixels, channels: Sequence[str] = CHANNELS, *, z_step: float = 2.0, pixel: float = 0.65,
    time_point: bool = True, projection: bool = False, guid: bool = False, waves: Sequence[str] = (),
    wells: Sequence[str] = (), htd: str = "",
) -> Path:  # fmt: skip
    """``waves`` and ``wells``: further ones in the HTD, without files; ``htd``: additional last lines."""
    base = folder / "TimePoint_1" if time_point else folder
    base.mkdir(parents=True, exist_ok=True)
    depth = next(iter(pixels.values())).shape[1]
    tail = "0F0E1A2B-1234-4321-ABCD-0123456789AB" if guid else ""
    selected = {well for well, _ in pixels} | set(wells)
    for (well, site), stack in pixels.items():
        for c, channel in enumerate(stack):
            levels = dict(enumerate(channel, start=1))
            if projection:
                levels[0] = channel.max(axis=0)
            for z, plane in levels.items():
                place = base / f"ZStep_{z}" if depth > 1 else base
                place.mkdir(exist_ok=True)
                name = f"plate_A1_{well}_s{site}_w{c + 1}"
                step = f"<prop id='Z Projection Step Size' type='float' value='{z_step}'/>" if z == 0 else ""
                description = (
                    f"<MetaData><PlaneInfo><prop id='spatial-calibration-x' type='float' value='{pixel}'/>"
                    f"<prop id='spatial-calibration-y' type='float' value='{pixel}'/>"
                    "<prop id='spatial-calibration-units' type='string' value='um'/>"
                    f"<prop id='z-position' type='float' value='{100 + z * z_step}'/>"
                    f"<custom-prop id='_MagSetting_' type='string' value='40X'/>{step}</PlaneInfo></MetaData>"
                )
                tifffile.imwrite(
                    place / f"{name}{tail}.tif", plane, description=description, metadata=None, software="MetaSeries"
                )
                tifffile.imwrite(place / f"{name}_thumb{tail}.tif", plane[::2, ::2])
    sites = max(site for _, site in pixels)
    names = [*channels, *waves]
    rows = [
        f'"WellsSelection{r}", ' + ", ".join(str(f"{row}{c:02d}" in selected).upper() for c in range(1, 13))
        for r, row in enumerate("ABCDEFGH", start=1)
    ]  # fmt: skip
    lines = [
        '"HTSInfoFile", Version 1.0', '"Description", "test"', '"TimePoints", 1',
        f'"ZSeries", {str(depth > 1).upper()}',
        f'"ZSteps", {depth}', f'"ZProjection", {str(projection).upper()}', '"XWells", 12', '"YWells", 8', *rows,
        '"Sites", TRUE', f'"XSites", {sites}', '"YSites", 1', f'"SiteSelection1", {", ".join(["TRUE"] * sites)}',
        '"Waves", TRUE', f'"NWavelengths", {len(names)}',
        *(f'"WaveName{i}", "{name}"' for i, name in enumerate(names, start=1)), *([htd] if htd else []), '"EndFile"',
    ]  # fmt: skip
    (folder / "plate.HTD").write_bytes(("\r\n".join(lines) + "\r\n").encode("latin-1"))
    return folder


def write_operetta(
    folder: Path, pixels: Pixels, channels: Sequence[str] = CHANNELS, *, version: str = "V6", z_step: float = 2.0,
    pixel: float = 0.65, index: str = "Images/Index.xml", states: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """``states``: states of images other than Ok, by URL."""
    path = folder / index
    path.parent.mkdir(parents=True, exist_ok=True)
    images: list[str] = []
    for (well, site), stack in pixels.items():
        row, column = row_index(well[0]) + 1, int(well[1:])
        for c, z in np.ndindex(stack.shape[:2]):
            url = f"r{row:02d}c{column:02d}f{site:02d}p{z + 1:02d}-ch{c + 1}sk1fk1fl1.tiff"
            tifffile.imwrite(path.parent / url, stack[c, z])
            images.append(
                f"<Image Version='1'><id>{url}</id><State>{(states or {}).get(url, 'Ok')}</State><URL>{url}</URL>"
                f"<Row>{row}</Row><Col>{column}</Col><FieldID>{site}</FieldID><PlaneID>{z + 1}</PlaneID>"
                f"<TimepointID>0</TimepointID><ChannelID>{c + 1}</ChannelID>"
                + (_harmony_channel(channels[c], pixel) if version == "V5" else "")
                + f"<PositionZ Unit='m'>{(z - 1) * z_step * 1e-6}</PositionZ>"
                f"<AbsPositionZ Unit='m'>{0.135 + z * z_step * 1e-6}</AbsPositionZ></Image>"
            )
    entries = [
        f"<Entry ChannelID='{c}'>{_harmony_channel(name, pixel)}</Entry>" for c, name in enumerate(channels, start=1)
    ]
    flat = [
        f"<Entry ChannelID='{c + 1}'><FlatfieldProfile>{{}}</FlatfieldProfile></Entry>" for c in range(len(channels))
    ]
    described = f"<Map>{''.join(entries)}</Map>" if version != "V5" else ""
    maps = f"<Maps><Map>{''.join(flat)}</Map>{described}</Maps>"
    path.write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<EvaluationInputData xmlns="{_V5 if version == "V5" else _V6}">'
        "<InstrumentType>Phenix</InstrumentType><Plates><Plate><PlateID>p</PlateID></Plate></Plates>"
        f"<Wells><Well><id>0202</id><Row>2</Row><Col>2</Col><Image id='0202K1F1P1R1'/></Well></Wells>"
        f"{maps}<Images>{''.join(images)}</Images></EvaluationInputData>",
        encoding="utf-8",
    )
    return folder


def _harmony_channel(name: str, pixel: float) -> str:
    return (
        f"<ChannelName>{name}</ChannelName><ImageResolutionX Unit='m'>{pixel * 1e-6}</ImageResolutionX>"
        f"<ImageResolutionY Unit='m'>{pixel * 1e-6}</ImageResolutionY>"
        "<ObjectiveMagnification>40</ObjectiveMagnification>"
    )


def write_loaddata(
    folder: Path, pixels: Pixels, channels: Sequence[str] = CHANNELS, *, path: str = "/cluster/batch/plate/images",
    name: str = "load_data.csv",
) -> Path:  # fmt: skip
    """Files lie in ``images/``; ``path`` is their folder in the table."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for (well, site), stack in pixels.items():
        for z in range(stack.shape[1]):
            row = {"Metadata_Plate": "p", "Metadata_Well": well, "Metadata_Site": site, "Metadata_PlaneZ": z + 1}
            for c, channel in enumerate(channels):
                file = f"{well}-{site}-{z}-{c}.tiff"
                tifffile.imwrite(folder / "images" / file, stack[c, z])
                row |= {f"FileName_Orig{channel}": file, f"PathName_Orig{channel}": path}
                row |= {f"FileName_Illum{channel}": f"p_Illum{channel}.npy", f"PathName_Illum{channel}": "/illum"}
            rows.append(row)
    pl.DataFrame(rows).write_csv(folder / name)
    return folder


def write_pattern(
    folder: Path, pixels: Pixels, channels: Sequence[str] = CHANNELS, *, pages: str = "",
    voxel_size: str = "[2.0, 0.65, 0.65]",
) -> Path:  # fmt: skip
    """One folder a well. ``pages``: empty for one plane a file, ``Z`` for one stack, ``OME`` for all channels and z."""
    groups = {"": r"_(?P<channel>w\d)_z(?P<z>\d+)", "Z": r"_(?P<channel>w\d)", "OME": ""}[pages]
    for (well, site), stack in pixels.items():
        (folder / well).mkdir(parents=True, exist_ok=True)
        at = f"{well}/f{site}"
        if pages == "OME":
            metadata = {
                "axes": "CZYX", "Channel": {"Name": list(channels)}, "PhysicalSizeX": 0.65, "PhysicalSizeY": 650,
                "PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 2.0,
            }  # fmt: skip
            tifffile.imwrite(folder / f"{at}.ome.tif", stack, metadata=metadata, ome=True, photometric="minisblack")
            continue
        for c, z in np.ndindex(stack.shape[0], 1 if pages else stack.shape[1]):
            plane = stack[c] if pages else stack[c, z]
            tifffile.imwrite(folder / f"{at}_w{c + 1}{'' if pages else f'_z{z}'}.tif", plane, photometric="minisblack")
    names = ", ".join(f'w{c} = "{name}"' for c, name in enumerate(channels, start=1))
    folder.with_name(f"{folder.name}.toml").write_text(
        rf"pattern = '(?P<well>[A-P]\d\d)/f(?P<site>\d+){groups}(?:\.ome)?\.tif'"
        + (f"\nvoxel_size = {voxel_size}" if voxel_size else "")
        + (f"\nchannels = {{{names}}}" if pages != "OME" else "")
    )
    return folder


def write_cellvoyager(
    folder: Path,
    pixels: Pixels,
    *,
    cq3k: bool = False,
    z_step: float = 2.0,
    pixel: float = 0.65,
    projection: bool = False,
) -> Path:
    """CellVoyager or CQ3K, the latter optionally with maximum projections."""
    folder.mkdir(parents=True, exist_ok=True)
    records: list[str] = []
    for (well, site), stack in pixels.items():
        row, column = row_index(well[0]) + 1, int(well[1:])
        for c, z in np.ndindex(stack.shape[0], stack.shape[1] + projection):
            is_projection = z == stack.shape[1]
            file = f"p_{well}_T0001F{site:03d}L01A01Z{z + 1:02d}C{c + 1:02d}.tif"
            tifffile.imwrite(folder / file, stack[c].max(axis=0) if is_projection else stack[c, z])
            records.append(
                f"<bts:MeasurementRecord bts:Type='IMG' bts:Time='t' bts:Column='{column}' bts:Row='{row}' "
                f"bts:FieldIndex='{site}' bts:TimePoint='1' bts:TimelineIndex='1' bts:X='{site}' bts:Y='0' "
                f"bts:ZIndex='{1 if is_projection else z + 1}' bts:ActionIndex='1' bts:Action='3D' "
                f"bts:Z='{z * z_step}' bts:Ch='{c + 1}'"
                f"{' bts:ZImageProcessing=' + repr('Max') if is_projection else ''}>{file}</bts:MeasurementRecord>"
            )
    (folder / "MeasurementData.mlf").write_text(
        f"<?xml version='1.0' encoding='utf-8'?><bts:MeasurementData xmlns:bts='{_BTS}' bts:Version='1.0'>"
        f"{''.join(records)}</bts:MeasurementData>"
    )
    _, _, y, x = (channels := next(iter(pixels.values()))).shape
    cq = (
        "bts:ObjectiveMagnificationRatio='1' bts:OriginalHorizontalPixels='9' bts:OriginalVerticalPixels='9' "
        if cq3k
        else ""
    )
    details = [
        f"<bts:MeasurementChannel bts:Ch='{c + 1}' bts:HorizontalPixelDimension='{pixel}' "
        f"bts:VerticalPixelDimension='{pixel}' "
        f"bts:CameraNumber='1' bts:InputBitDepth='16' bts:InputLevel='65535' bts:HorizontalPixels='{x}' {cq}"
        f"bts:VerticalPixels='{y}' bts:FilterWheelPosition='1' bts:FilterPosition='1' bts:ShadingCorrectionSource=''/>"
        for c in range(len(channels))
    ]
    (folder / "MeasurementDetail.mrf").write_text(
        f"<?xml version='1.0' encoding='utf-8'?><bts:MeasurementDetail xmlns:bts='{_BTS}' bts:Version='1.0' "
        "bts:OperatorName='o' bts:Title='t' bts:Application='a' bts:BeginTime='b' bts:EndTime='e' "
        "bts:MeasurementSettingFileName='s' bts:ColumnCount='12' bts:RowCount='8' bts:TimePointCount='1' "
        f"bts:FieldCount='2' bts:ZCount='3' bts:TargetSystem='t' bts:ReleaseNumber='r' "
        f"{'bts:Status=' + repr('ok') if cq3k else ''}>"
        "<bts:MeasurementSamplePlate bts:Name='n' bts:WellPlateFileName='w' bts:WellPlateProductFileName='p'/>"
        f"{''.join(details)}</bts:MeasurementDetail>"
    )
    return folder


def write_scanr(
    folder: Path,
    pixels: Pixels,
    channels: Sequence[str] = CHANNELS,
    *,
    z_step: float = 2.0,
    pixel: float = 0.65,
    columns: int = 12,
) -> Path:
    """``columns``: of the plate, which ScanR does not record; 12 for 96 wells."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    images: list[str] = []
    for (well, site), stack in pixels.items():
        number = row_index(well[0]) * columns + int(well[1:])
        planes, blocks = [], []
        for c, z in np.ndindex(stack.shape[:2]):
            file = f"{well}--W{number:05d}--P{site:05d}--Z{z:05d}--T00000--{channels[c]}.tif"
            tifffile.imwrite(folder / "data" / file, stack[c, z])
            planes.append(
                f"<Plane TheZ='{z}' TheT='0' TheC='{c}' PositionX='1' PositionY='1' PositionZ='{z * z_step}'/>"
            )
            uuid = f"urn:uuid:00000000-0000-0000-0000-{len(images) * 1000 + c * 100 + z:012d}"
            blocks.append(
                f"<TiffData FirstZ='{z}' FirstT='0' FirstC='{c}' IFD='0' PlaneCount='1'>"
                f"<UUID FileName='{file}'>{uuid}</UUID></TiffData>"
            )
        c, z, y, x = stack.shape
        names = "".join(
            f"<Channel ID='Channel:{i}' Name='{name}' SamplesPerPixel='1'/>" for i, name in enumerate(channels)
        )
        images.append(
            f"<Image ID='Image:W{number}P{site}'><Pixels ID='Pixels:{number}{site:03d}' DimensionOrder='XYZCT' "
            f"Type='uint16' SizeX='{x}' SizeY='{y}' SizeZ='{z}' SizeC='{c}' SizeT='1' PhysicalSizeX='{pixel}' "
            f"PhysicalSizeY='{pixel}'>"
            f"{names}{''.join(blocks)}{''.join(planes)}</Pixels></Image>"
        )
    (folder / "data" / "metadata.ome.xml").write_text(
        "<?xml version='1.0' encoding='UTF-8'?><OME xmlns='http://www.openmicroscopy.org/Schemas/OME/2016-06'>"
        f"{''.join(images)}</OME>"
    )
    return folder


def write_hcs_ai(
    folder: Path, pixels: Pixels, channels: Sequence[str] = CHANNELS, *, z_step: float = 2.0, pixel: float = 0.65
) -> Path:
    """ImageXpress HCS.ai: a JSON and a table in ``experiment_z_stack``."""
    place = folder / "experiment_z_stack"
    (place / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for (well, site), stack in pixels.items():
        for c, z in np.ndindex(stack.shape[:2]):
            file = f"{normalise_well_name(well)}_{site}_{c}_{z}.tif"
            tifffile.imwrite(place / "images" / file, stack[c, z])
            rows.append({
                "Row": row_index(well[0]) + 1, "Column": int(well[1:]), "Field": site, "Wavelength": c, "Timepoint": 0,
                "ZIndex": z, "ImageSizeXPx": stack.shape[3], "ImageSizeYPx": stack.shape[2],
                "ImageSubFolderPath": "images", "ImageFileName": file,
                "FieldOffsetPointX": 0.0, "FieldOffsetPointY": 0.0,
            })  # fmt: skip
    pl.DataFrame(rows).write_csv(place / "images.csv")
    depth = next(iter(pixels.values())).shape[1]
    waves = [
        {"Index": c, "ImagingMode": "WF", "ZSlice": depth, "ZStep": z_step,
         "EmissionFilter": {"Name": name, "Wavelength": 450 + c}, "ExcitationFilter": {"Name": name, "Wavelength": 400}}
        for c, name in enumerate(channels)
    ]  # fmt: skip
    protocol = {
        "Camera": {"Size": {"Width": 7, "Height": 5}, "Binning": "1"}, "Wavelengths": waves,
        "ObjectiveCalibration": {"Unit": "um", "ObjectiveName": "40x", "PixelWidth": pixel, "PixelHeight": pixel},
        "PlateMap": {
            "ZDimensionParameters": {"Enabled": True, "Step": z_step, "NumberOfSlices": depth, "Variable": False},
            "TimeSchedule": {"Enabled": False, "NumberOfTimepoints": 1, "Times": [{"Ms": 0}], "Variable": False},
        },
    }  # fmt: skip
    stack_of = {
        "PlateId": "p", "Uuid": "u", "ImageFormat": "TIFF", "LargeImage": False,
        "AutoLeadAcquisitionProtocol": protocol,
    }  # fmt: skip
    (place / "images.jdce").write_text(json.dumps({"Version": "1", "ImageStack": stack_of}))
    return folder
