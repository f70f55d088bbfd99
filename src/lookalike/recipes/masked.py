"""Masked pictures: contrasted with the whole, painted, or both."""

from __future__ import annotations

from dataclasses import replace

from lookalike.learn.alone import Alone
from lookalike.learn.dictionary import InBatch, Queue
from lookalike.learn.keys import Momentum
from lookalike.learn.objective import InfoNCE
from lookalike.learn.optim import AdamW, Cosine
from lookalike.models.decoder import Decoder
from lookalike.models.heads import MLP
from lookalike.models.vit import ViT
from lookalike.pretext.image import ImageView
from lookalike.pretext.mask import Masked
from lookalike.recipes.family import moco_v3_vit, smaller
from lookalike.recipes.recipe import Length

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

_paints = smaller(mae)
small_mae = replace(
    _paints, pretext=replace(_paints.pictures, first=replace(_paints.pictures.first, jitter=0.0, gray=0.0))
)
"""Crops and mirror images, whose colours stay, since colours are what it paints."""
