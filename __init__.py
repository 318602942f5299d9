"""TWIG: two-step diffusion that keeps a picture's meaning and leaves its source's shape."""

from ._version import __version__
from .engine.aio import AsyncEngine
from .engine.backends.options import TorchOptions
from .engine.calibration import Calibration
from .engine.engine import Engine
from .engine.errors import (
    BackendError,
    CheckpointError,
    EngineBusyError,
    EngineClosedError,
    InvalidRequestError,
    NonFiniteLatentError,
    TwigError,
)
from .engine.presets import Preset
from .engine.registry import Registry
from .engine.request import (
    Avoidance,
    DelayedGuidance,
    Framing,
    Gate,
    GenerationRequest,
    InitialNoise,
    MaskedAttention,
    MaskedNoise,
    MovedControl,
    Repulsion,
    SimilarityPolicy,
    Solver,
    Stage,
)
from .engine.result import GateDecision, GenerationResult, Score, Verdict
from .engine.rules import Rule

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
