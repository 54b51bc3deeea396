"""The data path as one would write it down, for `benchmarks.data` to compare with."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from skimage.filters import gaussian
from torchvision.transforms import functional

from datasets.labels import NUM_CLASSES, PALETTE
from datasets.splits import Pair
from transforms.appearance import MEAN, STD, AppearanceParams

CROP = 768


def train_ids(path: str) -> np.ndarray:
    """Decode a colour label by one comparison per class."""
    colours = np.asarray(Image.open(path).convert("RGB"))
    label = np.full(colours.shape[:2], 255, np.uint8)
    for index, colour in enumerate(PALETTE):
        label[(colours == colour).all(axis=2)] = index
    return label


def crop(pair: Pair, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Decode, scale, crop and flip image and label on the whole frame, with the random numbers that ours takes."""
    image, label = Image.open(pair.image).convert("RGB"), Image.fromarray(train_ids(pair.label))
    scale = rng.uniform(0.5, 2.0)
    size = (int(image.width * scale), int(image.height * scale))
    image, label = image.resize(size, Image.Resampling.BICUBIC), label.resize(size, Image.Resampling.NEAREST)
    border = tuple((CROP - side) // 2 + 1 if side < CROP else 0 for side in size)
    image, label = ImageOps.expand(image, border, 0), ImageOps.expand(label, border, 255)
    left, top = (int(rng.integers(0, side - CROP, endpoint=True)) for side in image.size)
    image, label = (part.crop((left, top, left + CROP, top + CROP)) for part in (image, label))
    if rng.random() < 0.5:
        image, label = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, label))
    return image, label


def appearance(image: Image.Image, params: AppearanceParams) -> tuple[torch.Tensor, np.ndarray]:
    """Return the jittered, blurred and normalised image and the edge target of the image before."""
    grey = cv2.cvtColor(np.asarray(image, dtype=np.float32), cv2.COLOR_BGR2GRAY)
    edges = np.minimum(np.abs(cv2.Sobel(grey, cv2.CV_16S, 1, 0)), 255).astype(np.float32)
    names = ("brightness", "contrast", "saturation", "hue")
    for index in params.order.tolist() if params.jitter else ():
        image = getattr(functional, f"adjust_{names[index]}")(image, params.factors[index].item())
    blurred = gaussian(np.asarray(image), sigma=params.sigma.item(), channel_axis=2)
    return functional.normalize(torch.from_numpy(blurred.transpose(2, 0, 1)).float(), MEAN, STD), edges


def centroids(label: np.ndarray) -> list[tuple[int, int, int]]:
    """Find the centre of mass of every class, tile by tile and class by class."""
    rows, (height, width) = [], label.shape
    for top in range(0, height - 1023, 1024):
        for left in range(0, width - 1023, 1024):
            tile = label[top : top + 1024, left : left + 1024]
            for index in range(NUM_CLASSES):
                y, x = np.nonzero(tile == index)
                if len(y):
                    rows.append((index, left + int(x.mean()), top + int(y.mean())))
    return rows


def borders(label: np.ndarray) -> np.ndarray:
    """Return (20, H, W) uint8: which classes occur in the 3x3 neighbourhood, one shifted one-hot map after another."""
    padded = np.pad(np.minimum(label, NUM_CLASSES), 1, constant_values=NUM_CLASSES)
    planes = np.zeros((NUM_CLASSES + 1, *label.shape), np.uint8)
    for y, x in np.ndindex(3, 3):
        part = padded[y : y + label.shape[0], x : x + label.shape[1]]
        planes |= (part[None] == np.arange(NUM_CLASSES + 1)[:, None, None]).astype(np.uint8)
    return planes


def counts(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Count truth against prediction with numpy."""
    prediction, valid = logits.argmax(axis=0), label < NUM_CLASSES
    cells = NUM_CLASSES * label[valid].astype(np.int64) + prediction[valid]
    return np.bincount(cells, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)
