"""An objective of your own: how a query is scored against its positive and the entries of the dictionary."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

import lookalike
from lookalike.learn.entries import Entries
from lookalike.learn.objective import Objective


@lookalike.part
@dataclass(frozen=True)
class Hinge(Objective):
    """The positive should be nearer than every entry, by ``margin``."""

    margin: float = 0.5

    def score(self, query: Tensor, entries: Entries) -> Tensor:
        """The mean over B queries, of products of unit rows."""
        positive = (query * entries.positive).sum(1, keepdim=True)
        return F.relu(self.margin - positive + query @ entries.negatives.T).mean()

    def chance_loss(self, negatives: int) -> float:
        """The loss where all products are equal: what training starts near."""
        return self.margin


if __name__ == "__main__":
    settings = {"objective": Hinge(margin=0.8), "optimizer.lr": 1e-3}
    lookalike.pretrain("digits", "runs/own_objective", recipe="digits", settings=settings, batch=64, steps=30)
    print(lookalike.evaluate("runs/own_objective", "digits", "knn", k=20))
