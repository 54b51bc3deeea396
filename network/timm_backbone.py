"""Any network of timm as a backbone: convolutional and hierarchical ones by their stages, plain ViTs by four blocks."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbone_base import PARTS, STAGES, BackboneBase
from network.outputs import resize
from network.style import CAPTURED, MIXED, MixStyle, build_site, captured, read_codes
from utils.errors import UserError, did_you_mean

TIMM = "timm/"  # how --backbone starts
_PROBE = torch.empty(2, 3, 96, 160, device="meta")  # images of a size that no network is made for
_HIERA = threading.Lock()
_POSITIONS = dict(enumerate(PARTS, 2))


@dataclass(frozen=True)
class TimmSpec:
    """A network by timm's name, weights' tag included: `vit_small_patch14_dinov2.lvd142m`."""

    timm_name: str

    @property
    def name(self) -> str:
        return TIMM + self.timm_name

    title = name

    def dilations_at(self, output_stride: int) -> Mapping[int, int]:
        """Raise `UserError` for a stride that no network has; what this one has shows when it is built."""
        if output_stride not in (8, 16, 32):
            raise UserError(f"output stride {output_stride}: {self.name} may have 8, 16 or 32; give --output_stride")
        return {}

    def create(self, *, output_stride: int, **options: Any) -> Any:
        """Return timm's own feature extractor of the network, for images of any size where timm can.

        Raises:
            UserError: timm has no feature maps of it, or not at this output stride.
        """
        import timm  # slow to import

        ways: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"output_stride": output_stride}, {})
        for way in ways if output_stride != 32 else ways[::2]:
            try:
                model: Any = timm.create_model(self.timm_name, features_only=True, **way, **options)
            except (TypeError, NotImplementedError, AssertionError) as error:
                reason = str(error).partition("\n")[0]
                continue
            strides: list[int] = model.feature_info.reduction()
            if len(set(strides)) == 1 or (len(strides) > 3 and strides[-1] == output_stride):
                return model
            fault, remedy = f"output stride {strides[-1]}, not {output_stride}", f"give --output_stride {strides[-1]}"
            if len(strides) < 4 or strides[-1] not in (8, 16, 32):
                fault = f"feature maps of strides {strides}, but four stages up to stride 8, 16 or 32 are needed"
                remedy = "choose another network"
            raise UserError(f"--backbone {self.name}: has {fault}; {remedy}")
        raise UserError(f"--backbone {self.name}: timm gives no feature maps of it ({reason}); choose another network")


def find_timm(backbone: str) -> TimmSpec:
    """Return the network that `timm/NAME` names, or raise `UserError` with the closest one."""
    import timm  # slow to import

    name = backbone.removeprefix(TIMM)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = did_you_mean(architecture, timm.list_models())
        raise UserError(f"--backbone {backbone}: timm {timm.__version__} has no such network{near}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(architecture)] if tag else []
    if tag and tag not in tags:
        known = f"; it has {', '.join(tags)}" if tags else ""
        raise UserError(f"--backbone {backbone}: timm {timm.__version__} has no weights {tag!r} of it{known}")
    return TimmSpec(name)


class TimmBackbone(BackboneBase):
    """A network of timm, its own feature extractor at `model`, with style sites where it runs stage after stage.

    A plain ViT, all of whose maps have one stride, gives four blocks at equal distances, of which a small pyramid
    makes strides 4, 16 and the output stride (as in BEiT's UPerNet, Bao et al., ICLR 2022). Without `skip` there is no
    map of stride 4.
    """

    model: Any

    def __init__(self, spec: TimmSpec, *, codes: Sequence[int], output_stride: int, skip: bool) -> None:
        super().__init__()
        self.spec, self.output_stride, self.low_stride = spec, output_stride, 4
        model = self.model = spec.create(output_stride=output_stride)
        channels, strides = model.feature_info.channels(), model.feature_info.reduction()
        self.layers = _layers(self.model)  # path of every layer -> part that it belongs to
        self.channels_last = getattr(self.model, "output_fmt", None) == "NHWC"
        self.unit = strides[-1]  # images are padded to a multiple of it: many networks cut off what is left over
        self.strides = 0, *strides[-4:]  # of stem and stages, 0 where maps are not cut
        self.partly_unused = not self.layers and not hasattr(model, "model")  # HRNet's last fusions
        self.sites, self.mix_style = nn.ModuleDict(), MixStyle() if self.layers else None
        self.pyramid: Pyramid | None = None
        if len(set(strides)) == 1:
            if not hasattr(model.model, "blocks"):
                raise UserError(f"--backbone {spec.name}: is no plain ViT, whose blocks are read; take another network")
            depth, width = len(model.model.blocks), channels[-1]
            model.out_indices = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
            self.pyramid = Pyramid(width, output_stride=output_stride, skip=skip)
            self.strides = 0, *(self.pyramid.strides or 4 * (0,))
            self.added = (*self.added, "pyramid")
            attention = self._last_attention()
            self.attends = hasattr(attention, "fused_attn") and not hasattr(attention, "temperature")  # not XCiT's
            channels = [0, width // 4 if skip else width, *3 * [width]]
        widths = self._widths() if self.layers else dict(zip(PARTS[1:], channels[-4:], strict=True))
        self.channels = tuple(widths.get(part, 0) for part in PARTS)
        self.kinds = read_codes(codes, positions=_POSITIONS if self.layers else {})
        for site, kind in self.kinds.items():
            self.sites[site] = build_site(widths[site], kind=kind)
        self.style_names = tuple(site for site, kind in self.kinds.items() if kind in CAPTURED)
        self.style_channels = tuple(widths[site] for site in self.style_names)
        if not self.layers:
            self._shapes(self, _PROBE)

    def _widths(self) -> dict[str, int]:
        """Return the channels of stem and stages, from shapes alone."""
        widths, maps = {}, _PROBE
        for path, part in self.layers.items():
            maps = self._shapes(self.model.get_submodule(path), maps)
            if not isinstance(maps, Tensor):
                raise UserError(f"--backbone {self.spec.name}: its layers pass on several maps; take another network")
            widths[part] = maps.shape[3 if self.channels_last else 1]
        return widths

    @torch.no_grad()
    def _shapes(self, layer: nn.Module, maps: Tensor) -> Any:
        """Return what a layer gives for maps on the meta device; refuse what takes images of one size only."""
        state = {name: value.to("meta") for name, value in (*layer.named_parameters(), *layer.named_buffers())}
        try:
            return torch.func.functional_call(layer, state, (maps,))
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"--backbone {self.spec.name}: takes one image size alone ({error}); take another network"
            ) from error

    def depth(self, name: str) -> int:
        """Return the number of a parameter's part, 0 the stem, or in a ViT that of its block, as timm counts."""
        inner = name.removeprefix("model.")
        if self.layers:
            return next(PARTS.index(part) for path, part in self.layers.items() if inner.startswith(f"{path}."))
        return self._block_numbers[inner.removeprefix("model.")]

    @cached_property
    def _block_numbers(self) -> dict[str, int]:
        from timm.models import group_parameters  # slow to import

        net = getattr(self.model, "model", self.model)  # HRNet has no inner one
        if not hasattr(net, "group_matcher"):
            raise UserError(f"--layer_decay: timm does not number the layers of {self.spec.name}; leave it out")
        numbers: dict[str, int] = group_parameters(net, net.group_matcher(), reverse=True)
        return numbers

    def outputs(self, images: Tensor, *, stages: Sequence[int] = STAGES) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        size = images.shape[2:]
        images = F.pad(images, (0, -size[1] % self.unit, 0, -size[0] % self.unit))
        maps, style = (self._staged if self.layers else self._at_once)(images, stages=stages)
        if torch.compiler.is_compiling() or images.shape[2:] != size:  # heads take maps to end where the image does
            maps = [_cut(part, size, stride=self.strides[number]) for part, number in zip(maps, stages, strict=True)]
        return maps, style

    def _at_once(self, images: Tensor, *, stages: Sequence[int]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        if hasattr(getattr(self.model, "model", None), "unroll"):
            with _HIERA:  # it holds the size of its images: one thread at a time
                maps = _hiera(self.model, images)
        else:
            maps = self.model(images)
        maps = maps[-4:] if self.pyramid is None else self.pyramid(maps, size=images.shape[2:])
        return [maps[number - 1] for number in stages], ()

    def _staged(self, images: Tensor, *, stages: Sequence[int]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        maps, outputs, style = images, [], []
        for number, part in enumerate(PARTS[: 1 + max(stages)]):
            for path in (path for path, own in self.layers.items() if own == part):
                maps = self.run_layer(self.model.get_submodule(path), maps)
            feature = maps.permute(0, 3, 1, 2) if self.channels_last else maps
            if part in self.sites:
                feature = self.sites[part](feature)
            if part in self.style_names:
                style.append(captured(self.sites[part], feature))
            if part in MIXED and self.mix_style is not None:
                feature = self.mix_style(feature)
            maps = feature.permute(0, 2, 3, 1) if self.channels_last else feature
            if number in stages:
                outputs.append(feature)
        return outputs, tuple(style)

    def attention_of(self, images: Tensor, pixels: Sequence[tuple[int, int]]) -> Tensor:
        """Return how the last block's patches at N pixels (x, y) of images (B, 3, H, W) weigh all patches.

        Returns:
            (B, N, h, w) float32, the mean over the heads, each map sums to one; class and register tokens are left out.
        """
        attention, found = self._last_attention(), list[Tensor]()
        fused, attention.fused_attn = attention.fused_attn, False  # fused kernels keep no weights
        hook = attention.attn_drop.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            self.outputs(images)
        finally:
            attention.fused_attn = fused
            hook.remove()
        height, width = (-(-side // self.unit) for side in images.shape[2:])
        prefix = getattr(self.model.model, "num_prefix_tokens", 0)  # SAM's has none
        cells = [prefix + y // self.unit * width + x // self.unit for x, y in pixels]
        seen = found[0].float().view(len(images), -1, *found[0].shape[-2:])  # SAM's: (B heads, n, n)
        weights = seen.mean(1)[:, cells, prefix:]  # (B, N, hw)
        return (weights / weights.sum(2, keepdim=True)).unflatten(2, (height, width))

    def _last_attention(self) -> Any:
        block = self.model.model.blocks[-1]
        return getattr(getattr(block, "block", block), "attn", None)  # inside Rein's

    def checkpoint_blocks(self, *, wanted: bool) -> None:
        super().checkpoint_blocks(wanted=wanted)
        if not self.layers:
            try:
                trained = self.model.modules() if wanted and self.tune == "full" else ()
                if any(isinstance(layer, nn.BatchNorm2d) for layer in trained):
                    raise AssertionError("its batch norms would count every batch twice")
                getattr(self.model, "model", self.model).set_grad_checkpointing(wanted)
            except AssertionError as error:
                raise UserError(f"--grad_checkpoint: {self.spec.name} cannot; leave it out ({error})") from error


def _layers(model: Any) -> dict[str, str]:
    """Return which layers a feature extractor runs one after the other, and the part of each; none where it does not.

    A stage is what ends with one of its last four maps; a fifth map before them ends the stem.
    """
    from timm.models import FeatureDictNet  # slow to import

    if isinstance(model, FeatureDictNet):
        paths, ends = list(model), list(model.return_layers)
    elif hasattr(model, "_stage_out_idx"):  # EfficientNet's and MobileNetV3's own
        stem = [name for name, _ in model.named_children() if name != "blocks"]
        paths = [*stem, *(f"blocks.{i}" for i in range(len(model.blocks)))]
        ends = [f"blocks.{stage - 1}" if stage else stem[-1] for stage in model._stage_out_idx]
    else:
        return {}
    bounds = [paths.index(end) for end in ends[-5:]]
    bounds = bounds if len(bounds) > 4 else [bounds[0] - 1, *bounds]
    return {path: PARTS[sum(i > bound for bound in bounds)] for i, path in enumerate(paths[: bounds[-1] + 1])}


def _hiera(model: Any, images: Tensor) -> list[Tensor]:
    """Run Hiera, which timm builds for one size, on images (B, 3, H, W) of another one, a multiple of 32."""
    from timm.layers import resample_abs_pos_embed  # slow to import
    from timm.models.hiera import Reroll, Unroll

    net, size = model.model, tuple(images.shape[2:])
    grid = [side // stride for side, stride in zip(size, net.patch_stride, strict=True)]
    net.tokens_spatial_shape = grid
    net.mask_spatial_shape = [cells // unit for cells, unit in zip(grid, net.mask_unit_size, strict=True)]
    net.unroll = Unroll(size, net.patch_stride, net.unroll.schedule)
    net.reroll = Reroll(size, net.patch_stride, net.unroll.schedule, net.stage_ends, net.q_pool)
    embeddings = {}
    if net.pos_embed_win is None:  # else timm resamples them itself
        trained = [math.isqrt(net.pos_embed.shape[1])] * 2
        resampled = resample_abs_pos_embed(net.pos_embed, new_size=grid, old_size=trained, num_prefix_tokens=0)
        embeddings["model.pos_embed"] = resampled
    outputs: list[Tensor] = torch.func.functional_call(model, embeddings, (images,))
    return outputs


def _at_stride(size: Sequence[int], stride: int) -> list[int]:
    return [(side + stride - 1) // stride for side in size]  # ONNX cuts off -7 // 4


def _cut(maps: Tensor, size: Sequence[int], *, stride: int) -> Tensor:
    """Return maps of padded images without what lies in the padding of images of a size."""
    height, width = _at_stride(size, stride) if stride else maps.shape[2:]
    return F.pad(maps, (0, width - maps.shape[3], 0, height - maps.shape[2]))  # by slices torch.export would fix sizes


class Pyramid(nn.Module):
    """Maps of one stride -> strides 4 (with `skip`), 16, 16 and the output stride."""

    def __init__(self, channels: int, *, output_stride: int, skip: bool) -> None:
        super().__init__()
        double = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)
        half, quarter = channels // 2, channels // 4
        finer = (double(channels, half), nn.BatchNorm2d(half), nn.GELU(), double(half, quarter))
        self.low = nn.Sequential(*finer) if skip else nn.Identity()
        tops = {8: double(channels, channels), 16: nn.Identity(), 32: nn.MaxPool2d(2, ceil_mode=True)}
        self.top = tops[output_stride]
        self.strides = (4, 16, 16, output_stride) if skip else ()

    def forward(self, maps: Sequence[Tensor], *, size: Sequence[int]) -> list[Tensor]:
        """Map four (B, C, h, w) of images of height and width `size` to maps of exactly the pyramid's strides.

        Without `skip`, for a classifier of patches, they are not resampled.
        """
        levels = [self.low(maps[0]), *maps[1:3], self.top(maps[3])]
        if not self.strides:
            return levels
        return [resize(level, _at_stride(size, stride)) for level, stride in zip(levels, self.strides, strict=True)]
