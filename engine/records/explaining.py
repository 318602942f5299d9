"""An explanation for people and for programs: one picture with sentences, a record in JSON, and the arrays."""

import io
import json
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..api.errors import InvalidRequestError
from ..api.result import Explanation, GateDecision, GenerationResult
from .drawing import CELL, FAINT, FONT, GAP, INK, LINE, canvas, heat, label_picture, mask_picture, row_of_cells, stacked
from .wording import ending_text

ALIKE = 0.5
"""Structural similarity of a pixel's surroundings from which on they are called alike."""

_STRIP, _MOST_OPAQUE = 32, 220
_LETTERS = 124  # to a line


def explanation_picture(result: GenerationResult) -> Image.Image:
    """What was done to a result made with `explain=True`, and where its last attempt is still close to what.

    Sentences; the draft, the labels found in it, those given to ControlNet and the final; the mask and where the final
    is still like its draft (or source) and the nearest registered work, each as it lies best over the final; the
    attention each token received inside the mask without and with the rule, and what was taken away, over the steps
    (grey: no guided row ran); guidance, control, noise and rows at each step. Raises InvalidRequestError without an
    explanation.
    """
    explanation = _explanation(result)
    labels, moved = label_picture(result.label_map), label_picture(result.control_map)
    draft = result.draft or "your picture, not shown"
    rows = [
        _sentences(result),
        row_of_cells(("draft", "labels found in it", "labels given to ControlNet", "final")),
        row_of_cells((draft, labels or "", moved or "no control", result.image or "")),
        row_of_cells(
            ("mask that was avoided", "final: still like the draft", f"final: like work {_nearest(result)}", "")
        ),
        row_of_cells(
            (mask_picture(result.mask) or "", _overlay(result, "reference"), _overlay(result, "work"), _key())
        ),
        _attention_maps(explanation),
        _step_bars(explanation),
    ]
    return stacked(rows)


def explanation_record(result: GenerationResult) -> dict[str, Any]:
    """The same for programs, as JSON can hold it: per token the attention moved, per step what was in force."""
    explanation = _explanation(result)
    names, groups = _grouped(explanation.tokens)
    moved = np.nan_to_num(_summed(explanation.moved, groups)).mean(1)
    steps = ("guidance", "control", "noise", "negative", "repulsion", "rows")
    return {
        "verdict": str(result.verdict),
        "reasons": list(result.attempts[-1].reasons),
        "sentences": list(_story(result)),
        "gate": _gate_record(result.gate),
        "nearest": result.attempts[-1].nearest,
        "alike": {name: _share(values) for name, values in explanation.similarity.items()},
        "overlap": _overlap(result),
        "attention_moved": dict(zip(_told_apart(names), moved.tolist(), strict=True)),
        "noise_moved": explanation.noise_moved,
        "steps": {name: np.asarray(getattr(explanation, name)).tolist() for name in steps},
    }


def explanation_json(result: GenerationResult) -> bytes:
    """`explanation_record` as a file."""
    return json.dumps(explanation_record(result), indent=1).encode() + b"\n"


