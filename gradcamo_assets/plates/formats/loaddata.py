"""Read CellProfiler LoadData tables: a row a field (and z), and ``FileName_`` and ``PathName_`` columns a channel.

Columns may begin with ``Image_``, as in CellProfiler's manual, and ``URL_`` columns may give name and path together.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from gradcamo_assets.errors import PlateError, one_line
from gradcamo_assets.plates.formats.files import list_names
from gradcamo_assets.plates.formats.planes import MAX_PLANES, Export, build_export, well_from_indices
from gradcamo_assets.plates.image_layout import to_micrometres
from gradcamo_assets.plates.omezarr import plate_name_of

INDEX = re.compile(r"(?i).*\.csv")
"""The name of a file that may be a LoadData table."""
_MAX_COLUMNS, _MAX_HEADER_BYTES, _MAX_PATH_BYTES = 10_000, 2**20, 4096
_WELL = ("well", "wellposition", "cpdwellposition")
_SITE = ("site", "field", "fieldid", "fieldindex")
_Z = ("planez", "z", "planeid", "zindex", "zslice")
_TIME = ("t", "time", "timepoint", "timepointid")
_REMEDY = "Write it in the format of CellProfiler's LoadData module."


def has_table(folder: Path) -> bool:
    """Whether a CSV in the folder has a column ``FileName_<channel>``."""
    try:
        return bool(_find_tables(folder))
    except PlateError:
        return True
    except OSError:
        return False


def read(folder: Path) -> Export:
    """Read the first LoadData table in the folder, by name; ``problems`` mentions any others.

    Channels are the columns that name TIFF or PNG files (not illumination functions), without a leading ``Orig``. Paths
    may come from another machine: the longest suffix that exists inside the folder is used.
    """
    if not (tables := _find_tables(folder)):
        raise PlateError("there is no CSV file with a column FileName_<channel>", _REMEDY, path=folder)
    path, *others = tables
    try:
        with path.open("rb") as file:
            separator = _find_separator(_decode_header(file.readline(_MAX_HEADER_BYTES)))
        table = pl.read_csv(
            path, infer_schema=False, encoding="utf8-lossy", truncate_ragged_lines=True, separator=separator
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise PlateError(f"the table cannot be read: {one_line(error)}", _REMEDY, path=path) from error
    table = _with_standard_columns(table.select(pl.all().str.strip_chars()))
    if "Metadata_Plate" in table.columns and table["Metadata_Plate"].n_unique() > 1:
        table = table.filter(pl.col("Metadata_Plate").is_in([folder.name, plate_name_of(folder)]))
        if table.is_empty():
            problem = "its Metadata_Plate names several plates, none of them like the folder"
            raise PlateError(problem, "Name the folder like one of the plates.", path=path)
    image = pl.selectors.starts_with("FileName_")
    planes = table.select(image.str.contains(r"(?i)\.(tiff?|png)$").any()).transpose(include_header=True)
    channels = [str(name).removeprefix("FileName_") for name, is_plane in planes.iter_rows() if is_plane]
    if not channels:
        example = next(iter(table.select(image.drop_nulls().first()).row(0)), None) if table.height else None
        problem = f"it names no TIFF or PNG file{f', but for example {example}' if example else ''}"
        raise PlateError(problem, "Name TIFF or PNG files in the columns FileName_<channel>.", path=path)
    if not 0 < (count := len(channels) * table.height) <= MAX_PLANES:
        raise PlateError(f"it names {count} files", f"There must be 1 to {MAX_PLANES}.", path=path)
    site, z, time = (_first_column(table, names) for names in (_SITE, _Z, _TIME))
    if time is not None and table[time].n_unique() > 1:
        problem = f"it has {table[time].n_unique()} time points, expected 1"
        raise PlateError(problem, "Keep one time point of the plate.", path=path)
    table = table.with_columns(
        _well_column(table, path).alias("well"),
        (pl.col(site) if site else pl.lit("1")).fill_null("1").alias("site"),
        (pl.col(z) if z else pl.lit("0")).cast(pl.Float64, strict=False).alias("z"),
    )
    if z and not table["z"].is_finite().fill_null(False).all():
        raise PlateError(f"{z} contains values that are not numbers", "Give a number for every row.", path=path)
    parts = [_channel_rows(table, folder, name).with_columns(channel=pl.lit(i)) for i, name in enumerate(channels)]
    problems = [f"{path.name} was read, {', '.join(other.name for other in others)} ignored"] if others else []
    labels = [name.removeprefix("Orig") or name for name in channels]
    return build_export(
        folder,
        pl.concat(parts),
        labels,
        format="LoadData",
        source=path.name,
        voxel_size=(None, *_pixel_size(table)),
        problems=problems,
    )


def _find_tables(folder: Path) -> list[Path]:
    tables = []
    for path in [folder / name for name in list_names(folder) if INDEX.fullmatch(name)][:20]:
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            header = _decode_header(file.readline(_MAX_HEADER_BYTES))
        if re.search('(^|[,;\t]) *"?(Image_)?(FileName|URL)_', header):
            if header.count(_find_separator(header)) >= _MAX_COLUMNS or len(header) >= _MAX_HEADER_BYTES:
                raise PlateError(f"it has more than {_MAX_COLUMNS} columns", "Remove feature columns.", path=path)
            tables.append(path)
    return tables


def _decode_header(line: bytes) -> str:
    return line.decode("utf-8-sig", "replace")


def _find_separator(header: str) -> str:
    return max(",;\t", key=header.count)


def _with_standard_columns(table: pl.DataFrame) -> pl.DataFrame:
    """Remove a leading ``Image_``, give metadata of every channel the plain name, and split and decode URLs."""
    columns: dict[str, pl.Expr] = {}
    for original in table.columns:
        name = original.removeprefix("Image_")
        columns.setdefault(name, pl.col(original))
        # For example Image_Metadata_Well_DAPI.
        if match := re.fullmatch("(Metadata_(?:Plate|Well|Site))_.+", name):
            columns.setdefault(match[1], pl.col(original))
    table = table.select(**columns)
    for url in [name for name in table.columns if name.startswith("URL_")]:
        channel = url.removeprefix("URL_")
        path = pl.col(url).str.extract("^(?:.*/)?([^/]*)$", 1), pl.col(url).str.extract("^(.*)/[^/]*$", 1)
        if f"FileName_{channel}" not in table.columns:
            unquoted = [part.map_elements(unquote, return_dtype=pl.String) for part in path]
            table = table.with_columns(
                unquoted[0].alias(f"FileName_{channel}"), unquoted[1].alias(f"PathName_{channel}")
            )
    return table


def _first_column(table: pl.DataFrame, names: tuple[str, ...]) -> str | None:
    """The first column ``Metadata_<name>``, in small letters and without underscores."""
    spelled = {name.lower().replace("_", ""): name for name in reversed(table.columns)}
    return next((spelled[f"metadata{name}"] for name in names if f"metadata{name}" in spelled), None)


def _pixel_size(table: pl.DataFrame) -> list[float | None]:
    """(y, x) in micrometres from the columns in metres that pe2loaddata writes; None without them."""
    columns = [f"Metadata_ImageResolution{axis}" for axis in "YX"]
    return [to_micrometres(table[name][0], "m") if name in table.columns else None for name in columns]


def _well_column(table: pl.DataFrame, path: Path) -> pl.Series:
    if (well := _first_column(table, _WELL)) is not None:
        names = table[well].fill_null("")
        # Harmony's spelling, r01c01.
        indices = {name: re.fullmatch("[rR]([0-9]{1,2})[cC]([0-9]{1,2})", name) for name in names.unique()}
        return names.replace({name: well_from_indices(*match.groups()) for name, match in indices.items() if match})
    row, column = "Metadata_Row", _first_column(table, ("col", "column"))
    if row not in table.columns or column is None:
        raise PlateError("it has neither Metadata_Well nor Metadata_Row and Metadata_Col", _REMEDY, path=path)
    wells = [well_from_indices(row, column) for row, column in table.select(row, column).iter_rows()]
    return pl.Series(wells, dtype=pl.String)


def _channel_rows(table: pl.DataFrame, folder: Path, channel: str) -> pl.DataFrame:
    """The planes of one channel: well, site, z, page and file."""
    file, path = f"FileName_{channel}", f"PathName_{channel}"
    page = next((f"{kind}_{channel}" for kind in ("Frame", "Series") if f"{kind}_{channel}" in table.columns), None)
    files = table.select(
        "well", "site", "z", pl.col(file).alias("name"),
        (pl.col(path) if path in table.columns else pl.lit("")).fill_null("").alias("path"),
        (pl.col(page) if page else pl.lit("0")).fill_null("0").cast(pl.Int32, strict=False).alias("page"),
    )  # fmt: skip
    if files["page"].null_count() or files["page"].min() < 0:  # type: ignore[operator]
        raise PlateError(f"{page} contains values that are not page numbers", "Give page numbers from 0.")
    if (files["path"].str.len_bytes() > _MAX_PATH_BYTES).any():
        raise PlateError(f"{path} contains a path of more than {_MAX_PATH_BYTES} bytes", _REMEDY)
    examples = files.drop_nulls("name").unique("path", keep="first").select("path", "name")
    local_folders = {path: _find_local_folder(folder, path, name) for path, name in examples.iter_rows()}
    local_folder = pl.col("path").replace_strict(local_folders, default="", return_dtype=pl.String)
    return files.select("well", "site", "z", "page", (local_folder + pl.col("name")).alias("file"))


def _find_local_folder(folder: Path, path: str, name: str) -> str:
    """The longest suffix of a foreign path that exists inside ``folder``, if possible with the file; ends with '/'."""
    if path.startswith("file:"):
        path = unquote(path)
    parts = [part for part in re.split(r"[/\\]", path.replace("\0", "")) if part not in ("", ".")]
    while ".." in parts:
        parts = parts[parts.index("..") + 1 :]
    suffixes = ["/".join([*parts[start:], ""]) for start in range(max(0, len(parts) - 50), len(parts) + 1)]
    existing = [suffix for suffix in suffixes if (folder / suffix).is_dir()]
    with_file = (suffix for suffix in existing if "\0" not in name and (folder / suffix / name).is_file())
    return next(with_file, existing[0])
