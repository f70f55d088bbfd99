"""Recipes for text: a sentence under two dropout masks, the two texts of a pair, a picture and its caption."""

from __future__ import annotations

from dataclasses import replace

from lookalike.learn.dictionary import InBatch, Queue, QueueEach
from lookalike.learn.keys import Alone, EndToEnd, Momentum
from lookalike.learn.objective import InfoNCE
from lookalike.learn.optim import AdamW, Cosine, Linear
from lookalike.models.decoder import Words
from lookalike.models.encoder import MLP
from lookalike.models.hugging_face import HuggingFace
from lookalike.models.image import SmallResNet
from lookalike.models.text import Transformer, TwoTowers
from lookalike.pretext.text import Captions, Cloze, Pairs, SameSentence
from lookalike.recipes.images import SmallRecipe, small
from lookalike.recipes.recipe import Length, Recipe

simcse = SmallRecipe(
    name="simcse",
    pretext=SameSentence(),
    model=Transformer(width=128, depth=2),
    head=MLP((128,)),
    whiten=True,
    keys=EndToEnd(symmetric=False),
    dictionary=InBatch(),
    objective=InfoNCE(0.05),
    optimizer=AdamW(lr=1e-3),
    schedule=Cosine(warmup=0.05),
    length=Length(minutes=10),
    batch=128,
    group=1,
    checkups=5,
)
"""SimCSE without labels (arXiv 2104.08821, section 3) on a transformer that starts from nothing, for processors.

As published: two dropout masks of 0.1, keys with gradient, the other sentences of the batch as negatives,
temperature 0.05.
"""

moco_text = replace(simcse, name="moco_text", keys=Momentum(0.99, shuffle=False), dictionary=Queue(4096))
"""The same with a twin that makes keys and a queue of 4,096 of them (MoCo, arXiv 1911.05722)."""

text_pairs = replace(simcse, name="text_pairs", pretext=Pairs(), keys=EndToEnd())
"""Supervised SimCSE (arXiv 2104.08821, section 4) without its hard negatives: the texts of a pair are alike."""

mlm = replace(simcse, name="mlm", pretext=Cloze(), head=MLP(()), reconstruction=Words(), keys=Alone())
"""A masked language model (BERT, arXiv 1810.04805) of the same transformer: what --init-from may start from."""

simcse_bert = Recipe(
    name="simcse_bert",
    pretext=simcse.pretext,
    model=HuggingFace(),
    head=MLP((768,), tanh=True),
    keys=simcse.keys,
    dictionary=simcse.dictionary,
    objective=simcse.objective,
    optimizer=AdamW(lr=3e-5 * 256 / 64, weight_decay=0.0),
    schedule=Linear(),
    length=Length(epochs=1),
    batch=64,
    group=1,
    checkups=5,
)
"""SimCSE without labels as published for BERT-base: batch 64, AdamW 3e-5, one epoch, 32 tokens.

Name the encoder: --model.folder FOLDER. Published: Spearman 76.25 % over seven sets of similarities.
"""

_tower = small.model
assert isinstance(_tower, SmallResNet)

moco_captions = replace(
    small,
    name="moco_captions",
    pretext=Captions(replace(small.pictures.first, scale=(0.5, 1.0), jitter=0.0, gray=0.0), whole=small.pictures.whole),
    model=TwoTowers(_tower, Transformer(width=_tower.widths[-1], depth=2)),
    whiten=False,
    keys=Momentum(0.99, symmetric=True, shuffle=False),  # a text's query has no statistics that a key could leak by
    dictionary=QueueEach(4096),
    optimizer=AdamW(lr=6e-4 * 256 / small.batch),
    steady=True,  # 6e-4 a step whatever the batch: less does not learn
    checkups=0,
)
"""A picture finds its caption among a queue of captions, and a caption its picture among a queue of pictures.

As ALBEF's contrast (arXiv 2107.07651, section 3.2), with the network of ``small`` and a transformer that starts
from nothing. Views keep their colours, which captions name.
"""

TEXT = (simcse, moco_text, text_pairs, mlm, simcse_bert, moco_captions)
