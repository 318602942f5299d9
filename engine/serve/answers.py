"""Results as clients of the OpenAI API read them, with Twig's measures, verdict and record beside each picture."""

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..api.portable import finite
from ..api.request import GenerationRequest
from ..api.result import GateDecision, GenerationResult, Score, Verdict
from ..records.drawing import label_picture, mask_picture
from ..records.explaining import closeness, explanation_record
from ..records.manifest import Manifest
from ..records.pictures import encoded
from ..records.sheets import contact_sheet
from ..records.wording import held_measures, why_text
from .bodies import ImageBody
from .errors import SERVER, ApiError
from .keeping import Kept

UNJUDGED = frozenset({Verdict.FAILED, Verdict.CANCELLED, Verdict.EXPIRED})
"""Verdicts of images that nothing was found out about."""

_QUALITY = 90


class Answer(NamedTuple):
    """A finished image and its record."""

    result: GenerationResult
    kept: Kept


class Answers:
    """Words answers to one request. deliver_reviews: whether pictures that are left to a person are shown.

    prompt_tokens: how many its prompt has. sign: gives a final's file content credentials of its record, where the
    operator has a certificate. The methods encode and sign, and belong into a thread.
    """

    def __init__(
        self,
        body: ImageBody,
        request: GenerationRequest,
        deliver_reviews: bool,
        prompt_tokens: int,
        sign: Callable[[bytes, Kept], bytes] | None = None,
    ) -> None:
        self.body, self.request, self.deliver_reviews = body, request, deliver_reviews
        self.prompt_tokens, self.sign = prompt_tokens, sign
        self.created = int(time.time())

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body that answers a plain request. Raises ApiError where there is no picture in it and it is of one."""
        ordered = sorted(answers, key=lambda answer: answer.result.index)
        self.check(ordered)
        return {
            "created": self.created,
            "background": "opaque",
            "output_format": self.body.format,
            "size": self._size([answer.result for answer in ordered]),
            "usage": self._usage(ordered),
            "data": [self._one(answer) for answer in ordered],
        }

    def completed(self, answer: Answer, name: str, first: bool) -> dict[str, Any]:
        """The event that ends a picture of the stream `name`, "image_generation" or "image_edit".

        first: whether it is the first of its stream, which counts what all have in common, so that the usage of all
        events is the request's.
        """
        event, usage = self._event(f"{name}.completed", answer.result.image), self._usage([answer], common=first)
        return event | self._one(answer) | {"usage": usage}

    def partial(self, image: Image.Image, number: int, name: str, told: dict[str, Any]) -> dict[str, Any]:
        """The event of a draft or a preview, `number` of the stream; `told`: what Twig says of it."""
        event = self._event(f"{name}.partial_image", image)
        return event | {"b64_json": _text(self._file(image)), "partial_image_index": number, "twig": told}

    def check(self, answers: Sequence[Answer]) -> None:
        """Raise ApiError where no answer holds a picture, and one of them says why: all of them, or the only one."""
        verdicts = {answer.result.verdict for answer in answers}
        if len(verdicts) > 1 or any(self._shown(answer.result) for answer in answers):
            return
        match verdicts.pop():
            case Verdict.EXPIRED:
                raise ApiError(504, "deadline_exceeded", f"not finished within {self.request.timeout:g} s", type=SERVER)
            case Verdict.CANCELLED:
                raise ApiError(
                    503, "cancelled", "the server stopped this request; try again", type=SERVER, retry_after=5
                )
            case Verdict.FAILED:
                message = "the engine could not draw this; its record says why"
                raise ApiError(500, "generation_failed", message, type=SERVER, more={"twig": self.told(answers[0])})
            case _ if len(answers) == 1:
                raise self._blocked(answers[0])

    def told(self, answer: Answer) -> dict[str, Any]:
        """What Twig says of an image: verdict and why, scores with their limits, gate, cost, record."""
        said = account(answer.result, answer.kept, brought=answer.result.request.source is not None)
        told: dict[str, Any] = finite(said | self._asked_for(answer))
        return told

    def _asked_for(self, answer: Answer) -> dict[str, Any]:
        """What is told to those alone who ask for it, where there is such a thing."""
        result, wanted, said = answer.result, self.body.twig, dict[str, Any]()
        if wanted.draft and result.draft is not None:
            said["draft"] = _text(self._file(result.draft))
        if wanted.mask and result.mask is not None:
            said["mask"] = mask_text(result.mask)
        if wanted.explain and result.explanation is not None:
            said["explanation"] = explanation_record(result) | {"maps": _maps(result)}
        if wanted.sheet:
            said["sheet"] = _png(contact_sheet([replace(result, image=self._shown(result))]))
        if wanted.manifest:
            said["manifest"] = _manifest(answer.kept)
        return said

    def _one(self, answer: Answer) -> dict[str, Any]:
        image, told = self._shown(answer.result), self.told(answer)
        signed = image is not None and self.sign is not None
        return {
            "b64_json": None if image is None else self._final(image, answer.kept),
            "twig": told | {"signed": signed},
        }

    def _final(self, image: Image.Image, kept: Kept) -> str:
        """A final's file, signed where there is something to sign with, as text."""
        file = self._file(image)
        return _text(file if self.sign is None else self.sign(file, kept))

    def _shown(self, result: GenerationResult) -> Image.Image | None:
        withheld = result.verdict is Verdict.REFUSED or (result.verdict is Verdict.REVIEW and not self.deliver_reviews)
        return None if withheld else result.image

    def _blocked(self, answer: Answer) -> ApiError:
        """The error of a picture that is refused, or left to a person, with the evidence."""
        told = self.told(answer)
        why = told["why"] or "the rule does not let it pass"
        return ApiError(
            400,
            "moderation_blocked",
            f"the picture was drawn and is not shown, its verdict is {told['verdict']}: {why}",
            type="image_generation_user_error",
            more={
                "moderation_details": {"moderation_stage": "output", "categories": ["similarity"]},
                "twig": told,
            },
        )

    def _event(self, type: str, image: Image.Image | None) -> dict[str, Any]:
        size = "auto" if image is None else f"{image.width}x{image.height}"
        return {
            "type": type,
            "created_at": self.created,
            "size": size,
            "quality": "auto",
            "background": "opaque",
            "output_format": self.body.format,
        }

    def _size(self, results: Sequence[GenerationResult]) -> str | None:
        image = next((result.image for result in results if result.image is not None), None)
        return None if image is None else f"{image.width}x{image.height}"

    def _usage(self, answers: Sequence[Answer], common: bool = True) -> dict[str, Any]:
        """Tokens in, rows of the UNet out. common: count prompt, draft and gate, which are there once."""
        rows = sum(attempt.rows for answer in answers for attempt in answer.result.attempts)
        tokens = self.prompt_tokens if common else 0
        if common:
            first = answers[0].result
            rows += first.rows - sum(attempt.rows for attempt in first.attempts)
        return {
            "input_tokens": tokens,
            "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
            "output_tokens": rows,
            "total_tokens": tokens + rows,
        }

    def _file(self, image: Image.Image) -> bytes:
        compression = self.body.output_compression
        return encoded(image, self.body.format, _QUALITY if compression is None else compression)


