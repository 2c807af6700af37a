"""Test the encoder's geometry, the registry, and the refusal of invalid bundles."""

from __future__ import annotations

import copy
import json
import math
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from gradcamo_assets.errors import BundleError
from gradcamo_assets.networks.bundle import BundleConfig, load_bundle, load_network, read_config, save_bundle
from gradcamo_assets.networks.checks import check_network
from gradcamo_assets.networks.efficientnet3d import EfficientNet3D, EvenStridedConv
from gradcamo_assets.networks.encoders import build_encoder, encoder_names
from gradcamo_assets.scoring.scorer import Scorer


@given(st.tuples(st.integers(1, 23), st.integers(8, 70), st.integers(8, 70)))
@settings(max_examples=15)
def test_any_crop_size_works_and_the_map_size_is_rounded_up(shape: tuple[int, int, int]) -> None:
    model = EfficientNet3D(3, 2).eval()
    with torch.inference_mode():
        maps = model.forward_features(torch.zeros(1, 3, *shape))
    assert maps.shape[2:] == tuple(-(-n // s) for n, s in zip(shape, (2, 8, 8), strict=True))


def test_a_map_voxel_lies_at_the_centre_of_its_footprint() -> None:
    """The centre of mass of an output's footprint equals its position under align_corners=False."""
    conv = nn.Sequential(*[EvenStridedConv(1, 1, (1, 3, 3), (1, 2, 2)) for _ in range(3)])
    for layer in conv:
        nn.init.ones_(layer.weight)
    x = torch.zeros(1, 1, 1, 64, 64, requires_grad=True)
    conv(x)[0, 0, 0, 4, 3].backward()
    assert x.grad is not None
    weight = x.grad[0, 0, 0]
    y, x_ = (torch.arange(64.0) + 0.5 for _ in range(2))
    assert float((weight.sum(1) * y).sum() / weight.sum()) == pytest.approx((4 + 0.5) * 8)
    assert float((weight.sum(0) * x_).sum() / weight.sum()) == pytest.approx((3 + 0.5) * 8)


@pytest.mark.parametrize(
    ("kernel", "stride", "groups"),
    [((1, 3, 3), (1, 2, 2), 1), ((3, 1, 1), (2, 1, 1), 6), ((3, 1, 1), (1, 1, 1), 6), ((1, 1, 1), (1, 1, 1), 1)],
)
def test_a_single_slice_is_convolved_as_a_stack_with_empty_slices_around_it(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], groups: int
) -> None:
    conv, x = EvenStridedConv(6, 6, kernel, stride, groups), torch.randn(2, 6, 1, 8, 10)
    total = [k - s for k, s in zip(conv.kernel_size, conv.stride, strict=True)]
    sides = [(part // 2, part - part // 2) for part in (total[0] + (stride[0] - 1), *total[1:])]
    padded = nn.functional.pad(x, [side for pair in reversed(sides) for side in pair])
    expected = nn.functional.conv3d(padded, conv.weight, None, stride, 0, 1, groups)
    torch.testing.assert_close(conv(x), expected)


CONVOLUTIONS = [
    ((1, 3, 3), (1, 2, 2), 1),
    ((1, 3, 3), (1, 1, 1), 6),
    ((1, 3, 3), (1, 2, 2), 6),
    ((3, 1, 1), (2, 1, 1), 6),
    ((3, 1, 1), (1, 1, 1), 6),
    ((3, 1, 1), (1, 1, 1), 1),
    ((1, 1, 1), (1, 1, 1), 1),
    ((3, 3, 3), (2, 2, 2), 1),
]
"""Kernel, stride and groups."""


def convolve_in_3d(conv: EvenStridedConv, x: Tensor) -> Tensor:
    """The definition: pad every axis to ceil(input / stride) outputs, the odd voxel last, and convolve in 3D."""
    sides: list[int] = []
    for n, k, s in zip(x.shape[:1:-1], conv.kernel_size[::-1], conv.stride[::-1], strict=True):
        total = k - s + (-n) % s
        sides += [total // 2, total - total // 2]
    return nn.functional.conv3d(nn.functional.pad(x, sides), conv.weight, conv.bias, conv.stride, 0, 1, conv.groups)


@given(
    st.tuples(st.integers(1, 7), st.integers(3, 11), st.integers(3, 11)),
    st.sampled_from(CONVOLUTIONS),
    st.sampled_from([torch.contiguous_format, torch.channels_last_3d]),
)
@settings(max_examples=40, deadline=None)
def test_a_convolution_and_its_gradients_equal_those_in_3d(
    shape: tuple[int, int, int], kind: tuple[Any, Any, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = EvenStridedConv(6, 6, *kind).double()
    x = torch.randn(2, 6, *shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    out, expected = conv(x), convolve_in_3d(conv, x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    chosen = torch.randn_like(out)
    for got, wanted in zip(
        torch.autograd.grad(out, (x, conv.weight), chosen),
        torch.autograd.grad(expected, (x, conv.weight), chosen),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(12, 32, 32), (5, 27, 30), (1, 24, 24)])
def test_the_network_trains_as_one_that_convolves_in_3d(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(dtype: torch.dtype, steps: int) -> EfficientNet3D:
        torch.manual_seed(0)
        model, images = EfficientNet3D(3, 4).to(dtype), torch.randn(6, 3, *shape).to(dtype)
        optimiser = torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(steps):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), torch.arange(6) % 4).backward()
            optimiser.step()
        return model

    fast = train(torch.float64, 1), train(torch.float32, 4)
    monkeypatch.setattr(EvenStridedConv, "forward", convolve_in_3d)
    # The reference computes in float64: in float32, oneDNN's 3D convolution is off by 3e-5 on some processors.
    slow = train(torch.float64, 1), train(torch.float64, 4)
    for ours, reference in zip(fast[0].parameters(), slow[0].parameters(), strict=True):
        assert ours.grad is not None and bool((ours.grad != 0).any())
        torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-10, atol=1e-10)
    for name, value in slow[1].state_dict().items():
        torch.testing.assert_close(fast[1].state_dict()[name].to(value.dtype), value, rtol=1e-5, atol=1e-5)


def test_feature_maps_keep_their_channels_last() -> None:
    layouts: list[tuple[int, ...]] = []
    model = EfficientNet3D(5, 4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.register_forward_hook(lambda _module, inputs, _output: layouts.append(inputs[0].stride()))
    model(torch.randn(2, 5, 4, 32, 32))
    assert layouts and all(stride[1] == 1 for stride in layouts)


@pytest.mark.parametrize("name", encoder_names())
def test_every_encoder_has_its_layer_and_returns_logits(name: str) -> None:
    model, layer = build_encoder(name, 4, 3)
    assert layer in dict(model.named_modules())
    with torch.inference_mode():
        assert model.eval()(torch.zeros(2, 4, 9, 40, 40)).shape == (2, 3)


def test_forward_is_the_head_on_the_mean_of_the_features() -> None:
    model = EfficientNet3D(5, 4).eval()
    x = torch.randn(2, 5, 6, 32, 32)
    with torch.inference_mode():
        by_hand = model.forward_features(x).mean((2, 3, 4)) @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(model(x), by_hand)


def tiny_encoder(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """Build a user's network."""
    return nn.Sequential(
        nn.Conv3d(in_channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, classes)
    ), "1"


def three_class_encoder(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """Build a network with three classes, whatever the argument."""
    return tiny_encoder(in_channels, 3)


def no_network(in_channels: int, classes: int) -> int:
    """Return a number instead of a network, as an import path of the wrong function does."""
    return in_channels + classes


def test_a_users_encoder_is_built_by_import_path() -> None:
    model, layer = build_encoder(f"{__name__}:tiny_encoder", 2, 3, modules=[__name__])
    assert isinstance(model, nn.Sequential)
    assert layer == "1"


@pytest.mark.parametrize(
    "name",
    [
        "resnet", "os.system", "no_such_module:f", "torch:no_such_function", "a b:c", "", "../up:f", "/abs/path:f",
        "os:kill", "os.path:join", "subprocess:Popen", "a:b:c", "a:b\n",
    ],
)  # fmt: skip
def test_unknown_encoders_are_refused(name: str) -> None:
    with pytest.raises(BundleError, match="encoder"):
        build_encoder(name, 1, 2)
    with pytest.raises(BundleError, match="encoder"):
        build_encoder(name, 1, 2, modules=[name.partition(":")[0]])


def test_a_function_is_called_only_if_its_module_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a module of another name, nor a package above it, is enough; the module is not even imported."""
    (tmp_path / "lab").mkdir()
    for file in ("__init__.py", "networks.py"):
        (tmp_path / "lab" / file).write_text(f"raise RuntimeError({file!r})")
    monkeypatch.syspath_prepend(tmp_path)
    for modules in ([], ["lab"], ["lab.networks.more"], ["networks"], ["lab.networks:build"], [""]):
        with pytest.raises(BundleError, match=r"'lab\.networks'.*add 'lab\.networks' to .*modules of \[encoders\]"):
            build_encoder("lab.networks:build", 2, 3, modules=modules)
    save_bundle(tmp_path / "bundle", tiny_encoder(2, 2)[0], _config(encoder="lab.networks:build", layer="1"))
    for load in (load_bundle, Scorer):
        with pytest.raises(BundleError, match=r"\[encoders\] in gradcamo\.toml"):
            load(tmp_path / "bundle")
    with pytest.raises(BundleError, match="__init__"):
        load_bundle(tmp_path / "bundle", ["lab.networks"])


def shared_encoder(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """Build a network that uses one block twice, and its weights in two layers."""
    block = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1, bias=False), nn.BatchNorm3d(4), nn.ReLU())
    tied = nn.Conv3d(4, 4, 3, padding=1, bias=False)
    tied.weight = block[0].weight
    head = (nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, classes))
    return nn.Sequential(nn.Conv3d(in_channels, 4, 1), block, block, tied, nn.ReLU(), *head), "2"


def test_weights_under_two_names_are_saved_loaded_and_explained_by_either_name(tmp_path: Path) -> None:
    name = f"{__name__}:shared_encoder"
    model, layer = build_encoder(name, 2, 2, modules=[__name__])
    assert layer == "2" and build_encoder(name, 2, 2, layer="1", modules=[__name__])[1] == "1"
    crops = torch.randn(3, 2, 6, 32, 32)
    with torch.no_grad():
        model(10 + crops)
        expected = model.eval()(crops)
    for layer in ("1", "2", "2.2"):
        folder = tmp_path / layer
        save_bundle(folder, model, _config(encoder=name, layer=layer))
        loaded, config = load_bundle(folder, [__name__])
        torch.testing.assert_close(loaded(crops), expected)
        assert loaded[1] is loaded[2] and loaded[3].weight is loaded[1][0].weight and config.layer == layer
    save_model(model, str(tmp_path / "deduplicated.safetensors"))
    assert len(load_file(tmp_path / "deduplicated.safetensors")) < len(model.state_dict())
    loaded = load_network(_config(encoder=name, layer="1"), tmp_path / "deduplicated.safetensors", [__name__])
    torch.testing.assert_close(loaded(crops), expected)
    started, _ = build_encoder(name, 2, 2, weights=tmp_path / "deduplicated.safetensors", modules=[__name__])
    torch.testing.assert_close(started.eval()(crops), expected)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    save_file({**state, "3.weight": state["3.weight"] + 1}, tmp_path / "untied.safetensors")
    with pytest.raises(BundleError, match=r"one tensor for 1\.0\.weight and 3\.weight"):
        load_network(_config(encoder=name, layer="1"), tmp_path / "untied.safetensors", [__name__])


class Dropping(nn.Module):
    """Dropout in the forward function, which evaluation mode does not switch off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.2)


class Centring(nn.Module):
    """Subtract the mean of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class FunctionalDropout(nn.Sequential):
    """Dropout before the pooling, in no module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[4](self[3](self[2](nn.functional.dropout(self[1](self[0](x)), 0.2))))


def _encoder_with(*between: nn.Module, kind: type[nn.Sequential] = nn.Sequential) -> nn.Module:
    layers = list(tiny_encoder(2, 2)[0])
    return kind(*layers[:1], *between, *layers[1:])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_encoder_with(nn.BatchNorm3d(4, track_running_stats=False)), r"1 \(BatchNorm3d\) has no running statistics"),
        (_encoder_with(Dropping()), r"first in 1 \(Dropping\)"),
        (_encoder_with(Centring()), r"first in 1 \(Centring\)"),
        (_encoder_with(kind=FunctionalDropout), r"first in 2 \(AdaptiveAvgPool3d\)"),
    ],
)
def test_networks_whose_cells_are_not_independent_are_refused(
    model: nn.Module, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match=message):
        check_network(model.eval(), "0", 2, 2, [6, 16, 16])
    monkeypatch.setattr(sys.modules[__name__], "tiny_encoder", lambda *_: (copy.deepcopy(model), "0"))
    save_bundle(tmp_path / "bundle", model, _config(encoder=f"{__name__}:tiny_encoder", layer="0"))
    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path / "bundle", [__name__])


def test_independent_networks_pass_the_check_and_compiled_ones_do_not() -> None:
    between = (nn.BatchNorm3d(4), nn.GroupNorm(2, 4), nn.InstanceNorm3d(4), nn.Dropout3d())
    model = _encoder_with(*between).eval()
    check_network(model, "1", 2, 2, [6, 16, 16])
    model[4].train()
    with pytest.raises(BundleError, match=r"4 \(Dropout3d\) is in training mode"):
        check_network(model, "1", 2, 2, [6, 16, 16])
    model.eval().compile(backend="eager")
    with pytest.raises(BundleError, match=r"Build it without torch\.compile"):
        check_network(model, "1", 2, 2, [6, 16, 16])


def test_another_layer_must_exist() -> None:
    assert build_encoder("monai-resnet18", 2, 3, layer="layer3.1")[1] == "layer3.1"
    with pytest.raises(BundleError, match=r"no layer 'layer9'.*layer3"):
        build_encoder("monai-resnet18", 2, 3, layer="layer9")


@pytest.mark.parametrize("name", ["efficientnet3d-small", f"{__name__}:tiny_encoder"])
def test_initial_weights_are_loaded_or_refused(name: str, tmp_path: Path) -> None:
    """All weights are loaded; with other classes all but the last layer's; the error names weights that do not fit."""
    path, ours = tmp_path / "w.safetensors", build_encoder(name, 2, 3, modules=[__name__])[0]
    save_file(ours.state_dict(), path)
    same, other = (build_encoder(name, 2, classes, weights=path, modules=[__name__])[0] for classes in (3, 5))
    torch.testing.assert_close(same.state_dict(), ours.state_dict())
    loaded = {key for key, value in other.state_dict().items() if torch.equal(value, ours.state_dict().get(key))}
    assert {key.rsplit(".", 1)[0] for key in other.state_dict().keys() - loaded} == {list(_layers(other))[-1]}
    with pytest.raises(BundleError, match=r"other shapes for \S*weight.*as many stains"):
        build_encoder(name, 4, 3, weights=path, modules=[__name__])
    state = ours.state_dict()
    removed = next(iter(state))
    save_file({key: value for key, value in state.items() if key != removed}, path)
    with pytest.raises(BundleError, match=f"lack {removed}"):
        build_encoder(name, 2, 3, weights=path, modules=[__name__])
    save_file({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(BundleError, match="unknown extra"):
        build_encoder(name, 2, 3, weights=path, modules=[__name__])
    for content in (b"", b"\x80\x04 a pickle"):
        path.write_bytes(content)
        with pytest.raises(BundleError, match="cannot be read"):
            build_encoder(name, 2, 3, weights=path, modules=[__name__])
    with pytest.raises(BundleError, match="cannot be read"):
        build_encoder(name, 2, 3, weights=tmp_path / "nowhere", modules=[__name__])


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def test_larger_sizes_are_larger_and_take_one_slice() -> None:
    models = [EfficientNet3D(2, 2, size) for size in ("small", "base", "large")]
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert counts == sorted(counts)
    with torch.inference_mode():
        assert all(model.eval()(torch.zeros(1, 2, 1, 16, 16)).shape == (1, 2) for model in models)


def _config(**changes: object) -> BundleConfig:
    values = {
        "encoder": "efficientnet3d-small", "layer": "activation", "classes": ["negcon", "a@1uM"],
        "channels": ["DNA", "ER"], "crop_shape": [6, 32, 32], "voxel_size": [1.0, 0.5, 0.5],
        "split": {"train": ["P/A01"], "val": [], "test": ["P/A02"]},
    }  # fmt: skip
    return BundleConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model, _ = build_encoder("efficientnet3d-small", 2, 2)
    save_bundle(tmp_path / "bundle", model.train(), _config())
    return tmp_path / "bundle"


def test_a_loaded_bundle_equals_the_saved_one(bundle: Path) -> None:
    model, config = load_bundle(bundle)
    assert {**asdict(config), "sha256": ""} == asdict(_config())
    assert not model.training
    assert sorted(path.name for path in bundle.iterdir()) == ["config.json", "model.safetensors"]


def test_damaged_bundles_are_refused(bundle: Path) -> None:
    weights, config = (bundle / name for name in ("model.safetensors", "config.json"))
    good_weights, good_config = weights.read_bytes(), config.read_text()
    for broken in (good_weights[:-10], b"", good_weights[:100] + b"\1" + good_weights[101:]):
        weights.write_bytes(broken)
        with pytest.raises(BundleError, match=r"model\.safetensors"):
            load_bundle(bundle)
    weights.write_bytes(good_weights)
    for text in (
        "",
        "{",
        "[]",
        json.dumps({**json.loads(good_config), "extra": 1}),
        good_config.replace("1,", "2,", 1),
    ):
        config.write_text(text)
        with pytest.raises(BundleError):
            load_bundle(bundle)
    config.write_text(json.dumps({**json.loads(good_config), "layer": "body.99"}))
    with pytest.raises(BundleError, match=r"no layer 'body\.99'"):
        load_bundle(bundle)
    changed = {**json.loads(good_config), "classes": ["a", "b", "c"]}
    config.write_text(json.dumps(changed))
    with pytest.raises(BundleError, match="cannot be loaded"):
        load_bundle(bundle)
    config.write_text(json.dumps({**json.loads(good_config), "format": 99}))
    with pytest.raises(BundleError, match="format: Input should be 1"):
        read_config(bundle)
    with pytest.raises(BundleError):
        load_bundle(bundle / "nowhere")


_CURE = {"swap": 0.5, "regulariser": "none", "regulariser_weight": 0.0}
HOSTILE: dict[str, list[object]] = {
    "encoder": [None, 7, "", "x" * 501, ["a"], "../../etc/passwd", "os:kill"],
    "layer": [None, "", "no.such.layer", "", 0, "__class__", "pool.__dict__", "head"],
    "classes": [None, "ab", ["a"], ["a", "a"], ["a", 1], ["a", None], ["a", ""], {"a": 0, "b": 1}, ["a", "b", "c"]],
    "channels": [None, [], ["DNA", "DNA"], [1, 2], "DE", ["DNA"], ["DNA", "ER", "Mito"]],
    "crop_shape": [None, [6, 32], [6, 32, 32, 1], [0, 32, 32], [-6, 32, 32], [6.0, 32, 32], ["6", 32, 32],
                   [True, 32, 32], [10**30, 1, 1], [16384, 16384, 16384], "6x32x32"],
    "voxel_size": [None, [1.0, 0.5], [1.0, 0.5, 0.0], [1.0, 0.5, -1.0], [1.0, 0.5, "0.5"], [1.0, 0.5, True],
                   [1.0, 0.5, math.nan], [1.0, 0.5, math.inf], 1.0],
    "split": [None, [], {"train": "P/A01"}, {"train": [1]}, {"train": None}, "train"],
    "sha256": [None, 0, "0" * 64, ""],
    "format": [None, 0, 2, "1", 1.5, 10**400],
    "objective": [7, "", ["vicreg"]],
    "cure": [7, "any", [], {}, {"swap": 0.5}, {**_CURE, "swap": "0.5"}, {**_CURE, "regulariser": None},
             {**_CURE, "more": 1}],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values])
def test_hostile_configurations_are_refused(bundle: Path, key: str, value: object) -> None:
    config = bundle / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
    with pytest.raises(BundleError):
        load_bundle(bundle)


def test_files_that_are_no_configuration_are_refused(bundle: Path) -> None:
    config = bundle / "config.json"
    content = json.loads(config.read_text())
    required = content.keys() - {"split", "format", "cure", "objective"}
    texts = [json.dumps({k: v for k, v in content.items() if k != key}) for key in required]
    texts += ["[" * 100_000, '{"a":' * 100_000, "null", '"text"', "1e999", "\0", json.dumps({**content, "pickle": "x"})]
    for text in texts:
        config.write_text(text)
        with pytest.raises(BundleError):
            load_bundle(bundle)
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError):
        read_config(bundle)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner)),
       st.sampled_from(sorted(HOSTILE)))  # fmt: skip
