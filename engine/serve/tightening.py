"""What clients make of the operator's preset and rule: the same or stricter, never looser."""

from dataclasses import replace

from ..api.choices import Preset
from ..api.conditions import AnyLimit
from ..api.errors import InvalidRequestError
from ..api.presets import BUNDLES
from ..api.request import SimilarityPolicy
from ..api.rules import Clause, Decision, Rule
from .errors import ApiError

_ORDER = list(Preset)  # from the lightest to the heaviest


def presets_from(operators: Preset) -> list[Preset]:
    """The presets that clients may ask for, from the operator's own to the strictest."""
    return _ORDER[_ORDER.index(operators) :]


def preset_for(asked: Preset | None, operators: Preset) -> Preset:
    """The preset that is asked for, if it is no lighter than the operator's. Raises ApiError."""
    if asked is None:
        return operators
    if _ORDER.index(asked) < _ORDER.index(operators):
        served = ", ".join(presets_from(operators))
        message = f"twig.preset: {asked} avoids less than this server's {operators}; served are {served}"
        raise ApiError(400, "preset_too_light", message, param="twig.preset")
    return asked


def policy_for(
    rule: str | None, retries: int | None, operators: str | None, preset: Preset, *, calibrated: bool
) -> SimilarityPolicy:
    """The operator's rule with a client's clauses added to it, and as many retries as the client wants of it.

    calibrated: whether the model has limits, which are the rule where the operator wrote none. Raises ApiError.
    """
    bundle = BUNDLES[preset].similarity
    if rule is None and retries is None:
        return bundle if operators is None else SimilarityPolicy(rule=operators)
    base = Rule.parse(operators) if operators is not None else _of_limits(bundle.retries, calibrated)
    if retries is not None and retries > base.retries:
        message = f"twig.retries: {retries} are more than the {base.retries} of this server's rule"
        raise ApiError(400, "too_many_retries", message, param="twig.retries")
    kept = base.retries if retries is None else retries
    tighter = replace(base, retries=kept) if rule is None else _with(base, _added(rule), kept)
    return SimilarityPolicy(rule=str(tighter))


def _of_limits(retries: int, calibrated: bool) -> Rule:
    clauses = (Clause(Decision.REFUSE, AnyLimit()),) if calibrated else ()
    return Rule(clauses, retries)


def _with(base: Rule, added: Rule, retries: int) -> Rule:
    """Both rules' clauses: the strictest that holds decides, so that more of them catch more."""
    return Rule((*base.clauses, *added.clauses), retries, base.then)


def _added(text: str) -> Rule:
    """A client's rule: clauses that refuse or leave to a person, and nothing besides."""
    try:
        added = Rule.parse(text)
    except InvalidRequestError as error:
        raise ApiError(400, "invalid_rule", f"twig.rule: {error}", param="twig.rule") from error
    if not added.clauses or added.retries or added.then is not Decision.REFUSE:
        message = (
            "twig.rule: it is added to this server's, so that it can only refuse more: write clauses of 'refuse if' "
            "and 'review if'; twig.retries says how often is drawn again"
        )
        raise ApiError(400, "invalid_rule", message, param="twig.rule")
    return added
