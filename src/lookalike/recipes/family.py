"""The methods beside MoCo: each is a few fields that differ from a recipe that exists.

Published settings have BatchNorm over the whole batch (SimCLR, NNCLR, MoCo v3) or over what sits on one GPU; here it is
in groups of a stated size, so that the number of processes changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from lookalike.learn.dictionary import InBatch, MemoryBank, Neighbours, Queue
from lookalike.learn.keys import Alone, EndToEnd, Momentum, Stored
from lookalike.learn.objective import NCE, InfoNCE, PolyView, SupCon
from lookalike.learn.optim import LARS, SGD, AdamW, Cosine, Muon
from lookalike.models.decoder import Decoder
from lookalike.models.encoder import MLP
from lookalike.models.image import ResNet
from lookalike.models.vit import ViT
from lookalike.pretext.image import (
    MOCO_CIFAR,
    MOCO_V1,
    MOCO_V3_FIRST,
    MOCO_V3_SECOND,
    SIMCLR,
    ImageView,
    Masked,
    OneView,
    TwoViews,
)
from lookalike.recipes.images import SMALL, SmallRecipe, moco_cifar, moco_v1, small
from lookalike.recipes.recipe import DictionaryValue, Length, Recipe

instdisc = replace(
    moco_v1,
    name="instdisc",
    pretext=OneView(MOCO_V1),
    keys=Stored(),
    dictionary=MemoryBank(draws=4096, momentum=0.5),
    objective=NCE(0.07),
)
"""InstDisc (arXiv 1805.01978) by NCE: a memory bank, 4,096 negatives drawn for each query, temperature 0.07.

Published: 54.0 % linear top-1 on ImageNet with ResNet-50.
"""

instdisc_softmax = replace(
    instdisc, name="instdisc_softmax", dictionary=MemoryBank(momentum=0.5), objective=InfoNCE(0.07)
)
"""InstDisc (arXiv 1805.01978, equation 2) by the full softmax over all examples, which NCE stands for."""

simclr = replace(
    moco_v1,
    name="simclr",
    pretext=TwoViews(SIMCLR),
    model=ResNet("resnet50", zero_init=True),
    head=MLP((2048, 128), norm="all"),
    keys=EndToEnd(),
    dictionary=InBatch(queries=True),
    objective=InfoNCE(0.1, weight=0.5),
    optimizer=LARS(0.3, weight_decay=1e-6),
    schedule=Cosine(warmup=0.01),
    length=Length(epochs=1000),
    batch=4096,
    group=128,
)
"""SimCLR (arXiv 2002.05709): keys with gradient, all other views of a batch of 4,096 are negatives.

Published: 69.3 % linear top-1 on ImageNet after 1,000 epochs, 66.6 after 200 at batch 8,192.
"""

moco_v3 = replace(
    simclr,
    name="moco_v3",
    pretext=TwoViews(replace(MOCO_V3_FIRST, scale=(0.2, 1.0)), replace(MOCO_V3_SECOND, scale=(0.2, 1.0))),
    head=MLP((4096, 256), norm="all"),
    predictor=MLP((4096, 256), norm="hidden", bias=False),
    keys=Momentum(0.99, symmetric=True, shuffle=False, rising=True),
    dictionary=InBatch(),
    objective=InfoNCE(1.0, weight=2.0),
    optimizer=LARS(0.3, weight_decay=1e-6),  # 1.5e-6 and momentum 0.996 for 1,000 epochs
    schedule=Cosine(warmup=10 / 300),
    length=Length(epochs=300),
)
"""MoCo v3 (arXiv 2104.02057) with ResNet-50: no queue, both directions, a predictor, momentum rising to 1.

Published: 72.8 % linear top-1 on ImageNet after 300 epochs.
"""

moco_v3_vit = replace(
    moco_v3,
    name="moco_v3_vit",
    pretext=TwoViews(MOCO_V3_FIRST, MOCO_V3_SECOND),
    model=ViT(frozen_patches=True),
    head=MLP((4096, 4096, 256), norm="all"),
    predictor=MLP((4096, 256), norm="all"),
    objective=InfoNCE(0.2, weight=0.4),
    optimizer=AdamW(lr=1.5e-4, weight_decay=0.1, decay="all"),
    schedule=Cosine(warmup=40 / 300),
)
"""MoCo v3 (arXiv 2104.02057) with ViT-S, whose patch projection stays random.

Published: 73.2 % linear top-1 on ImageNet after 300 epochs.
"""

nnclr = replace(
    simclr,
    name="nnclr",
    head=MLP((2048, 2048, 256), norm="all"),
    predictor=MLP((4096, 256), norm="hidden"),
    dictionary=Neighbours(98304),
)
"""NNCLR (arXiv 2104.14548): the nearest of 98,304 earlier keys to one view's key asks for the other view.

Published: 75.4 % linear top-1 on ImageNet after 1,000 epochs.
"""

supcon = replace(
    moco_cifar,
    name="supcon",
    pretext=TwoViews(replace(MOCO_CIFAR, scale=(0.2, 1.0))),
    model=ResNet("resnet50", stem="small"),
    head=MLP((2048, 128)),
    keys=EndToEnd(),
    dictionary=InBatch(queries=True),
    objective=SupCon(0.1, weight=0.5 * 0.1 / 0.07),
    optimizer=SGD(lr=0.5 * 256 / 1024, momentum=0.9, weight_decay=1e-4),
    schedule=Cosine(warmup=10 / 1000, start=0.02, floor=1e-3),
    length=Length(epochs=1000),
    batch=1024,
    group=128,
)
"""Supervised contrast (arXiv 2004.11362), as SupContrast's code trains CIFAR-10: labels say what is alike.

