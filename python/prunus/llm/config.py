"""What a model of the Llama family looks like: its sizes, and how positions turn into rotations.

Names are those of Hugging Face's ``config.json``. A model whose description asks for anything else than is
built here is refused by name, never run as something else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np

from prunus._dtypes import Array
from prunus._errors import PrunusError

__all__ = ["FAMILY", "Config", "Rope", "UnsupportedModelError"]

FAMILY: Final = ("llama", "mistral", "qwen2")
_SCALINGS: Final = ("none", "linear", "llama3", "yarn")
# What GGUF files may say of yarn, and what it is where it changes nothing.
_YARN: Final = {
    "attn_factor": 1.0,
    "yarn_attn_factor": 1.0,
    "yarn_ext_factor": 1.0,
    "yarn_log_multiplier": 0.0,
}


class UnsupportedModelError(PrunusError):
    """The model has something that is not built here; the message says what."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embeddings (Su et al., 2021, arXiv:2104.09864), and how they are stretched.

    Attributes
    ----------
    theta : float
        Base of the wavelengths.
    scaling : {"none", "linear", "llama3", "yarn"}
        How positions past the trained length are squeezed in: by a factor for all wavelengths ("linear":
        Chen et al., 2023, arXiv:2306.15595), for long ones ("llama3", as Meta's Llama 3.1 does), or by
        a ramp between both with hotter attention ("yarn": Peng et al., 2023, arXiv:2309.00071).
    factor : float
        By how much.
    original : int
        The trained length that "llama3" and "yarn" go by.
    low, high : float
        Where the ramp begins and ends: of "llama3" ``low_freq_factor`` and ``high_freq_factor``, of "yarn"
        ``beta_slow`` and ``beta_fast``.
    attention : float
        Factor of sines and cosines; 0: what the method's paper gives.
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    attention: float = 0.0

    def frequencies(self, head_dim: int) -> Array:
        """Return the angle that each pair of a head's values turns by from one position to the next.

        Returns
        -------
        ndarray of float64
            Shape (head_dim / 2,).
        """
        plain: Array = 1.0 / self.theta ** (np.arange(0, head_dim, 2) / head_dim)
        if self.scaling == "none":
            return plain
        if self.scaling == "linear":
            return plain / self.factor
        if self.scaling == "llama3":
            turns = self.original * plain / (2 * math.pi)
            share = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
            return np.asarray(plain * (share + (1 - share) / self.factor))
        first, last = self._ramp(head_dim)
        share = 1 - np.clip((np.arange(head_dim // 2) - first) / max(last - first, 1e-3), 0, 1)
        return np.asarray(plain * (share + (1 - share) / self.factor))

    def _ramp(self, head_dim: int) -> tuple[float, float]:
        """Return the pairs between which "yarn" goes over from no squeezing to all of it."""

        def pair(turns: float) -> float:
            return head_dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        return max(math.floor(pair(self.high)), 0), min(math.ceil(pair(self.low)), head_dim - 1)

    @property
    def scale(self) -> float:
        """Factor of sines and cosines."""
        if self.scaling != "yarn":
            return 1.0
        return self.attention or 0.1 * math.log(max(self.factor, 1.0)) + 1.0

    def check(self) -> None:
        """Raise UnsupportedModelError unless it can be computed."""
        if self.scaling not in _SCALINGS:
            raise UnsupportedModelError(
                f"rope scaling {self.scaling!r}; built here are {', '.join(_SCALINGS)}"
            )
        told = {"theta": self.theta > 1, "factor": self.factor > 0, "attention": self.attention >= 0}
        if self.scaling in ("llama3", "yarn"):
            told |= {"original": self.original > 0, "low": self.low > 0, "high": self.high > self.low}
        for name, right in told.items():
            if not (right and math.isfinite(getattr(self, name))):
                raise UnsupportedModelError(f"rotary positions with {name}={getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes and constants of a model.

    Attributes
    ----------
    model_type : str
        One of :data:`FAMILY`.
    hidden_size, intermediate_size : int
        Values of a token between layers, and hidden units of a feed-forward layer.
    num_hidden_layers : int
        Layers.
    num_attention_heads, num_key_value_heads, head_dim : int
        Heads of queries, heads of keys and values that they share, and values of each.
    vocab_size : int
        Tokens that it knows.
    max_position_embeddings : int
        The longest context in tokens.
    rms_norm_eps : float
        What is added to a mean square before its root divides.
    rope : Rope
        Positions.
    tie_word_embeddings : bool
        Whether the output matrix is the table of embeddings.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("model_type", "rope", "tie_word_embeddings"):
                continue
            if not value > 0:
                raise UnsupportedModelError(f"the model's {name} must be above 0, got {value!r}")
        if self.model_type not in FAMILY:
            raise UnsupportedModelError(
                f"a model of the architecture {self.model_type!r}; built here are {', '.join(FAMILY)}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise UnsupportedModelError(
                f"{self.num_attention_heads} heads cannot share {self.num_key_value_heads} heads of keys"
            )
        if self.head_dim % 2:
            raise UnsupportedModelError(f"head_dim must be even for rotations, got {self.head_dim}")
        self.rope.check()

    @property
    def query_size(self) -> int:
        """Values of all heads of queries."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Values of all heads of keys; as many as of values."""
        return self.num_key_value_heads * self.head_dim

    # As text -------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what :meth:`to_json` wrote.

        Raises
        ------
        UnsupportedModelError
            If it is something else.
        """
        try:
            found = json.loads(text)
            return cls(**{**found, "rope": Rope(**found["rope"])})
        except (TypeError, KeyError, ValueError) as error:
            raise UnsupportedModelError(f"the model's description is damaged: {error}") from error

    # Other formats -------------------------------------------------------------------------------------

    @classmethod
    def from_hugging_face(cls, found: Mapping[str, Any]) -> Self:
        """Return what a ``config.json`` says.

        Raises
        ------
        UnsupportedModelError
            If it describes a model that is not built here, or lacks something.
        """
        kind = str(found.get("model_type", "(none)"))
        if kind not in FAMILY:
            raise UnsupportedModelError(
                f"a model of the architecture {kind!r}; built here are {', '.join(FAMILY)}"
            )
        if found.get("hidden_act", "silu") != "silu":
            raise UnsupportedModelError(f"the activation {found['hidden_act']!r}; built here is 'silu'")
        if found.get("mlp_bias"):
            raise UnsupportedModelError("biases in feed-forward layers (mlp_bias)")
        if found.get("partial_rotary_factor") not in (None, 1):
            raise UnsupportedModelError("rotations of a part of each head only (partial_rotary_factor)")
        try:
            heads, size = int(found["num_attention_heads"]), int(found["hidden_size"])
            context = int(found["max_position_embeddings"])
            # What is out of the window is not forgotten here, so the context ends with it.
            window = found.get("sliding_window") if found.get("use_sliding_window", True) else None
            return cls(
                model_type=kind,
                hidden_size=size,
                intermediate_size=int(found["intermediate_size"]),
                num_hidden_layers=int(found["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(found.get("num_key_value_heads") or heads),
                head_dim=int(found.get("head_dim") or size // heads),
                vocab_size=int(found["vocab_size"]),
                max_position_embeddings=min(context, int(window)) if window else context,
                rms_norm_eps=float(found.get("rms_norm_eps", 1e-6)),
                rope=_rope(found),
                tie_word_embeddings=bool(found.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            raise UnsupportedModelError(f"config.json has no {error.args[0]!r}") from error
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise UnsupportedModelError(f"config.json is damaged: {error}") from error

    @classmethod
    def from_gguf(cls, fields: Mapping[str, Any], vocabulary: int, *, tied: bool, factors: Any) -> Self:
        """Return what the fields of a GGUF file say.

        Parameters
        ----------
        fields : mapping
            The file's fields by name.
        vocabulary : int
            Rows of the table of embeddings.
        tied : bool
            Whether there is no output matrix.
        factors : array_like, optional
            The tensor ``rope_freqs.weight``: what each wavelength is stretched by ("llama3").

        Raises
        ------
        UnsupportedModelError
            If it describes a model that is not built here, or lacks something.
        """
        kind = str(fields.get("general.architecture", "(none)"))
        if kind not in FAMILY:
            raise UnsupportedModelError(
                f"a GGUF file of the architecture {kind!r}; built here are {', '.join(FAMILY)}"
            )

        def get(name: str, default: Any = None) -> Any:
            value = fields.get(f"{kind}.{name}", default)
            if value is None:
                raise UnsupportedModelError(f"the GGUF file has no field {kind}.{name}")
            return value

        for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
            if isinstance(fields.get(f"{kind}.{name}"), list):
                raise UnsupportedModelError(f"layers that differ from each other ({kind}.{name})")
        try:
            if int(get("expert_count", 0)):
                raise UnsupportedModelError("a mixture of experts; built here are dense feed-forward layers")
            size, heads = int(get("embedding_length")), int(get("attention.head_count"))
            head_dim = int(get("attention.key_length", size // heads))
            if int(get("attention.value_length", head_dim)) != head_dim:
                raise UnsupportedModelError("values and keys of different sizes")
            if int(get("rope.dimension_count", head_dim)) != head_dim:
                raise UnsupportedModelError("rotations of a part of each head only")
            context, window = int(get("context_length")), int(get("attention.sliding_window", 0))
            theta = float(get("rope.freq_base", 10000.0))
            factor = float(get("rope.scaling.factor", get("rope.scale_linear", 1.0)))
            # A factor alone means this kind, as in llama.cpp.
            scaling = str(get("rope.scaling.type", "none" if factor == 1.0 else "linear"))
            for name, plain in _YARN.items():
                if scaling == "yarn" and float(get(f"rope.scaling.{name}", plain)) != plain:
                    raise UnsupportedModelError(f"yarn with {name}")
            if factors is not None:
                rope = _from_factors(np.asarray(factors, np.float64), theta, head_dim)
            elif scaling == "yarn":
                ends = get("rope.scaling.yarn_beta_slow", 1.0), get("rope.scaling.yarn_beta_fast", 32.0)
                original = int(get("rope.scaling.original_context_length", context))
                rope = Rope(theta, scaling, factor, original, *map(float, ends))
            else:
                rope = Rope(theta, scaling, factor)
            return cls(
                model_type=kind,
                hidden_size=size,
                intermediate_size=int(get("feed_forward_length")),
                num_hidden_layers=int(get("block_count")),
                num_attention_heads=heads,
                num_key_value_heads=int(get("attention.head_count_kv", heads)),
                head_dim=head_dim,
                vocab_size=vocabulary,
                max_position_embeddings=min(context, window) if window else context,
                rms_norm_eps=float(get("attention.layer_norm_rms_epsilon")),
                rope=rope,
                tie_word_embeddings=tied,
            )
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UnsupportedModelError(f"the GGUF file's fields are damaged: {error}") from error


def _rope(found: Mapping[str, Any]) -> Rope:
    """Return what a config.json says of positions, in the words of older and newer files."""
    told = found.get("rope_parameters") or found.get("rope_scaling") or {}
    theta = float(told.get("rope_theta", found.get("rope_theta", 10000.0)))
    kind = str(told.get("rope_type", told.get("type", "default")))
    if told.get("partial_rotary_factor") not in (None, 1):
        raise UnsupportedModelError("rotations of a part of each head only (partial_rotary_factor)")
    if kind == "default":
        return Rope(theta)
    original = int(told.get("original_max_position_embeddings", found["max_position_embeddings"]))
    factor = float(told.get("factor", 1.0))
    if kind == "yarn":
        known = {"rope_theta", "rope_type", "type", "factor", "original_max_position_embeddings",
                 "beta_fast", "beta_slow", "attention_factor", "partial_rotary_factor"}  # fmt: skip
        if strange := sorted(key for key in told if key not in known and told[key] is not None):
            raise UnsupportedModelError(f"yarn with {', '.join(strange)}")
        ends = float(told.get("beta_slow") or 1.0), float(told.get("beta_fast") or 32.0)
        return Rope(theta, kind, factor, original, *ends, float(told.get("attention_factor") or 0.0))
    if kind == "llama3":
        ends = float(told["low_freq_factor"]), float(told["high_freq_factor"])
        return Rope(theta, kind, factor, original, *ends)
    return Rope(theta, kind, factor, original)


def _from_factors(factors: Array, theta: float, head_dim: int) -> Rope:
    """Return the "llama3" scaling whose factors a GGUF file has tabulated.

    The ends of the ramp are those of all published models (1 and 4); the trained length is what fits.
    """
    most = float(factors.max())
    for original in (8192, 4096, 2048, 16384, 32768):
        rope = Rope(theta, "llama3", most, original, 1.0, 4.0)
        fitted = Rope(theta).frequencies(head_dim) / rope.frequencies(head_dim)
        if fitted.shape == factors.shape and np.allclose(fitted, factors, rtol=1e-4):
            return rope
    raise UnsupportedModelError("factors of wavelengths (rope_freqs.weight) of an unknown kind")
