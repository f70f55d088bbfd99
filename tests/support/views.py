"""The kernels that make views on a GPU, against the operations of ops.py in float64; run as a program.

A program of its own because Triton must know before it is imported that it is to interpret its kernels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lookalike.core.seeding import uniforms
from lookalike.pretext import image, ops, ops_triton
from lookalike.pretext.image import Draws, ImageView
from lookalike.pretext.ops import STILL, Plan

EVERYTHING = replace(image.MOCO_V3_SECOND, blur=0.5, solarize=0.5, gray=0.5, hue=0.5)
KINDS = {
    "MoCo v1": image.MOCO_V1,
    "MoCo v2": image.MOCO_V2,
    "MoCo v3, second": image.MOCO_V3_SECOND,
    "SimCLR": image.SIMCLR,
    "everything": EVERYTHING,
    "everything, gray first": replace(EVERYTHING, order="gray first"),
    "crops": ImageView(),
    "no blur": replace(EVERYTHING, blur=0.0),
    "no jitter": replace(EVERYTHING, jitter=0.0),
    "no hue": replace(EVERYTHING, hue=0.0),
    "gray and solarised only": replace(EVERYTHING, jitter=0.0, blur=0.0),
}
CANVAS, COUNT = (20, 24), 3
BOUND = 6e-6
"""Of values in [0, 1], largest error. Those of ops.py in fp32 reach 3.8e-6 on these: coordinates up to 24 are rounded
by up to 1e-6 of a pixel, the canvas is noise, and four changes of colour, none of which jumps, multiply errors.
"""


def pictures(count: int, height: int, width: int) -> Tensor:
    """uint8 noise, with gray, black, white and saturated parts."""
    noise = (uniforms(5, 0, torch.arange(count), 0, 3 * height * width) * 256).to(torch.uint8)
    pixels = noise.view(count, 3, height, width).clone()
    pixels[:, :, :4] = pixels[:, :1, :4]
    pixels[:, 1:, 4:7] = 0
    pixels[:, :, 7:9, : width // 2], pixels[:, :, 7:9, width // 2 :] = 0, 255
    return pixels


def reference(pixels: Tensor, plan: Plan, view: ImageView) -> Tensor:
    """(B, S, S, 3) before normalisation, one example at a time."""
    return torch.stack(
        [_one(pixels[i % len(pixels)], plan.ordered(torch.tensor([i])), view) for i in range(len(plan.flip))]
    )


def _one(pixels: Tensor, plan: Plan, view: ImageView) -> Tensor:
    height, width = pixels.shape[1:]
    axes = ops.axes(plan.boxes.double(), (height, width), view.size, plan.flip)
    down, across = (weights[0] for weights in ops.resize_weights(axes))
    planes = (down[:, :height] @ (pixels.double() / 255) @ across[:, :width].mT)[:, None]
    if plan.gray and view.order == "gray first":
        planes = ops.grayed(planes).clone()
    for step in range(4) if plan.group != STILL else ():
        if step == plan.group and view.hue:
            ops.shift_hue(planes, ops.hue_offsets(plan.factors[:, ops.HUE].double()))
        if step < 3:
            kind = plan.kinds[:, step]
            ops.adjust(planes, ops.blend_weights(kind, plan.factors.double()[:, kind[0]]))
    if plan.gray and view.order == "jitter first":
        planes = ops.grayed(planes)
    if plan.blur:
        planes = ops.blurred(planes, plan.sigma.double(), view.radius())
    if plan.solarize:
        planes = ops.solarized(planes)
    return planes[:, 0].permute(1, 2, 0)


def extreme(count: int) -> Tensor:
    """Boxes on the canvas: the whole of it, one pixel, less than one, a line, and a corner."""
    height, width = CANVAS
    whole, corner = [0, 0, height, width], [height - 2.3, width - 3.7, 2.3, 3.7]
    kinds = torch.tensor([whole, [3, 5, 1, 1], [3.3, 5.6, 0.4, 0.9], [0, 2.5, height, 1], corner])
    return kinds[torch.arange(count) % len(kinds)]


def check(name: str, view: ImageView, plan: Plan, pixels: Tensor) -> float:
    """The largest error; some of the views by themselves are the same bytes."""
    found = ops_triton.views(pixels, plan, view._style())
    unit = found.double() * torch.tensor(view.std).double() + torch.tensor(view.mean).double()
    error = float((unit - reference(pixels, plan, view)).abs().max())
    assert error < BOUND, f"{name}, {view.size} px: {error}"
    some = torch.tensor([5, 2])
    alone = ops_triton.views(pixels[some % len(pixels)], plan.ordered(some), view._style())
    assert torch.equal(alone, found[some]), f"{name}: a view depends on its batch"
    return error


def planned(view: ImageView, seed: int) -> Plan:
    """Two views of each picture, as they are drawn; the canvas is squashed, so boxes end inside pixels."""
    draws = torch.cat([uniforms(seed, 0, torch.arange(COUNT), number, Draws.COUNT) for number in (0, 1)])
    sizes = (torch.tensor(CANVAS) * (1 + 2 * uniforms(6, 0, torch.arange(COUNT), 0, 2))).long()
    return view.plan(draws, sizes.repeat(2, 1), CANVAS)


def main() -> None:
    """Every kind of view from crops as they are drawn; then extreme crops, made larger and smaller."""
    pixels = pictures(COUNT, *CANVAS)
    ops_triton._BLOCK = 128  # so that small views are several programs, too
    errors = [
        check(name, view := replace(kind, size=16), planned(view, seed), pixels)
        for seed, (name, kind) in enumerate(KINDS.items())
    ]
    ops_triton._BLOCK = 512
    for size in (31, 3):
        view = replace(EVERYTHING, size=size)
        plan = planned(view, 99)._replace(boxes=extreme(2 * COUNT))
        errors.append(check("extreme crops", view, plan, pixels))
    print(f"all equal, within {max(errors):.1e}")


if __name__ == "__main__":
    main()