Half of each direction is its mean over views; the code multiplies that by temperature / 0.07.
Published: 96.0 % linear top-1 on CIFAR-10 with ResNet-50 after 1,000 epochs.
"""


masked_moco = replace(
    moco_v3_vit,
    name="masked_moco",
    pretext=Masked(moco_v3_vit.pictures.first, moco_v3_vit.pictures.second, share=0.6),
    reconstruction=Decoder(width=192, depth=2, heads=6, weight=1.0),
    keys=Momentum(0.99, rising=True),
    dictionary=Queue(65536),
    objective=InfoNCE(0.2),
)
"""MoCo v3's ViT-S with a masked query, a queue, and beside it MAE's reconstruction; nothing is published of it.

The query sees 40 % of the patches of its crop, its key the whole of another. One direction, so that a step costs
a third of MoCo v3's.
"""

mae = replace(
    moco_v3_vit,
    name="mae",
    pretext=Masked(ImageView(), share=0.75, same=True),
    model=ViT(width=768),
    head=MLP(()),
    predictor=None,
    reconstruction=Decoder(),
    keys=Alone(),
    dictionary=InBatch(),
    optimizer=AdamW(lr=1.5e-4, weight_decay=0.05, betas=(0.9, 0.95)),
    schedule=Cosine(warmup=40 / 1600),
    length=Length(epochs=1600),
)
"""The masked autoencoder (arXiv 2111.06377) with ViT-B: three quarters are hidden, and painted from the rest.

Published: 83.6 % on ImageNet after fine-tuning, of 1,600 epochs.
"""


def smaller(recipe: Recipe) -> SmallRecipe:
    """The method of ``recipe`` at the size of ``small``, for processors: its views, model, batch and optimizer.

    Runs of minutes are short: a twin of momentum 0.999 would hardly move.
    """
    views, keys, decoder = small.pictures, recipe.keys, recipe.reconstruction
    vit = recipe.model if isinstance(recipe.model, ViT) else None
    pretext = replace(recipe.pictures, first=views.first, second=None, whole=views.whole)
    return replace(
        small,
        name=f"small_{recipe.name}",
        pretext=replace(pretext, patch=4) if isinstance(pretext, Masked) else pretext,
        model=replace(vit, width=96, depth=4, heads=3, patch=4, pool="mean") if vit else small.model,
        optimizer=AdamW(1e-3, weight_decay=0.1) if vit else small.optimizer,
        head=_narrow(recipe.head),
        predictor=_narrow(recipe.predictor) if recipe.predictor else None,
        reconstruction=replace(decoder, width=48, depth=1, heads=3) if isinstance(decoder, Decoder) else None,
        keys=replace(keys, momentum=min(keys.momentum, 0.99)) if isinstance(keys, Momentum) else keys,
        dictionary=_shorter(recipe.dictionary),
        objective=recipe.objective,
    )


def _shorter(dictionary: DictionaryValue) -> DictionaryValue:
    """A queue of at most 4,096, which fills in minutes; at most 512 draws, whose rows cost more than the encoder."""
    if isinstance(dictionary, Queue):
        return replace(dictionary, size=min(dictionary.size, 4096))
    if isinstance(dictionary, MemoryBank) and dictionary.draws:
        return replace(dictionary, draws=min(dictionary.draws, 512))
    return dictionary


def _narrow(head: MLP) -> MLP:
    """Hidden layers of at most 512, and an embedding of at most 128."""
    hidden, last = head.widths[:-1], head.widths[-1:]
    return replace(head, widths=(*(min(width, 512) for width in hidden), *(min(width, 128) for width in last)))


small_simclr = replace(
    smaller(simclr),
    pretext=TwoViews(small.pictures.first, whole=small.pictures.whole, pairs=2),
    model=replace(SMALL, trained=3),
    head=MLP((128,)),
    objective=PolyView(0.1, weight=0.5),
    optimizer=Muon(0.042, vector_lr=1.4e-3),
    batch=128,
)
"""The default on a processor without an accelerator: the best kNN that ten minutes on two cores can buy.

In so short a run all views teach more than a queue and a twin save, and four of one picture more than two of two
pictures. A linear head leaves the backbone what two layers would keep for themselves (docs/results.md).
"""

wide_simclr = replace(
    small_simclr, name="wide_simclr", model=replace(SMALL, trained=3, widths=(64, 128, 256, 512)), batch=256
)
"""The default of an hour and 8,192 examples: twice as wide, and slower to begin with.

What the optimizer costs grows with the width and not with the batch, so the batch is larger (docs/results.md).
"""

small_moco_v3 = replace(smaller(moco_v3), objective=InfoNCE(0.2, weight=0.4))
"""At temperature 0.2: after three minutes kNN on held-out pictures was 42.5 %, at 1.0 40.1."""

_paints = smaller(mae)
small_mae = replace(
    _paints, pretext=replace(_paints.pictures, first=replace(_paints.pictures.first, jitter=0.0, gray=0.0))
)
"""Crops and mirror images, whose colours stay, since colours are what it paints."""

FAMILY = (instdisc, instdisc_softmax, simclr, moco_v3, moco_v3_vit, nnclr, supcon, masked_moco, mae)
