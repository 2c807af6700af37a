"""Find and load segmentation networks: the compact network, Cellpose's own, weights from a path, or registered ones.

Each network is wrapped in a ``CellposeModel``, whose tiling and dynamics ``segment`` uses.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any

from gradcamo_assets.errors import SegmentationError
from gradcamo_assets.importing import IMPORT_PATH, import_function

SHIPPED_WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the compact network's weights."""

CELLPOSE_NETWORKS = ("cpsam_v2", "cpsam", "cpdino", "cpdino-vitb")
"""Names of Cellpose's own networks. Their weights (over 1 GB) are never downloaded automatically."""

KINDS = ("cells", "nuclei")

REMEDY = (
    f"Use 'compact', one of {', '.join(CELLPOSE_NETWORKS)}, the path of existing weights, or 'module:function' of an "
    "installed module"
)


def check_network_name(network: str) -> str:
    """Return the name if it is 'compact', one of Cellpose's names, an existing path, or an import path.

    Raises:
        ValueError: any other name.
    """
    if network in ("compact", *CELLPOSE_NETWORKS) or IMPORT_PATH.fullmatch(network) or Path(network).exists():
        return network
    raise ValueError(f"unknown network {network!r}: {REMEDY}")


def find_weights(network: str) -> dict[str, Path]:
    """The weights file for cells and for nuclei; empty for a registered network, which has its own weights.

    Raises:
        SegmentationError: the weights do not exist, or the registered network cannot be import_function.
    """
    if network in CELLPOSE_NETWORKS:
        from cellpose.models import MODEL_DIR

        path = Path(MODEL_DIR) / network
        if not path.is_file():
            remedy = (
                'Download them once (over 1 GB) with: python -c "from cellpose.models import cache_model_path; '
                f"cache_model_path('{network}')\", or use the network 'compact'."
            )
            raise SegmentationError(f"the weights of {network} are not installed", remedy, path=path)
        return dict.fromkeys(KINDS, path)
    if network != "compact" and not Path(network).exists():
        import_function(network, "network", f"{REMEDY}.", SegmentationError)
        return {}
    location = SHIPPED_WEIGHTS if network == "compact" else Path(network)
    files = {kind: location if location.is_file() else location / f"{kind}.safetensors" for kind in KINDS}
    for path in files.values():
        if not path.is_file():
            raise SegmentationError("the weights file is missing", "Train it, or reinstall the package.", path=path)
    return files


def file_digest(path: Path) -> str:
    """First 16 hex digits of a file's SHA-256."""
    with path.open("rb") as file:  # Not read at once: weights may exceed 1 GB.
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def state_digest(network: Any) -> str:
    """First 16 hex digits of the SHA-256 over a network's weights, in order of their names."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_engines(network: str, weights: dict[str, Path]) -> dict[str, Any]:
    """Load a ``CellposeModel`` for cells and for nuclei, on the GPU if there is one.

    Raises:
        SegmentationError: the weights cannot be loaded, or a registered network has the wrong output.
    """
    import torch
    from cellpose.models import CellposeModel

    from gradcamo_assets.segmentation.compact_network import load_network, use_openvino

    # Cellpose warns about disabled stitching for every stack, and about every slice without cells.
    for part in ("models", "dynamics"):
        logging.getLogger(f"cellpose.{part}").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not weights:
        return {kind: _wrap(_load_registered(network, kind, device), device, "registered", network) for kind in KINDS}
    if all(path.suffix == ".safetensors" for path in weights.values()):
        networks = {kind: load_network(kind, path, device) for kind, path in weights.items()}
        if device.type == "cpu":
            for compact in networks.values():
                use_openvino(compact)
        return {kind: _wrap(net, device, "compact", str(weights[kind])) for kind, net in networks.items()}
    path = weights["cells"]
    try:
        model = CellposeModel(pretrained_model=str(path), device=device, use_bfloat16=device.type == "cuda")
    except Exception as error:
        problem = f"Cellpose cannot load these weights: {error}"
        raise SegmentationError(problem, "Use weights of Cellpose 4.", path=path) from error
    return dict.fromkeys(KINDS, model)


def _wrap(network: Any, device: Any, backbone: str, source: str) -> Any:
    from cellpose.models import CellposeModel

    # The constructor can only load Cellpose's own networks; eval needs only these five attributes.
    engine = CellposeModel.__new__(CellposeModel)
    engine.net, engine.device, engine.gpu = network, device, device.type == "cuda"
    engine.backbone, engine.pretrained_model = backbone, source
    return engine


def _load_registered(name: str, kind: str, device: Any) -> Any:
    """Load a user's network and check the shapes of its outputs."""
    import torch

    network = import_function(name, "network", f"{REMEDY}.", SegmentationError)(kind)
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
        problem = f"the network {name!r} has the wrong output, shapes {shapes}"
        remedy = "Return a torch module that maps (B, 3, Y, X) to flows and logit (B, 3, Y, X) and a style (B, 256)."
        raise SegmentationError(problem, remedy)
    return network
