"""Finding and loading the networks behind Cellpose's engine: shipped, Cellpose's own, from a path, or registered.

Here: what a network's name means, its digests, and a ``CellposeModel`` around it. Not here: running it (``segment``),
the compact network itself (``compact``).
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any

from gradcamo_assets.errors import SegmentationError
from gradcamo_assets.importing import IMPORT_PATH, import_function

SHIPPED = Path(__file__).parent / "weights"
"""Folder of the compact network's weights."""

BUILT_IN = ("cpsam_v2", "cpsam", "cpdino", "cpdino-vitb")
"""Cellpose's own networks, by name; the weights of over 1 GB are never downloaded here."""

KINDS = ("cells", "nuclei")

REMEDY = (
    f"Use 'compact', one of {', '.join(BUILT_IN)}, the path of existing weights, or 'module:function' of an installed "
    "module"
)


def known(network: str) -> str:
    """The name itself if it means anything: a name of ours or Cellpose's, an existing path, or an import path.

    Raises:
        ValueError: for any other.
    """
    if network in ("compact", *BUILT_IN) or IMPORT_PATH.fullmatch(network) or Path(network).exists():
        return network
    raise ValueError(f"there is no network {network!r}: {REMEDY}")


def find_weights(network: str) -> dict[str, Path]:
    """The weights file of each kind; nothing for a registered network, which brings its own.

    Raises:
        SegmentationError: where it is absent, or the registered network cannot be imported.
    """
    if network in BUILT_IN:
        from cellpose.models import MODEL_DIR

        path = Path(MODEL_DIR) / network
        if not path.is_file():
            remedy = (
                'Download them once (over 1 GB) with: python -c "from cellpose.models import cache_model_path; '
                f"cache_model_path('{network}')\", or use the network 'compact'."
            )
            raise SegmentationError(f"the weights of {network} are not on this machine", remedy, path=path)
        return dict.fromkeys(KINDS, path)
    if network != "compact" and not Path(network).exists():
        import_function(network, "network", f"{REMEDY}.", SegmentationError)
        return {}
    given = SHIPPED if network == "compact" else Path(network)
    found = {which: given if given.is_file() else given / f"{which}.safetensors" for which in KINDS}
    for path in found.values():
        if not path.is_file():
            raise SegmentationError("weights are missing", "Train them, or install the package anew.", path=path)
    return found


def file_digest(path: Path) -> str:
    """First 16 hex digits of a file's SHA-256."""
    with path.open("rb") as file:  # Up to 1 GB.
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def state_digest(network: Any) -> str:
    """First 16 hex digits of the SHA-256 over a network's weights, by their names."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_engines(network: str, weights: dict[str, Path]) -> dict[str, Any]:
    """A ``CellposeModel`` for each kind, on the GPU where there is one.

    Raises:
        SegmentationError: where the weights do not load, or a registered network breaks the contract.
    """
    import torch
    from cellpose.models import CellposeModel

    from gradcamo_assets.segmentation.compact_network import load_network

    # Cellpose warns at every stack that its own stitching is off, and at every slice without cells.
    for part in ("models", "dynamics"):
        logging.getLogger(f"cellpose.{part}").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not weights:
        return {which: _engine(_registered(network, which, device), device, "registered", network) for which in KINDS}
    if all(path.suffix == ".safetensors" for path in weights.values()):
        loaded = {which: load_network(which, path, device) for which, path in weights.items()}
        return {which: _engine(net, device, "compact", str(weights[which])) for which, net in loaded.items()}
    path = weights["cells"]
    try:
        model = CellposeModel(pretrained_model=str(path), device=device, use_bfloat16=device.type == "cuda")
    except Exception as error:
        problem = f"Cellpose cannot load these weights: {error}"
        raise SegmentationError(problem, "Give weights of Cellpose 4.", path=path) from error
    return dict.fromkeys(KINDS, model)


def _engine(network: Any, device: Any, backbone: str, source: str) -> Any:
    from cellpose.models import CellposeModel

    # The constructor only loads Cellpose's own networks; eval needs no more than these five attributes.
    engine = CellposeModel.__new__(CellposeModel)
    engine.net, engine.device, engine.gpu = network, device, device.type == "cuda"
    engine.backbone, engine.pretrained_model = backbone, source
    return engine


def _registered(name: str, which: str, device: Any) -> Any:
    """A user's network, asked once whether it answers as Cellpose's do."""
    import torch

    network = import_function(name, "network", f"{REMEDY}.", SegmentationError)(which)
    try:
        network = network.to(device).eval()
        network.device = device
        network.dtype = next((value.dtype for value in network.parameters()), torch.float32)
        with torch.inference_mode():
            output, style = network(torch.zeros((1, 3, 256, 256), device=device, dtype=network.dtype))[:2]
        shapes: tuple[Any, ...] = (tuple(output.shape), tuple(style.shape))
    except Exception as error:
        shapes = (f"{type(error).__name__}: {error}",)
    if shapes != ((1, 3, 256, 256), (1, 256)):
        problem = f"the network {name!r} does not keep Cellpose's contract: it answers {shapes}"
        remedy = "Return a torch module that turns (B, 3, Y, X) into flows and logit (B, 3, Y, X) and a style (B, 256)."
        raise SegmentationError(problem, remedy)
    return network
