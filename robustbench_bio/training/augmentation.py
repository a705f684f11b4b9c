"""Random changes of training images that keep their labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_bio.records.card import Recipe


def augment(x: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shift, flip and cut out as the recipe says: x [N, C, H, W] in [0, 1] → the same shape and range."""
    n, _, height, width = x.shape
    if recipe.crop:
        padded = F.pad(x, [recipe.crop] * 4)
        shift = torch.randint(2 * recipe.crop + 1, (2, n), generator=generator).to(x.device)
        rows = (shift[0, :, None] + torch.arange(height, device=x.device))[:, None, :, None]
        columns = (shift[1, :, None] + torch.arange(width, device=x.device))[:, None, None, :]
        images = torch.arange(n, device=x.device)[:, None, None, None]
        channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
        x = padded[images, channels, rows, columns]
    if recipe.flip:
        mirrored = (torch.rand(n, generator=generator) < 0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    if recipe.cutout:
        centre = torch.rand(2, n, generator=generator).to(x.device)
        y_off = torch.arange(height, device=x.device) - (centre[0, :, None] * height).floor()
        x_off = torch.arange(width, device=x.device) - (centre[1, :, None] * width).floor()
        half = recipe.cutout / 2
        y_in, x_in = ((-half <= offset) & (offset < half) for offset in (y_off, x_off))
        x = x.masked_fill((y_in[:, :, None] & x_in[:, None, :])[:, None], 0.0)
    return x


def scaled(x: Tensor, side: int) -> Tensor:
    """Scale images [N, C, H, W] to a height and width of `side`, without aliasing; theirs already: the same tensor."""
    if x.shape[2:] == (side, side):
        return x
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True)
