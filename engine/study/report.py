"""What a pilot study found, as one HTML file that needs nothing beside it."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image
from torch import Tensor

from ..._version import __version__
from ..api.metrics import ALL_METRICS
from ..api.settings import Stage
from ..judging.judge import PREFIX
from .assessment import Assessment, Picture
from .charts import chart
from .findings import Findings, PresetFindings
from .intervals import bootstrap
from .limits import PAIRS_NEEDED, PROMPTS_NEEDED, StudyLimits

SHOWN = "ssim_masked"
"""The measure that plots and pairs are ordered by."""

_WORST = 6
_TILE = 160
_MEANING_SLACK = 0.02


@dataclass(frozen=True)
class PresetSummary:
    """Pictures of one preset: how many are closer to a work than the limits allow, and what they cost.

    close: their share, with its 95 % interval over prompts; NaN where there are no limits. kept: mean overlap of labels
    with the draft. sharpness: relative to the plain pictures. rows, seconds: means. price: of a thousand pictures that
    are not too close, None without a price or limits, or where all are.
    """

    name: str
    count: int
    close: float
    low: float
    high: float
    p95: float
    largest: float
    kept: float
    sharpness: float
    rows: float
    seconds: float
    price: float | None


def summaries(
    pictures: Sequence[Picture], limits: Mapping[str, float], hourly_price: float | None
) -> list[PresetSummary]:
    """One summary for each preset, in the order they were drawn; the first is the plain one."""
    names = list(dict.fromkeys(picture.preset for picture in pictures))
    groups = {name: [picture for picture in pictures if picture.preset == name] for name in names}
    plain = np.mean([picture.sharpness for picture in groups[names[0]]]) if names else 1.0
    return [_summary(name, group, limits, float(plain), hourly_price) for name, group in groups.items()]


def _summary(
    name: str, group: Sequence[Picture], limits: Mapping[str, float], plain: float, hourly_price: float | None
) -> PresetSummary:
    prompts = sorted({picture.prompt for picture in group})
    flags = [
        np.array([bool(p.crossed(limits)) if limits else np.nan for p in group if p.prompt == prompt], float)
        for prompt in prompts
    ]
    close, seconds = float(np.concatenate(flags).mean()), float(np.mean([p.seconds for p in group]))
    similar = [p.measures[SHOWN] for p in group]
    return PresetSummary(
        name,
        len(group),
        close,
        *bootstrap(flags),
        p95=float(np.quantile(similar, 0.95)),
        largest=max(similar),
        kept=float(np.mean([p.labels_kept for p in group])),
        sharpness=float(np.mean([p.sharpness for p in group]) / plain) if plain else float("nan"),
        rows=float(np.mean([p.rows for p in group])),
        seconds=seconds,
        price=None if hourly_price is None or not close < 1 else seconds / 3600 * hourly_price * 1000 / (1 - close),
    )


def recommended(found: Sequence[PresetSummary]) -> PresetSummary:
    """The preset with the fewest close pictures; of those within two points of it, the one that keeps most meaning.

    Where meaning is equal, or is not known, the cheapest.
    """
    least = min(one.close for one in found)
    near = [one for one in found if one.close <= least + _MEANING_SLACK]
    return max(near, key=lambda one: (np.nan_to_num(one.kept), -one.rows))


def recommendation(study: Assessment, found: Sequence[PresetSummary]) -> tuple[PresetSummary | None, str]:
    """The preset to recommend, None where the study cannot tell, and then why, in words."""
    if not found or np.isnan(found[0].close):
        return None, "without limits nothing says which pictures are too close"
    prompts = len({picture.prompt for picture in study.pictures})
    if prompts < PROMPTS_NEEDED:
        return (
            None,
            f"too few prompts to tell presets apart with 95 % confidence: {prompts} of at least {PROMPTS_NEEDED}",
        )
    return recommended(found), ""


def rule(limits: Mapping[str, float]) -> str:
    """The limits in the language of `SimilarityPolicy.rule`, for an engine that has the works in its registry."""
    signs = {"similarity": ">", "distance": "<"}
    crossed = [f"{PREFIX}{name} {signs[ALL_METRICS[name].direction]} {limit:.4g}" for name, limit in limits.items()]
    return f"refuse if {' or '.join(crossed)}; retry 2; then review"


def findings(study: Assessment, judged: StudyLimits, hourly_price: float | None, finished: bool) -> Findings:
    """The numbers of a report, for programs."""
    found = summaries(study.pictures, judged.limits, hourly_price)
    best, undecided = recommendation(study, found)
    return Findings(
        made=datetime.now(UTC),
        twig=__version__,
        model=study.engine.components.name,
        prompts=len(study.plan.prompts),
        seeds=study.plan.seeds,
        works=len(study.works.names),
        steps=study.plan.steps or Stage().steps,
        finished=finished,
        limits=dict(judged.limits),
        limits_from=judged.source,
        recommended=None if best is None else best.name,
        undecided=undecided or None,
        presets=tuple(PresetFindings(**asdict(one)) for one in found),
    )


def render(study: Assessment, judged: StudyLimits, hourly_price: float | None, finished: bool) -> str:
    """Return the report of a study, whole or interrupted."""
    limits = judged.limits
    found = summaries(study.pictures, limits, hourly_price)
    best, undecided = recommendation(study, found)
    template = Environment(
        loader=PackageLoader("twig.engine.study", ""), autoescape=select_autoescape(["j2"], default=True)
    ).get_template("assessment.html.j2")
    return template.render(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        version=__version__,
        model=study.engine.components.name,
        finished=finished,
        works=len(study.works.names),
        prompts=len(study.plan.prompts),
        seeds=study.plan.seeds,
        presets=found,
        priced=hourly_price is not None,
        steps=study.plan.steps or Stage().steps,
        best=best,
        undecided=undecided,
        judged=judged,
        needed=PAIRS_NEEDED,
        prompts_needed=PROMPTS_NEEDED,
        rule=rule(limits) if limits else None,
        limits=[_limit_row(name, limit, study.pictures, found) for name, limit in limits.items()],
        plots=_plots(study.pictures, found),
        worst=[(one.name, _worst(study, one.name, limits)) for one in found],
    )


def _limit_row(
    name: str, limit: float, pictures: Sequence[Picture], found: Sequence[PresetSummary]
) -> dict[str, object]:
    def share(preset: str) -> float:
        return float(np.mean([bool(p.crossed({name: limit})) for p in pictures if p.preset == preset]))

    sign = "at most" if ALL_METRICS[name].direction == "similarity" else "at least"
    return {
        "name": name,
        "limit": f"{sign} {limit:.4g}",
        "source": ALL_METRICS[name].source,
        "shares": [share(one.name) for one in found],
    }


def _plots(pictures: Sequence[Picture], found: Sequence[PresetSummary]) -> list[tuple[str, str]]:
    """Title and data URL of each plot; those of shares that are too close need limits."""
    quantiles = np.linspace(0, 1, 41)
    spread = {
        one.name: [(float(q), float(np.quantile([p.measures[SHOWN] for p in pictures if p.preset == one.name], q)))
                   for q in quantiles]
        for one in found
    }  # fmt: skip
    trade_off = {one.name: [(100 * one.close, 100 * one.kept)] for one in found}
    cost = {one.name: [(one.seconds, 100 * one.close)] for one in found}
    shares = [
        (
            "Trade-off: up and to the left is better",
            data_url(chart(trade_off, "pictures too close to a work, %", "meaning kept, %")),
        ),
        ("Cost", data_url(chart(cost, "seconds a picture", "pictures too close to a work, %"))),
    ]
    similarity = chart(spread, "share of pictures", SHOWN, markers=False)
    alone = [("Similarity to the nearest work, all pictures in order", data_url(similarity))]
    return alone + shares if found and np.isfinite(found[0].close) else alone


def _worst(study: Assessment, preset: str, limits: Mapping[str, float]) -> list[dict[str, object]]:
    """The closest pictures of a preset, each prompt once, with the work each is closest to."""
    order = sorted(
        (i for i, picture in enumerate(study.pictures) if picture.preset == preset),
        key=lambda i: -study.pictures[i].measures[SHOWN],
    )
    first = {study.pictures[i].prompt: i for i in reversed(order)}
    chosen = sorted(first.values(), key=order.index)[:_WORST]
    return [_pair(study, study.pictures[i], study.images[i], limits) for i in chosen]


def _pair(study: Assessment, picture: Picture, image: Image.Image, limits: Mapping[str, float]) -> dict[str, object]:
    work = study.works.pixels[study.works.names.index(picture.nearest)]
    return {
        "prompt": study.plan.prompts[picture.prompt],
        "seed": picture.seed,
        "nearest": picture.nearest,
        "image": data_url(_tile(image)),
        "work": data_url(_tile(_as_image(work))),
        "measures": {name: f"{picture.measures[name]:.3g}" for name in limits or [SHOWN]},
        "crossed": picture.crossed(limits),
    }


def _as_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def _tile(image: Image.Image) -> Image.Image:
    """At most `_TILE` pixels a side; small pictures enlarged to hard squares."""
    factor = _TILE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)


def data_url(image: Image.Image) -> str:
    """The picture as a PNG inside a URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
