"""Networks of timm as backbones, foundation models included: they train, predict at any size and resume."""

from __future__ import annotations

import copy
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import config
import train
import valid
from network import DEFAULT_ARCH, assemble, build_network, resolve_architecture, resolve_method
from network.deeplab import Segmentor
from network.tuning import merge_lora, restrict_tuning
from optimizer import parameter_groups
from run import share_batch_norms
from scripts import network_summary
from tests.runs import build_run, launch, read_weights, run_folder, train_arguments
from utils.errors import UserError

STRIDES = {  # network -> output stride, 32 where timm has no other
    "resnet50": 16,
    "regnety_004": 16,
    "convnext_tiny": 16,
    "tf_efficientnet_lite0": 16,
    "tf_efficientnetv2_s": 16,
    "mobilenetv3_small_100": 8,
    "swin_tiny_patch4_window7_224": 32,
    "hiera_tiny_224": 32,
    "hiera_small_abswin_256": 32,
    "vit_small_patch14_dinov2": 16,
    "vit_small_patch16_dinov3": 8,
    "eva02_small_patch14_224": 32,
    "test_vit": 16,
}
WITHOUT_SITES = {name for name in STRIDES if name.startswith(("hiera", "vit", "eva", "test"))}
SMALL = "test_vit"  # a plain ViT of a few thousand weights, which timm has for tests


def build(name: str, method: str = "base", *, stride: int = 0) -> Segmentor:
    torch.manual_seed(1)
    architecture = resolve_architecture(DEFAULT_ARCH, backbone=f"timm/{name}", output_stride=stride or STRIDES[name])
    return assemble(architecture, method=resolve_method(method))


def pictures(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", STRIDES)
def test_depths_of_pretrained_parameters(name: str) -> None:
    with torch.device("meta"):
        backbone: Any = build(name).backbone
    keys = [key for key, _ in backbone.named_parameters() if key.partition(".")[0] not in backbone.added]
    depths = [backbone.depth(key) for key in keys]
    assert depths == sorted(depths) and {*depths} == {*range(max(depths) + 1)}, "in the order in which they run"
    if backbone.pyramid is not None or name.startswith("hiera"):
        blocks = [re.search(r"blocks\.(\d+)\.", key) for key in keys]
        assert depths == [1 + int(block[1]) if block else 0 for block in blocks]
    else:
        assert max(depths) == 4


def test_depths_where_layers_do_not_run_one_after_the_other() -> None:
    with torch.device("meta"):
        hrnet: Any = build("hrnet_w18_small", stride=32).backbone
        xception: Any = build("xception41", stride=16).backbone
    keys = [key for key, _ in hrnet.named_parameters() if key.startswith("model.")]
    depths = {key: hrnet.depth(key) for key in keys}
    assert depths["model.conv1.weight"] == 0 and {*depths.values()} == {*range(6)}
    assert all(depths[key] == int(key[len("model.stage")]) for key in keys if key.startswith("model.stage"))
    with pytest.raises(UserError, match="--layer_decay: timm does not number the layers of timm/xception41; leave it"):
        xception.depth(next(key for key, _ in xception.named_parameters()))


def test_what_a_network_computes_itself_and_stores_nowhere_is_no_hindrance() -> None:
    network = build("swinv2_cr_tiny_ns_224", stride=32).eval()  # its relative coordinates
    with torch.no_grad():
        assert network.predict(pictures(1, 3, 70, 100)).shape == (1, 19, 70, 100)


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet50"])
def test_batch_norms_of_all_processes_keep_activations(name: str) -> None:
    network, images = build(name).eval(), pictures(1, 3, 64, 96)
    norms, names = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)], [*network.state_dict()]
    with torch.no_grad():
        before = network.predict(images)
        shared = share_batch_norms(network)
        assert torch.equal(shared.predict(images), before)
    assert [*shared.state_dict()] == names
    assert len([m for m in shared.modules() if isinstance(m, nn.SyncBatchNorm)]) == len(norms) > 10