def explanation_arrays(result: GenerationResult) -> bytes:
    """Every array of an explanation as a file for `numpy.load`: masses (S, T), steps (S,), maps and masks (H, W)."""
    explanation = _explanation(result)
    arrays: dict[str, Any] = {n: value for n, value in vars(explanation).items() if isinstance(value, np.ndarray)}
    arrays |= {f"similarity_{name}": values for name, values in explanation.similarity.items()}
    pictures = {"mask": result.mask, "label_map": result.label_map, "control_map": result.control_map}
    arrays |= {name: values for name, values in pictures.items() if values is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _explanation(result: GenerationResult) -> Explanation:
    if result.explanation is None:
        raise InvalidRequestError("this result holds no explanation; ask for one with explain=True in the request")
    return result.explanation


# --- in words ---


def _story(result: GenerationResult) -> Iterator[str]:
    """Sentences that need no engineer."""
    explanation = _explanation(result)
    yield f"Verdict: {ending_text(result, brought=result.request.source is not None)}."
    yield _gate_sentence(result.gate)
    yield from _done(result, explanation)
    reference = "its draft" if result.request.source is None else "your picture"
    for name, what in (("reference", reference), ("work", f"registered work {_nearest(result)}")):
        if name in explanation.similarity:
            yield f"It is like {what} in {_share(_closer(explanation, name)):.0%} of the frame."


def _gate_sentence(gate: GateDecision | None) -> str:
    if gate is None or all(score.limit is None for score in gate.signals.values()):
        return "Avoidance: as the request says; no gate decided."
    told = ", ".join(f"{name} {score.value:.3g} (limit {score.limit:.3g})" for name, score in _limited(gate))
    if gate.opened:
        return f"Avoidance: on, for the draft looks recalled: {told}."
    return f"Avoidance: off in the first attempt, for the draft does not look recalled: {told}."


def _limited(gate: GateDecision) -> Iterator[tuple[str, Any]]:
    return ((name, score) for name, score in gate.signals.items() if score.limit is not None)


def _done(result: GenerationResult, explanation: Explanation) -> Iterator[str]:
    """What the mechanisms of the last attempt did."""
    policy, steps = result.attempts[-1].avoidance, len(explanation.rows)
    if policy.delayed_guidance is not None:
        waited = sum(policy.delayed_guidance.active(step, steps) for step in range(steps))
        yield f"The prompt took hold after {waited} of {steps} steps."
    if policy.restated_prompt is not None:
        others = sum(policy.restated_prompt.active(step, steps) for step in range(steps))
        yield f"What the prompt lists, if anything, was said in another order for {others} of {steps} steps."
    if (overlap := _overlap(result)) is not None:
        yield f"ControlNet drew the objects where they overlap the draft's by {overlap:.0%}."
    if (arranged := result.scores.get("arrangement")) is not None and "background" in result.scores:
        behind = result.scores["background"].value
        yield f"Its shape fits the draft's by {arranged.value:.0%}, laid over it; their backgrounds, by {behind:.0%}."
    if policy.masked_attention is not None and (lost := _most_moved(explanation)):
        yield f"Inside the mask, attention was taken most from {lost}."


def _most_moved(explanation: Explanation) -> str:
    names, groups = _grouped(explanation.tokens)
    moved = np.nan_to_num(_summed(explanation.moved, groups)).mean(1)
    most = [i for i in np.argsort(-moved)[:3] if moved[i] > 0]
    return ", ".join(f"{names[i]!r} ({moved[i]:.2g})" for i in most)


def _overlap(result: GenerationResult) -> float | None:
    """Intersection over union of what was found and what ControlNet was given; the commonest label is background."""
    if result.label_map is None or result.control_map is None or result.mask is None:
        return None
    background = np.unique(result.label_map[~result.mask]) if not result.mask.all() else np.array([])
    moved = ~np.isin(result.control_map, background)
    union = np.count_nonzero(moved | result.mask)
    return float(np.count_nonzero(moved & result.mask) / union) if union else 0.0


def _nearest(result: GenerationResult) -> str:
    return result.attempts[-1].nearest or ""


def _gate_record(gate: GateDecision | None) -> dict[str, Any] | None:
    if gate is None:
        return None
    signals = {name: {"value": s.value, "limit": s.limit, "passed": s.passed} for name, s in gate.signals.items()}
    return {"opened": gate.opened, "signals": signals, "nearest": gate.nearest}


def _told_apart(names: Sequence[str]) -> list[str]:
    """Positions before names, for a word may stand twice in a prompt."""
    return [f"{i} {name}" for i, name in enumerate(names)]


# --- where it is close ---


def _closer(explanation: Explanation, name: str) -> np.ndarray:
    """Similarity map (H, W), raw or aligned, whichever is closer; NaN where the aligned reference does not reach."""
    raw, aligned = explanation.similarity[name], explanation.similarity[f"{name}_aligned"]
    return aligned if np.nanmean(aligned) > raw.mean() else raw


def _share(values: np.ndarray) -> float:
    """Share of the frame that is alike."""
    return float(np.mean(np.nan_to_num(values, nan=-1.0) >= ALIKE))


def _overlay(result: GenerationResult, name: str) -> Image.Image | str:
    """The final in grey under the heat of its similarity."""
    explanation = _explanation(result)
    if name not in explanation.similarity or result.image is None:
        return "no registered works" if name == "work" else "it is its own draft"
    values = np.clip(np.nan_to_num(_closer(explanation, name)), 0, 1)
    grey = np.asarray(result.image.convert("L"), np.float64)[..., None]
    return Image.fromarray((0.35 * grey + 0.65 * heat(values)).astype(np.uint8))


def closeness(result: GenerationResult) -> dict[str, Image.Image]:
    """Where the final is still like its draft or source ("reference") and the nearest registered work ("work").

    Heat on clear ground (RGBA, H x W of the picture), to be laid over whatever the reader may see. Raises
    InvalidRequestError without an explanation.
    """
    explanation = _explanation(result)
    return {
        name: _clear_heat(_closer(explanation, name))
        for name in ("reference", "work")
        if name in explanation.similarity
    }


def _clear_heat(values: np.ndarray) -> Image.Image:
    shares = np.clip(np.nan_to_num(values), 0, 1)
    return Image.fromarray(np.dstack((heat(shares), (_MOST_OPAQUE * shares).round().astype(np.uint8))))


def _key() -> Image.Image:
    """What the heat means."""
    picture = Image.new("RGB", (CELL, CELL), "#ffffff")
    strip = Image.fromarray(np.repeat(heat(np.linspace(1, 0, CELL - 2 * LINE))[:, None], 24, 1))
    picture.paste(strip, (0, LINE))
    pen = ImageDraw.Draw(picture)
    from_top = (
        (LINE, "the same"),
        (CELL // 2 - LINE // 2, "alike in part"),
        (CELL - 2 * LINE - 4, "nothing in common"),
    )
    for top, text in from_top:
        pen.text((32, top), text, INK, FONT)
    return picture


def _sentences(result: GenerationResult) -> Image.Image:
    lines = [line for sentence in _story(result) for line in textwrap.wrap(sentence, _LETTERS)]
    picture, draw = canvas(LINE * len(lines) + GAP)
    for number, line in enumerate(lines):
        draw.text((GAP, number * LINE), line, INK, FONT)
    return picture


# --- attention and steps ---


def _attention_maps(explanation: Explanation) -> Image.Image:
    """Three heat maps, tokens down and steps across: attention inside the mask without the rule, with it, and lost."""
    names, groups = _grouped(explanation.tokens)
    maps = [_summed(m, groups) for m in (explanation.neutral_inside, explanation.mass_inside, explanation.moved)]
    # The first token takes most of all attention whatever the prompt: it must not set the scale.
    scale = max(float(np.nan_to_num(np.abs(values[1:])).max(initial=0)) for values in maps) or 1.0
    titles = (f"darkest at {scale:.2g}", "attention in mask, rule off", "rule on", "taken away (blue: given)")
    picture, draw = canvas(LINE * (len(names) + 1) + GAP)
    picture.paste(row_of_cells(titles), (0, 0))
    for row, name in enumerate(names, start=1):
        draw.text((GAP + CELL, row * LINE), name, INK, FONT, anchor="ra")
    for column, values in enumerate(maps, start=1):
        shares = np.clip(values / scale, -1, 1)
        colours = Image.fromarray(heat(np.sign(shares) * np.sqrt(np.abs(shares))))  # the root shows small shares too
        place = (GAP + column * (CELL + GAP), LINE)
        picture.paste(colours.resize((CELL, LINE * len(names)), Image.Resampling.NEAREST), place)
    return picture


def _grouped(tokens: Sequence[str]) -> tuple[list[str], list[slice]]:
    """Names and positions of the tokens, with the padding that ends each chunk as one."""
    names: list[str] = []
    groups: list[slice] = []
    for token, run in groupby(tokens):
        length, start = len(list(run)), groups[-1].stop if groups else 0
        single = 1 if token == tokens[-1] else length
        names += [token.removesuffix("</w>").strip("<|>")] * single
        groups += [slice(place, place + 1) for place in range(start, start + single)]
        if length > single:
            names.append(f"padding ({length - single})")
            groups.append(slice(start + single, start + length))
    return names, groups


def _summed(mass: np.ndarray, groups: Sequence[slice]) -> np.ndarray:
    """Mass (S, T) -> (groups, S), summed over the tokens of each group."""
    return np.stack([mass[:, group].sum(1) for group in groups])


def _step_bars(explanation: Explanation) -> Image.Image:
    """A bar for each step of what was in force and of the UNet rows it cost, each of its own maximum."""
    rare = [name for name in ("negative", "repulsion") if np.any(getattr(explanation, name))]
    strips = ("guidance", "control", "noise", *rare, "rows")
    picture, draw = canvas((_STRIP + GAP) * len(strips) + GAP)
    left, right = GAP + CELL + GAP, picture.width - GAP
    for number, name in enumerate(strips):
        values = np.asarray(getattr(explanation, name), dtype=np.float64)
        bottom = (_STRIP + GAP) * (number + 1)
        draw.text((left - GAP, bottom), f"{name}, up to {values.max():.3g}", INK, FONT, anchor="rs")
        draw.line((left, bottom, right, bottom), FAINT)
        width = (right - left) / len(values)
        for step, height in enumerate(values / (values.max() or 1.0) * _STRIP):
            if height > 0:
                edge = left + step * width
                draw.rectangle((edge + 1, bottom - height, edge + width - 1, bottom), "#4575b4")
    return picture
