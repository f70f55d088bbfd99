"""An augmentation of your own: any function from a PIL picture to a square one, as torchvision's transforms are.

Each view is a function of seed, epoch, picture and number of the view, as long as the function draws from torch, numpy
or ``random``. Leave out Normalize: it follows. The run opens without the function, which only more training needs.
"""

from torchvision.transforms import v2

import lookalike

tilted = v2.Compose(
    [
        v2.RandomResizedCrop(16, scale=(0.5, 1.0)),
        v2.RandomRotation(20),
        v2.ColorJitter(brightness=0.8, contrast=0.8),
        v2.GaussianBlur(3),
    ]
)

if __name__ == "__main__":
    lookalike.pretrain("digits", "runs/own_view", recipe="digits", view=tilted, batch=32, steps=20)
    print(lookalike.evaluate("runs/own_view", "digits", "knn", k=20))
