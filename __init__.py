"""TWIG: two-step diffusion that keeps a picture's meaning and leaves its source's shape."""

from ._version import __version__
from .engine.aio import AsyncEngine
from .engine.api.calibration import Calibration
from .engine.api.errors import (
    BackendError,
    CheckpointError,
    EngineBusyError,
    EngineClosedError,
    InvalidRequestError,
    NonFiniteLatentError,
    TwigError,
)
from .engine.api.mechanisms import (
    Avoidance,
    DelayedGuidance,
    InitialNoise,
    MaskedAttention,
    MaskedNoise,
    MovedControl,
    Repulsion,
)
from .engine.api.presets import Preset
from .engine.api.request import Framing, Gate, GenerationRequest, SimilarityPolicy
from .engine.api.result import GateDecision, GenerationResult, Score, Verdict
from .engine.api.rules import Rule
from .engine.api.settings import Solver, Stage
from .engine.backends.options import TorchOptions
from .engine.engine import Engine
from .engine.judging.registry import Registry

__all__ = [
    "AsyncEngine",
    "Avoidance",
    "BackendError",
    "Calibration",
    "CheckpointError",
    "DelayedGuidance",
    "Engine",
    "EngineBusyError",
    "EngineClosedError",
    "Framing",
    "Gate",
    "GateDecision",
    "GenerationRequest",
    "GenerationResult",
    "InitialNoise",
    "InvalidRequestError",
    "MaskedAttention",
    "MaskedNoise",
    "MovedControl",
    "NonFiniteLatentError",
    "Preset",
    "Registry",
    "Repulsion",
    "Rule",
    "Score",
    "SimilarityPolicy",
    "Solver",
    "Stage",
    "TorchOptions",
    "TwigError",
    "Verdict",
    "__version__",
]