@pytest.mark.parametrize("tune", ["full", "lora", "rein"])
def test_updates_pyramid_and_heads_train_at_the_full_rate(tune: str) -> None:
    network = build(SMALL)
    if tune != "full":
        restrict_tuning(network.backbone, tune, rank=2, tokens=5)
    cfg = config.parse(["--lr", "0.1", "--backbone_lr", "0.5", "--layer_decay", "0.9"], program="train")
    rates = {id(value): group["lr"] for group in parameter_groups(cfg, network) for value in group["params"]}
    found = {key: rates[id(value)] for key, value in network.named_parameters() if value.requires_grad}
    for key, rate in found.items():
        block = re.search(r"blocks\.(\d)", key)
        pretrained = key.startswith("backbone.model.") and not re.search("lora_|rein", key)
        assert rate == pytest.approx(0.1 * (0.5 * 0.9 ** (6 - int(block[1]) if block else 7) if pretrained else 1)), key
    assert tune == "full" or any(tune in key for key in found)
    assert any("pyramid" in key for key in found)


@pytest.mark.parametrize("method", ["base", "isw", "diia"])
@pytest.mark.parametrize("name", STRIDES)
def test_every_network_trains_resumes_and_predicts(name: str, method: str) -> None:
    if name in WITHOUT_SITES and method != "base":
        with pytest.raises(UserError, match="has no style sites; use a method without any: --method base, linear or"):
            build(name, method)
        if method == "isw":
            return
        method = "diia-no-whitening"
    network = build(name, method)
    output = network(pictures(2, 3, 65, 97))
    maps = [part for part in (*output, *output.style) if isinstance(part, Tensor) and part.is_floating_point()]
    torch.stack([part.square().mean() for part in maps]).sum().backward()
    trained = {key for key, value in network.named_parameters() if value.requires_grad}
    assert trained == {key for key, value in network.named_parameters() if value.grad is not None}
    assert all(value.grad.isfinite().all() for value in network.parameters() if value.grad is not None)
    assert len(output.style) == (3 if method in ("isw", "diia") else 0)
    for part in output.style:
        assert part.mean((2, 3)).abs().max() < 1e-4 and (part.std((2, 3), correction=0) - 1).abs().median() < 0.05
    second = build(name, method)
    optimizers = [torch.optim.SGD(each.parameters(), lr=1e-3, momentum=0.9) for each in (network, second)]
    optimizers[0].step()
    second.load_state_dict(copy.deepcopy(network.state_dict()))
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for resumed, optimizer in zip((network, second), optimizers, strict=True):
        torch.manual_seed(1)
        optimizer.zero_grad()
        resumed(pictures(2, 3, 48, 64)).fused.square().mean().backward()
        optimizer.step()
    assert all(map(torch.equal, network.state_dict().values(), second.state_dict().values()))
    odd = pictures(1, 3, 75, 118)
    with torch.no_grad():
        predicted = network.eval().predict(odd)
        assert predicted.shape == (1, 19, 75, 118) and predicted.isfinite().all()
        assert torch.equal(second.eval().predict(odd), predicted)


