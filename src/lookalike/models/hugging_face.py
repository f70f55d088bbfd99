"""Encoders that transformers wrote: a folder of config.json, safetensors and tokenizer.json; no code runs.

Of text, and of pictures, whose preprocessor_config.json says how they are seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lookalike.core.errors import BAD_DATA, IO, USAGE, Bounded, Limit, UserError, of_timm
from lookalike.core.files import whole
from lookalike.models.norm import group_norms
from lookalike.models.text import CounterDropout, Packing, Pool, pooled

HUB = "hub:"
FILES = ("config.json", "*.safetensors", "model.safetensors.index.json", "tokenizer.json")


@dataclass(frozen=True)
class HuggingFace(Bounded):
    """The encoder in ``folder``, or ``hub:owner/name``, the one case that uses the network.

    Features are those of the first token (SimCSE), or the mean over tokens. A run keeps its own copy of the weights,
    but the folder says what the network is: it must stay. ``dropout`` is of hidden units, not of attention weights.
    """

    folder: str = ""
    dropout: Annotated[float, Limit(0, 0.99)] = 0.1
    pool: Pool = "first"

    def build(self, group: int) -> tuple[nn.Module, int]:
        """The published weights and F; raises UserError where the folder or the package transformers is missing."""
        net = _loaded(located(self.folder), self.dropout)
        return HuggingFaceBackbone(net, self), int(net.config.hidden_size)

    def tokenizer(self) -> str:
        """The JSON of the tokenizer that belongs to the encoder; raises UserError."""
        try:
            return whole(located(self.folder) / "tokenizer.json").decode()
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


@dataclass(frozen=True)
class HuggingFacePictures:
    """The encoder of pictures in ``folder``; a run keeps its own weights, but the folder must stay, as above.

    Features are the encoder's pooled output, or those of its first token where that was trained for one task (ViT's).
    """

    folder: str = ""

    def build(self, group: int) -> tuple[nn.Module, int]:
        """The published weights and F, BatchNorm in groups of ``group`` examples; raises UserError."""
        net = _loaded(located(self.folder), 0.0)
        net = getattr(net, "vision_model", net)  # of two towers
        if hasattr(getattr(net, "pooler", None), "dense"):
            net.pooler = None
        width = getattr(net.config, "hidden_size", None) or net.config.hidden_sizes[-1]
        return group_norms(HuggingFacePicturesBackbone(net), group), int(width)

    def processor(self) -> Any:
        """transformers' image processor of the folder, for its numbers; raises UserError."""
        AutoImageProcessor = _transformers().AutoImageProcessor
        try:
            return AutoImageProcessor.from_pretrained(located(self.folder), **_SAFE)
        except Exception as error:  # as in _loaded
            reason = (str(error).splitlines() or [""])[0][:200]
            raise UserError(
                f"{self.folder}: no preprocessor_config.json that can be used ({reason})", BAD_DATA
            ) from None


class HuggingFacePicturesBackbone(nn.Module):
    """A network of transformers, called by keyword."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, F)."""
        out = self.net(pixel_values=pixels)
        pooled: Tensor | None = getattr(out, "pooler_output", None)
        features: Tensor = out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return features


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
    hub = of_timm("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # of HTTP, of the Hub and of the cache: a dozen classes that change with its versions
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{HUB}{name} cannot be fetched ({type(error).__name__}: {reason})", IO) from None


_SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def _transformers() -> Any:
    """The package, without its progress bars; raises UserError where it is missing."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            "Hugging Face's encoders need the package transformers: pip install 'lookalike[text]'"
        ) from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _loaded(folder: Path, dropout: float) -> Any:
    """The network with its weights. Attention's own dropout draws from a generator, so it is off."""
    transformers = _transformers()
    try:
        with torch.device("cpu"):
            config = transformers.AutoConfig.from_pretrained(folder, **_SAFE)
            for name in ("attention_probs_dropout_prob", "attention_dropout"):
                if hasattr(config, name):
                    setattr(config, name, 0.0)
            options: dict[str, Any] = {"config": config, "use_safetensors": True, "dtype": torch.float32}
            return transformers.AutoModel.from_pretrained(folder, **options, **_SAFE)
    except Exception as error:  # whatever a config or a file of weights makes transformers raise
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{folder}: no encoder that can be loaded ({type(error).__name__}: {reason})", BAD_DATA
        ) from None