def account(judged: GenerationResult | Manifest, kept: Kept, brought: bool) -> dict[str, Any]:
    """What Twig says of every image: verdict and why, scores with their limits, gate, cost, record.

    brought: whether a photo took the draft's place. Distances may be infinite in it.
    """
    attempts = judged.attempts
    return {
        "verdict": judged.verdict,
        "why": why_text(judged, brought=brought) or None,
        "index": judged.index,
        "seed": judged.request.seed,
        "scores": _scores(attempts[-1].scores if attempts else {}, judged.rule),
        "gate": _gate(judged.gate),
        "rule": judged.rule,
        "attempts": len(attempts),
        "rows": judged.rows,
        "seconds": judged.timings,
        "record": kept.id,
        "manifest_sha256": kept.sha256,
    }


def mask_text(mask: np.ndarray) -> str:
    """A mask (H, W) as a PNG in base64, white where the draft's shape is kept away from."""
    picture = mask_picture(mask)
    assert picture is not None
    return _png(picture)


def _maps(result: GenerationResult) -> dict[str, str]:
    """Labels found and given to ControlNet, and heat where the final is close; none of them shows the final."""
    labels = {"labels": label_picture(result.label_map), "control": label_picture(result.control_map)}
    seen = {name: picture.convert("RGB") for name, picture in labels.items() if picture is not None}
    return {name: _png(picture) for name, picture in (seen | closeness(result)).items()}


def _png(picture: Image.Image) -> str:
    return _text(encoded(picture, "png"))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _gate(gate: GateDecision | None) -> dict[str, Any] | None:
    if gate is None:
        return None
    signals = {name: {"value": score.value, "limit": score.limit} for name, score in gate.signals.items()}
    return {"opened": gate.opened, "signals": signals}


def _scores(scores: Mapping[str, Score], rule: str) -> dict[str, Any]:
    """Each measure with its limit and the operator that crosses it, None where the rule says nothing of it."""
    held = {each.name: each for each in held_measures(scores, rule)}
    return {name: _score(score, held.get(name)) for name, score in scores.items()}


def _score(score: Score, held: Any) -> dict[str, Any]:
    if held is None:
        return {"value": score.value, "operator": None, "limit": None, "crossed": False}
    return {"value": held.value, "operator": held.operator, "limit": held.limit, "crossed": held.crossed}


def _manifest(kept: Kept) -> dict[str, Any]:
    """The manifest as it lies in the records, less where the model lies on this machine."""
    manifest: dict[str, Any] = json.loads(kept.path.read_bytes())
    places = dict.fromkeys(("source", "controlnet", "segmenter", "vae")) | {"controlnets": {}}
    metrics = {spec.partition("=")[0]: digest for spec, digest in manifest["metrics"].items()}
    return manifest | {"model": manifest["model"] | places, "metrics": metrics}
