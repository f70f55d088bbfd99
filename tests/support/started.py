"""Counts what a GPU would be asked for: operations that are not mere views, and how many kernels ours start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


class Started(TorchDispatchMode):
    """Of what runs inside; ``kernels`` says how many one operator stands for, where it is not one."""

    def __init__(self, kernels: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.kernels = kernels or {}
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operator: OpOverload, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = operator._schema.name
        allocates = name.removeprefix("aten::").startswith(("empty", "new_empty"))
        if not (operator.is_view or allocates or name.startswith(("prim::", "profiler::"))):
            self.operations[name] += self.kernels.get(name, 1)
        return operator(*args, **(kwargs or {}))
