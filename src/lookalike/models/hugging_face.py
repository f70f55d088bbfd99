"""Encoders for text that transformers wrote: a folder of config.json, safetensors and tokenizer.json; no code runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookalike.core.errors import BAD_DATA, IO, USAGE, UserError
from lookalike.models.text import CounterDropout, Packing, Pool, pooled

HUB = "hub:"
FILES = ("config.json", "*.safetensors", "model.safetensors.index.json", "tokenizer.json")


@dataclass(frozen=True)
class HuggingFace:
    """The encoder in ``folder``, or ``hub:owner/name``, the one case that uses the network.

    Features are those of the first token (SimCSE), or the mean over tokens. A run keeps its own copy of the weights,
    but the folder says what the network is: it must stay. ``dropout`` is of hidden units, not of attention weights.
    """

    folder: str = ""
    dropout: float = 0.1
    pool: Pool = "first"

    def build(self, group: int) -> tuple[nn.Module, int]:
        """The published weights and F; raises UserError where the folder or the package transformers is missing."""
        net = _loaded(located(self.folder), self.dropout)
        return HuggingFaceBackbone(net, self), int(net.config.hidden_size)

    def tokenizer(self) -> str:
        """The JSON of the tokenizer that belongs to the encoder; raises UserError."""
        try:
            return (located(self.folder) / "tokenizer.json").read_text("utf-8")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.folder}: no tokenizer.json that can be read ({error}); "
                "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one",
                BAD_DATA,
            ) from None


class HuggingFaceBackbone(nn.Module):
    """Its dropout is replaced by one that counters decide, so that a step repeats on any number of processes."""

    def __init__(self, net: nn.Module, spec: HuggingFace) -> None:
        super().__init__()
        self.net, self.pool, self.share = net, spec.pool, spec.dropout
        if getattr(net, "pooler", None) is not None:
            net.register_module("pooler", None)  # nothing reads it, so nothing would train it
        self._sites = _replace_dropouts(net)

    def forward(self, tokens: Tensor, attend: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, L) → (B, F); what ``attend`` leaves out is ignored. Units drop out where ``noise`` (B,) is given."""
        return pooled(self.tokens(tokens, attend, noise), attend, self.pool)

    def tokens(self, tokens: Tensor, attend: Tensor, noise: Tensor | None = None) -> Tensor:
        """(T, F) the last layer, for the tokens that are attended to, example by example."""
        everywhere = Packing(torch.ones_like(attend), torch.arange(attend.numel(), device=attend.device))
        place = (attend.cumsum(1) - 1).flatten()
        dropout = CounterDropout.of(noise, everywhere, place, self.share, len(self._sites))
        for site in self._sites:
            site.dropout = dropout
        try:
            last: Tensor = self.net(input_ids=tokens, attention_mask=attend.long()).last_hidden_state
        finally:
            for site in self._sites:
                site.dropout = None
        return last[attend]


class _DropoutSite(nn.Module):
    """Stands where a dropout stood; does nothing outside of ``HuggingFaceBackbone.tokens``."""

    p = 0.0  # for attention, which asks its dropout for the share and drops weights by itself

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.dropout: CounterDropout | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) → the same."""
        return x if self.dropout is None else self.dropout(x.flatten(0, 1), self.number).view_as(x)


def _replace_dropouts(net: nn.Module) -> list[_DropoutSite]:
    """Replace every dropout below ``net``, in the order of its modules."""
    sites: list[_DropoutSite] = []
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                sites.append(_DropoutSite(len(sites)))
                setattr(module, name, sites[-1])
    return sites


def located(folder: str) -> Path:
    """The folder of an encoder; raises UserError."""
    if not folder:
        raise UserError("name the folder of an encoder with --model.folder, or hub:owner/name", USAGE)
    if folder.startswith(HUB):
        return _fetched(folder.removeprefix(HUB))
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder}: no encoder, it has no config.json; name what save_pretrained wrote", BAD_DATA)
    return Path(folder)


def _fetched(name: str) -> Path:
    """A snapshot of a model on the Hub in the Hub's own cache: weights as safetensors, nothing that could run."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # of HTTP, of the Hub and of the cache: a dozen classes that change with its versions
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{HUB}{name} cannot be fetched ({type(error).__name__}: {reason})", IO) from None


def _loaded(folder: Path, dropout: float) -> Any:
    """The network with its weights. Attention's own dropout draws from a generator, so it is off."""
    try:
        from transformers import AutoConfig, AutoModel
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        raise UserError(
            "Hugging Face's encoders need the package transformers: pip install 'lookalike[text]'"
        ) from None
    disable_progress_bar()
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with torch.device("cpu"):
            config = AutoConfig.from_pretrained(folder, **safe)
            for name in ("attention_probs_dropout_prob", "attention_dropout"):
                if hasattr(config, name):
                    setattr(config, name, 0.0)
            return AutoModel.from_pretrained(folder, config=config, use_safetensors=True, dtype=torch.float32, **safe)
    except Exception as error:  # whatever a config or a file of weights makes transformers raise
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{folder}: no encoder that can be loaded ({type(error).__name__}: {reason})", BAD_DATA
        ) from None
