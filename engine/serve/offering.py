"""What a client may ask for here, so that it need not find out by being refused."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ..api.choices import Preset
from ..study.findings import Findings, PresetFindings
from .config import ServeConfig
from .served import Served, picked
from .service import Generating, service_of
from .tightening import presets_from

_TOLD = {"name", "count", "close", "low", "high", "kept", "rows", "seconds"}

router = APIRouter()


def study_of(config: ServeConfig) -> dict[str, Any] | None:
    """The trade-off that the operator's last study of a view's model found, None where no study is named.

    Numbers alone, for those who draw here: no work, prompt, limit or price. Raises ForeignFileError for what is none.
    """
    if config.page.study is None:
        return None
    found = Findings.load(config.page.study)
    known = {one.name for one in found.presets} & {str(preset) for preset in Preset}
    return {
        "date": found.made.date().isoformat(),
        "model": found.model,
        "prompts": found.prompts,
        "works": found.works,
        "finished": found.finished,
        "recommended": found.recommended,
        "presets": [_point(one) for one in found.presets if one.name in known],
    }


@router.get("/v1/twig/settings")
async def settings(request: Request, key: Generating, model: str | None = None) -> Response:
    """Presets, rule, settings, bounds and study of a model, the first unless it is named, and what this key opens."""
    service = service_of(request)
    served = picked(service.models, model)
    study = request.app.state.studies[served.name]
    models = [each.name for each in service.each]
    told = _settings(served) | {"models": models, "roles": list(key.roles), "study": study}
    return JSONResponse(told, headers={"cache-control": "no-store"})


def _settings(served: Served) -> dict[str, Any]:
    config, (height, width) = served.config, served.asking.size
    drawing, bounds = config.drawing, config.bounds
    return {
        "object": "twig.settings",
        "model": served.name,
        "calibrated": served.asking.calibrated,
        "size": {"width": width, "height": height},
        "adapters": sorted(config.model.adapters),
        "preset": drawing.preset,
        "presets": presets_from(drawing.preset),
        "rule": drawing.rule,
        "review": drawing.review,
        "steps": drawing.steps,
        "guidance": drawing.guidance,
        "bounds": bounds.model_dump(include={"images", "steps", "pixels", "upload", "upload_pixels", "drafts"}),
    }


def _point(one: PresetFindings) -> dict[str, Any]:
    return one.model_dump(include=_TOLD)