@pytest.mark.parametrize("name", [name for name in STRIDES if name not in ("swin_tiny_patch4_window7_224", "test_vit")])
def test_without_sites_the_maps_are_those_of_timm(name: str) -> None:
    size = {"hiera_tiny_224": 224, "hiera_small_abswin_256": 256}.get(name, 7 * 2**5)
    network: Any = build(name, "linear").eval()
    images, model = pictures(1, 3, size, size), network.backbone.spec.create(output_stride=STRIDES[name]).eval()
    model.load_state_dict(network.backbone.model.state_dict())
    way: dict[str, Any] = {}
    if network.backbone.pyramid is not None:
        depth = len(model.model.blocks)
        way = {"indices": [depth // 4 * n - 1 for n in (1, 2, 3, 4)], "intermediates_only": True}
    with torch.no_grad():
        theirs = model.model.forward_intermediates(images, **way) if way else model(images)
        network.predict(pictures(1, 3, 96, 160))  # another size before
        for stage, (ours, wanted) in enumerate(zip(network.backbone.outputs(images)[0], theirs[-4:], strict=True)):
            if ours.shape == wanted.shape:  # else the pyramid or its patch changes the size
                torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5, msg=f"stage {stage + 1}")
    assert way or all(a.shape == b.shape for a, b in zip(network.backbone.outputs(images)[0], theirs[-4:], strict=True))


def test_timm_dilates_other_layers_than_the_published_backbones() -> None:
    def dilated(name: str, layers: str) -> set[str]:
        with torch.device("meta"):
            backbone = resolve_architecture(DEFAULT_ARCH, backbone=name, output_stride=16).build((0,) * 7)
        modules = [(key.removeprefix("model."), layer) for key, layer in backbone.named_modules()]
        return {key for key, layer in modules if re.search(layers, key) and getattr(layer, "dilation", 1) == (2, 2)}

    ours, theirs = (dilated(name, r"layer\d\.") for name in ("resnet50", "timm/resnet50"))
    assert ours - theirs == {"layer4.0.conv2"} and theirs < ours
    assert len(dilated("mobilenet_v2", "features")) == 1 and len(dilated("timm/mobilenetv2_100", "blocks")) > 1
    assert not timm.list_models("*shuffle*")


def test_a_site_normalises_what_goes_on() -> None:
    plain, network = build("regnety_004"), build("regnety_004", "isw")
    assert network.backbone.kinds == {"stem": "whiten", "stage1": "whiten", "stage2": "whiten"}
    images = pictures(1, 3, 64, 64)
    model: Any = plain.eval().backbone.model
    with torch.no_grad():
        maps = images
        for number, stage in enumerate(("stem", "s1", "s2", "s3")):
            maps = model[stage](maps)
            maps = nn.functional.instance_norm(maps) if number < 3 else maps
        outputs, style = network.eval().backbone.outputs(images)
    torch.testing.assert_close(outputs[2], maps)
    assert [part.shape[1] for part in style] == list(network.style_channels) == [32, 48, 104]
    assert len(network.style_features(images)) == 3


def test_a_vit_reads_four_blocks_and_any_size() -> None:
    linear: Any = build("vit_small_patch14_dinov2", "linear").eval()
    assert linear.backbone(pictures(1, 3, 75, 118)).top.shape[2:] == (6, 9), "the patches of 84 x 126"
    network: Any = build("vit_small_patch14_dinov2").eval()
    assert list(network.backbone.model.out_indices) == [2, 5, 8, 11]
    for size in ((14, 14), (75, 118), (129, 66)):
        features = network.backbone(pictures(1, 3, *size))
        for maps, stride in ((features.low_level, 4), (features.aux, 16), (features.top, 16)):
            assert maps.shape[2:] == tuple(-(-side // stride) for side in size)


@pytest.mark.parametrize(
    "name", ["vit_pwee_patch16_reg1_gap_256", "vit_small_patch16_18x2_224", "convmixer_768_32", "xcit_nano_12_p16_224"]
)
def test_blocks_may_have_several_attentions_or_none_over_patches(name: str) -> None:
    with torch.device("meta"):
        backbone: Any = build(name, stride=16).backbone
    assert backbone.pyramid is not None and not backbone.attends


@torch.no_grad()
def test_the_attention_of_sams_encoder_whose_heads_are_in_the_batch() -> None:
    backbone: Any = build("samvit_base_patch16", "linear", stride=16).eval().backbone
    images, pixels, seen = pictures(2, 3, 40, 60), [(5, 5), (59, 39)], list[Tensor]()
    attention = backbone.model.model.blocks[-1].attn
    attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = backbone.attention_of(images, pixels)
    assert found.shape == (2, 2, 3, 4)
    for image, tokens in enumerate(seen[0]):
        query, key, _ = attention.qkv(tokens.flatten(0, 1)).view(12, 3, attention.num_heads, -1).permute(1, 2, 0, 3)
        weights = (attention.scale * query @ key.mT).softmax(-1).mean(0)  # new relative positions are zero
        torch.testing.assert_close(found[image].flatten(1), weights[[0, 11]])


@pytest.mark.parametrize("method", ["base", "linear", "diia-coarse", "diia-no-whitening"])
def test_no_weight_is_without_a_gradient(method: str) -> None:
    """Of a plain ViT's pyramid only what the head reads is built: with several processes DDP waits for every weight."""
    row = replace(resolve_method(method), codes=(0,) * 7, whitening=None)
    network = assemble(resolve_architecture(DEFAULT_ARCH, backbone=f"timm/{SMALL}"), method=row).train()
    outputs = [maps for maps in network(pictures(2, 3, 64, 96)) if isinstance(maps, Tensor) and maps.requires_grad]
    sum(maps.float().mean() for maps in outputs).backward()  # type: ignore[union-attr]
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", STRIDES)
def test_maps_end_where_the_image_does(name: str) -> None:
    backbone: Any = build(name).eval().backbone
    images, unit = pictures(1, 3, 75, 118), backbone.unit
    padded = nn.functional.pad(images, (0, -118 % unit, 0, -75 % unit))
    with torch.no_grad():
        found, whole = backbone(images), backbone(padded)
    assert padded.shape[2:] != images.shape[2:] and whole.low_level.shape[3] == -(-padded.shape[3] // 4)
    for maps, over, stride in ((found.low_level, whole.low_level, 4), (found.top, whole.top, STRIDES[name])):
        assert maps.shape[2:] == (-(-75 // stride), -(-118 // stride)), "as of backbones that need no padding"
        torch.testing.assert_close(maps, over[:, :, : maps.shape[2], : maps.shape[3]])


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "timm/convnext_atto", f"timm/{SMALL}"])
def test_grad_checkpoint_changes_memory_alone(name: str) -> None:
    def step(*flags: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        torch.manual_seed(3)
        network = build_network(config.parse(["--backbone", name, "--method", "base", *flags], program="train"))
        network(pictures(2, 3, 64, 64)).fused.square().mean().backward()
        return network.state_dict(), {
            key: value.grad for key, value in network.named_parameters() if value.grad is not None
        }

    saved = [0, 0]
    results: list[Any] = []
    for turn, flags in enumerate(((), ("--grad_checkpoint",))):

        def pack(value: Tensor, turn: int = turn) -> Tensor:
            saved[turn] += value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            results.append(step(*flags))
    for first, second in zip(*results, strict=True):
        assert first.keys() == second.keys()
        for key in first:
            torch.testing.assert_close(first[key], second[key], msg=key)
    assert saved[1] != saved[0]


def test_batch_norms_that_are_not_trained_allow_grad_checkpoint() -> None:
    flags = "--backbone timm/xcit_nano_12_p16_224 --method base --grad_checkpoint --tune lora --lora_rank 2"
    network = build_network(config.parse(flags.split(), program="train"))
    before = {key: value.clone() for key, value in network.state_dict().items() if ".local_mp.bn." in key}
    network.train()(pictures(2, 3, 64, 64)).fused.square().mean().backward()
    assert before and all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def trained_copy(network: Segmentor) -> dict[str, Tensor]:
    """Return the state after two steps of SGD."""
    optimizer = torch.optim.SGD([value for value in network.parameters() if value.requires_grad], lr=0.1)
    for turn in range(2):
        optimizer.zero_grad()
        network.train()(pictures(2, 3, 64, 64, seed=turn)).fused.square().mean().backward()
        optimizer.step()
    return copy.deepcopy(network.state_dict())


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", SMALL])
def test_a_frozen_backbone_keeps_every_bit(name: str) -> None:
    network = build(name)
    restrict_tuning(network.backbone, "frozen", rank=1, tokens=2)
    before = copy.deepcopy(network.state_dict())
    after = trained_copy(network)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert not [key for key in moved if key.startswith("backbone.model")]
    added = [key for key in before if key.startswith("backbone.pyramid") and key.endswith("weight")]
    assert bool(added) == (name == SMALL) and moved >= set(added) and any(key.startswith("head") for key in moved)
    assert "are trained (--tune frozen)" in network.describe()


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 32), ("mobilenetv3_small_100", 16), (SMALL, 16)])
def test_lora_starts_as_the_network_and_merges(name: str, stride: int) -> None:
    plain, network, images = build(name, stride=stride), build(name, stride=stride), pictures(1, 3, 64, 96)
    restrict_tuning(network.backbone, "lora", rank=4, tokens=2)
    with torch.no_grad():
        assert torch.equal(plain.eval().predict(images), network.eval().predict(images))
    before = copy.deepcopy(network.state_dict())
    after = trained_copy(network)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any("lora_B" in key for key in moved)
    assert not [key for key in moved if key.startswith("backbone.model") and "lora_" not in key]
    with torch.no_grad():
        unmerged = network.eval().predict(images)
        merge_lora(network)
        assert not torch.equal(plain.predict(images), unmerged)
        torch.testing.assert_close(network.predict(images), unmerged, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "stride"), [("eva02_tiny_patch14_224", 16), ("swinv2_tiny_window8_256", 32)])
def test_lora_updates_layers_whose_weights_timm_reads_by_itself(name: str, stride: int) -> None:
    plain, network = build(name, "linear", stride=stride), build(name, "linear", stride=stride)
    restrict_tuning(network.backbone, "lora", rank=2, tokens=2)
    images = pictures(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network.eval().predict(images), plain.eval().predict(images))
    network.train()(images).fused.square().mean().backward()
    gradients = {key: value.grad for key, value in network.named_parameters() if "lora_B" in key}
    assert any("qkv" in key for key in gradients)
    assert not [key for key, gradient in gradients.items() if gradient is None]


@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_small_abswin_256"])
def test_threads_may_share_a_network_that_holds_the_size_of_its_images(name: str) -> None:
    network, images = build(name, "linear").eval(), [pictures(1, 3, 64, 96), pictures(1, 3, 96, 64)] * 4

    @torch.inference_mode()
    def predict(image: Tensor) -> Tensor:
        return network.predict(image)

    wanted = list(map(predict, images))
    with ThreadPoolExecutor(2) as pool:  # as predict.py does on a CPU
        for found, expected in zip(pool.map(predict, images), wanted, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("backbone", "stride"), [("resnet18", 16), ("timm/resnet18", 32)])
def test_style_sites_train_beside_lora(backbone: str, stride: int) -> None:
    architecture = resolve_architecture(DEFAULT_ARCH, backbone=backbone, output_stride=stride)
    network = assemble(architecture, method=resolve_method("ibn"))
    restrict_tuning(network.backbone, "lora", rank=2, tokens=2)
    parameters = dict(network.backbone.named_parameters())
    trained = {name for name, value in parameters.items() if value.requires_grad}
    sites = {name for name in parameters if name.startswith("sites.")}
    assert sites and {name for name in trained if "lora_" not in name} == sites


def test_rein_starts_as_the_network_and_trains_its_tokens_alone() -> None:
    plain, network, images = build(SMALL), build(SMALL), pictures(1, 3, 64, 96)
    restrict_tuning(network.backbone, "rein", rank=1, tokens=8)
    with torch.no_grad():
        assert torch.equal(plain.eval().predict(images), network.eval().predict(images))
    before = copy.deepcopy(network.state_dict())
    after = trained_copy(network)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    inside = {key for key in moved if key.startswith("backbone.model")}
    assert inside and all(".rein." in key for key in inside)
    assert any(key.endswith("tokens_a") for key in inside)


def test_mean_and_deviation_are_those_of_the_weights() -> None:
    def normalisation(*flags: str) -> tuple[list[float] | None, list[float] | None]:
        cfg = config.parse(flags, program="train")
        return cfg.AUGMENT.MEAN, cfg.AUGMENT.STD

    assert normalisation() == (None, None)  # ImageNet's
    assert normalisation("--backbone", "timm/tf_efficientnet_lite0") == ([0.5] * 3, [0.5] * 3)
    clip: Any = timm.get_pretrained_cfg("vit_base_patch16_clip_224.openai")
    assert normalisation("--backbone", "timm/vit_base_patch16_clip_224.openai") == (list(clip.mean), list(clip.std))
    own = ("--mean", "0.1", "0.2", "0.3", "--std", "0.4", "0.5", "0.6")
    assert normalisation("--backbone", "timm/tf_efficientnet_lite0", *own) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--backbone timm/resnet5", "--backbone timm/resnet5: timm .* has no such network; did you mean 'resnet50'"),
        ("--backbone timm/resnet50.nothing", "has no weights 'nothing' of it; it has .*a1_in1k"),
        ("--backbone timm/swin_tiny_patch4_window7_224", "has output stride 32, not 16; give --output_stride 32"),
        (
            "--backbone timm/csatv2 --output_stride 32",
            r"strides \[.*64\], but four .* are needed; choose another network",
        ),
        (
            "--backbone timm/pit_xs_224 --output_stride 32",
            r"strides \[8, 16, 32\], but four .*; choose another network",
        ),
        ("--backbone timm/resnet50 --output_stride 4", "output stride 4: timm/resnet50 may have 8, 16 or 32"),
        ("--backbone timm/maxvit_tiny_tf_224 --output_stride 32", "takes one image size alone .*; take another"),
        ("--backbone timm/cait_xxs24_224 --method base", "takes one image size alone .*doesn't match model"),
        ("--backbone timm/volo_d1_224 --method base", "timm/volo_d1_224: is no plain ViT"),
        ("--backbone timm/selecsls42 --method base --output_stride 32", "timm/selecsls42: its layers pass on several"),
        ("--backbone timm/test_vit --tune frozen --method diia", "has no style sites"),
        (
            "--backbone timm/hrnet_w18_small --method base --output_stride 32 --grad_checkpoint",
            "hrnet_w18_small cannot",
        ),
        ("--backbone timm/xcit_nano_12_p16_224 --method base --grad_checkpoint", "cannot.*its batch norms would count"),
        ("--backbone timm/cspnext_tiny --method base --grad_checkpoint", "cannot.*its batch norms would count"),
        ("--backbone timm/resnet18 --tune frozen --method isw", "--tune frozen: style sites .*--tune lora"),
        ("--backbone timm/resnet18 --method base --tune rein", "--tune rein: its tokens need a plain ViT"),
        (
            "--backbone resnet18 --method base --tune rein",
            "--tune rein: its tokens need a plain ViT, ResNet-18 is none",
        ),
        ("--backbone timm/convmixer_768_32 --method base --tune rein", "--tune rein: its tokens need a plain ViT"),
        ("--backbone timm/test_nfnet --method base --tune lora", "standardises .* cannot be merged; use --tune full"),
        ("--backbone timm/resnetv2_50x1_bit --method base --tune lora", "standardises .* cannot be merged; use --tune"),
        ("--backbone timm/resnet18 --lora_rank 4", "--lora_rank belongs to --tune lora"),
        ("--backbone nothing", "--backbone nothing: not available; one of .* or timm/NAME"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_network(config.parse(flags.split(), program="train"))


@pytest.mark.parametrize(
    "flags",
    [
        f"--backbone timm/{SMALL} --method linear --tune frozen",
        f"--backbone timm/{SMALL} --method diia-no-whitening --tune lora --lora_rank 2",
        f"--backbone timm/{SMALL} --method base --tune rein --rein_tokens 5 --ema_decay 0.9 --grad_checkpoint",
        "--backbone timm/test_convnext --method isw --cov_stat_epoch 0 --output_stride 32",
    ],
)
def test_runs_resume_and_are_evaluated(flags: str, small_camvid: Path, tmp_path: Path) -> None:
    states = []
    for out, epochs in (("straight", ("0",)), ("resumed", ("1", "0"))):
        for limit in epochs:
            arguments = train_arguments(small_camvid, tmp_path / out, *flags.split(), "--max_iter", "6")
            train.main([*arguments, "--max_epoch", limit, "--resume", "auto"])
        states.append(read_weights(run_folder(tmp_path / out) / "last.pth"))
    for (key, first), second in zip(states[0]["network"].items(), states[1]["network"].values(), strict=True):
        assert torch.equal(first, second), key
    assert states[0]["config"]["AUGMENT"]["MEAN"] is not None
    weights = str(run_folder(tmp_path / "resumed") / "last.pth")
    data = ("--val_dataset", "camvid", "--num_workers", "0", "--opts", f"DATASET.CAMVID_DIR={small_camvid}")
    valid.main(["--snapshot", weights, "--out", str(tmp_path / "scores"), *data])
    report = json.loads((tmp_path / "scores" / "scores.json").read_text())
    mean = " ".join(f"{value:g}" for value in states[0]["config"]["AUGMENT"]["MEAN"])
    assert report["weights"]["normalisation"].startswith(f"mean {mean}, deviation ")
    trained = json.loads((run_folder(tmp_path / "resumed") / "scores" / "scores.json").read_text())
    assert report["domains"] == trained["domains"] or "lora" in flags  # merged: other last bits


def test_statistics_that_are_not_there_cannot_be_frozen(small_camvid: Path, tmp_path: Path) -> None:
    flags = ("--backbone", "timm/test_vit", "--method", "base", "--freeze_bn")  # its pyramid's norms are new ones
    with pytest.raises(UserError, match="--freeze_bn: timm/test_vit has no batch norms; leave it out"):
        build_run(train_arguments(small_camvid, tmp_path, *flags))


@pytest.mark.parametrize("name", ["timm/vit_small_patch14_dinov2", "timm/convnext_tiny", "timm/test_vit"])
def test_the_summary_counts_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    network_summary.main(["--backbone", name, "--size", "64", "96", "--method", "linear"])
    row = capsys.readouterr().out.splitlines()[2]
    assert name in row and " - " in row  # thop does not know their layers


@pytest.mark.parametrize(
    "flags",
    [
        f"--backbone timm/{SMALL} --method base --tune rein --rein_tokens 5",
        f"--backbone timm/{SMALL} --method linear --tune frozen",
        "--backbone timm/hrnet_w18_small --method base --output_stride 32",
    ],
)
def test_two_processes_train(flags: str, small_camvid: Path, tmp_path: Path) -> None:
    arguments = train_arguments(small_camvid, tmp_path, *flags.split(), "--max_iter", "2")
    launch("train.py", arguments, processes=2)
    state = read_weights(run_folder(tmp_path) / "last.pth")
    assert state["progress"]["step"] == 2 and state["world_size"] == 2
    assert all(value.isfinite().all() for value in state["network"].values())