def test_any_value_in_a_configuration_is_read_or_refused(value: object, key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = {**asdict(_config()), key: value}
        (Path(folder) / "config.json").write_text(json.dumps(content))
        try:
            assert asdict(read_config(Path(folder))) == content
        except BundleError as error:
            assert key in str(error)


def test_another_number_of_classes_and_a_layer_without_a_map_are_refused(bundle: Path, tmp_path: Path) -> None:
    here = "gradcamo_assets_tests.networks.test_networks"
    model, _ = three_class_encoder(2, 3)
    save_bundle(
        tmp_path / "three", model, _config(encoder=f"{here}:three_class_encoder", layer="1", classes=["a", "b"])
    )
    with pytest.raises(BundleError, match=r"returns \(1, 3\) for one crop, not 2 logits"):
        load_bundle(tmp_path / "three", [here])
    tiny, _ = tiny_encoder(2, 2)
    save_bundle(tmp_path / "tiny", tiny, _config(encoder=f"{here}:tiny_encoder", layer="4"))
    with pytest.raises(BundleError, match="no feature map"):
        load_bundle(tmp_path / "tiny", [here])
    for name in ("no_network", "_config"):
        save_bundle(tmp_path / name, tiny, _config(encoder=f"{here}:{name}", layer="1"))
        with pytest.raises(BundleError, match="builds no network"):
            load_bundle(tmp_path / name, [here])


def test_the_mismatch_of_a_plate_is_explained() -> None:
    config = _config()
    assert config.find_mismatch(["ER", "DNA", "Mito"], [1.1, 0.55, 0.5]) is None
    assert "lacks channel ER" in str(config.find_mismatch(["DNA"], [1.0, 0.5, 0.5]))
    assert "0.2 um in y" in str(config.find_mismatch(["DNA", "ER"], [1.0, 0.2, 0.2]))
    flat = _config(crop_shape=[1, 32, 32])
    assert flat.find_mismatch(["DNA", "ER"], [7.0, 0.5, 0.5]) is None


def test_an_unknown_voxel_size_fits_only_an_encoder_that_states_none(bundle: Path) -> None:
    stains, unknown = ["DNA", "ER"], [None, None, None]
    reason = str(_config().find_mismatch(stains, [1.0, None, None]))
    assert "does not state its voxel size in y, the encoder was trained at 0.5 um" in reason
    assert "voxel_size = [z, y, x] in the .toml file" in reason
    flat = _config(crop_shape=[1, 32, 32])
    assert flat.find_mismatch(stains, [None, 0.5, 0.5]) is None, "a single slice needs no z"
    without = _config(voxel_size=[None, 0.5, 0.5])
    assert without.find_mismatch(stains, [None, 0.5, 0.5]) is None
    assert "in y" in str(without.find_mismatch(stains, unknown))
    assert _config(voxel_size=unknown).find_mismatch(stains, unknown) is None
    assert _config(voxel_size=unknown).find_mismatch(stains, [1.0, 0.5, 0.5]) is None
    config = bundle / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "voxel_size": unknown}))
    assert load_bundle(bundle)[1].voxel_size == unknown
