"""torchvision's Faster R-CNN on what ``lookalike export RUN --to torchvision --out FOLDER`` wrote of a ResNet.

python detect_in_torchvision.py FOLDER resnet50 trains it on one made picture, to show that all parts fit.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone


def detector(folder: str, name: str, classes: int, side: int = 320) -> FasterRCNN:
    """It sees pictures as the backbone did; ``classes`` count the background."""
    backbone = resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=5)
    found = backbone.body.load_state_dict(load_file(f"{folder}/model.safetensors"), strict=False)
    assert not found.missing_keys, found.missing_keys
    seen = json.loads(Path(folder, "preprocessor_config.json").read_text())
    sizes = {"min_size": side, "max_size": 2 * side}
    return FasterRCNN(backbone, classes, image_mean=seen["image_mean"], image_std=seen["image_std"], **sizes)


def main(folder: str, name: str, steps: int = 5) -> None:
    """A bright square is the one thing to find."""
    torch.manual_seed(0)
    picture = 0.2 * torch.rand(3, 96, 96)
    picture[:, 20:60, 30:80] += 0.7
    target = {"boxes": torch.tensor([[30.0, 20.0, 80.0, 60.0]]), "labels": torch.tensor([1])}
    net = detector(folder, name, classes=2, side=96).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.005, momentum=0.9)
    for step in range(steps):
        losses = net([picture], [target])
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {float(loss):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
