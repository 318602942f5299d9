// How a picture ended, in words and numbers.

import { el, svg } from "./dom.js";
import { number, said, t } from "./words.js";

const REGISTERED = "registry_";
const SHARE = "_share";

/** Words for a verdict; one that this page does not know stands as the server wrote it. */
export function verdictText(verdict) {
  return said(`verdict.${verdict}`) ?? verdict;
}

/** Why, in a sentence or two. `told`: what the server said of the picture; `brought`: whether of a photo of the user's. */
export function whyText(told, brought) {
  const crossed = Object.entries(told.scores).filter(([, score]) => score.crossed);
  if (told.verdict === "accepted" && !Object.keys(told.scores).length) return t("why.plain");
  const limited = Object.values(told.scores).some((score) => score.limit !== null);
  const reasons = [...new Set(crossed.map(([name]) => reason(name, told, brought)))];
  if (told.verdict === "accepted") return t(limited ? "why.kept" : "why.unlimited");
  if (told.verdict === "review") return [...reasons, t("why.person")].join(t("gap"));
  if (told.verdict === "refused") return [...reasons, t("why.withheld")].join(t("gap"));
  return told.why ?? "";
}

function reason(name, told, brought) {
  if (name === "classes_kept") return t("why.classes");
  if (name.startsWith(REGISTERED)) {
    const work = told.explanation?.nearest;
    return work ? t("why.work", { work }) : t("why.works");
  }
  return known(name) ? t(brought ? "why.source" : "why.draft") : t("why.own");
}

/** What the gate made of the draft. */
export function gateText(told) {
  if (!told.gate || Object.values(told.gate.signals).every((signal) => signal.limit === null)) return t("gate.none");
  if (told.gate.opened) return t("gate.open");
  return t(told.attempts > 1 ? "gate.retried" : "gate.shut");
}

/** Words for a measure, and its own name for one that this page does not know. */
export function measureText(name) {
  if (name.startsWith(REGISTERED)) return t("measure.registry", { measure: measureText(name.slice(REGISTERED.length)) });
  if (name.endsWith(SHARE)) return t("measure.share", { measure: measureText(name.slice(0, -SHARE.length)) });
  if (name.endsWith("_aligned")) return t("measure.aligned", { measure: measureText(name.slice(0, -"_aligned".length)) });
  return said(`measure.${name === "registry" ? "registry_signal" : name}`) ?? name;
}

function known(name) {
  return said(`measure.${name.replace(/_aligned$/, "")}`) !== null;
}

/** The stamp: verdict and why. */
export function stamp(told, brought) {
  return el(
    "div",
    { class: `stamp ${told.verdict}` },
    el("p", { class: "verdict" }, mark(told.verdict), verdictText(told.verdict)),
    el("p", {}, whyText(told, brought)),
    brought ? null : el("p", { class: "faint" }, gateText(told)),
  );
}

function mark(verdict) {
  const shapes = { accepted: "M4 11l5 5 9-11", refused: "M5 5l12 12M17 5L5 17" };
  const path = svg("path", { d: shapes[verdict] ?? "M11 4v9M11 17v1", fill: "none", "stroke-width": 2.6, "stroke-linecap": "round" });
  return svg("svg", { class: "mark", viewBox: "0 0 22 22", width: 22, height: 22, "aria-hidden": "true" }, path);
}

/** Tables of the measures: those with a limit, the crossed ones first, and folded those that only inform. */
export function measures(told) {
  const all = Object.entries(told.scores);
  const held = all.filter(([, score]) => score.limit !== null).sort(([, a], [, b]) => b.crossed - a.crossed);
  const rest = all.filter(([, score]) => score.limit === null);
  return [
    ...gate(told),
    all.length ? el("h4", {}, t("measures.title")) : null,
    held.length ? table(held, true) : null,
    rest.length ? el("details", {}, el("summary", {}, t("measures.more", { count: rest.length })), table(rest, false)) : null,
  ];
}

/** What was looked for in the draft, where the gate had limits to hold it against. */
function gate({ gate }) {
  const held = Object.entries(gate?.signals ?? {}).filter(([, { limit }]) => limit !== null);
  const scores = held.map(([name, { value, limit }]) => [name, { value, limit, operator: ">", crossed: value > limit }]);
  return held.length ? [el("h4", {}, t("gate.title")), table(scores, true)] : [];
}

function table(scores, limited) {
  const heads = limited ? ["measure", "value", "limit", "scale"] : ["measure", "value"];
  return el(
    "table",
    { class: "measures" },
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, t(`measures.${head}`))))),
    el("tbody", {}, ...scores.map(([name, score]) => row(name, score, limited))),
  );
}

function row(name, score, limited) {
  const title = measureText(name);
  const cells = [
    el("th", { scope: "row" }, title, title === name ? null : el("code", {}, name)),
    el("td", {}, number(score.value), score.crossed ? el("strong", { class: "crossed" }, ` ${t("measures.crossed")}`) : null),
  ];
  if (limited) cells.push(el("td", {}, limitText(score)), el("td", { class: "scale" }, scale(score)));
  return el("tr", { class: score.crossed ? "crossed" : null }, ...cells);
}

function limitText({ operator, limit }) {
  return t(operator.startsWith(">") ? "measures.most" : "measures.least", { limit: number(limit) });
}

/** A line on which the side that is too close is shaded, with a dot where the value lies. */
function scale({ value, operator, limit }) {
  if (value === null) return null;
  const most = Math.max(1.15 * Math.max(value, limit), operator.startsWith(">") ? 1 : 0) || 1;
  const x = (number) => 100 * Math.min(1, Math.max(0, number / most));
  const edge = x(limit);
  const [from, width] = operator.startsWith(">") ? [edge, 100 - edge] : [0, edge];
  return svg(
    "svg",
    { viewBox: "-5 0 110 14", width: 110, height: 14, "aria-hidden": "true" },
    svg("rect", { class: "track", y: 5, width: 100, height: 4, rx: 2 }),
    svg("rect", { class: "forbidden", x: from, y: 5, width, height: 4, rx: 2 }),
    svg("rect", { class: "edge", x: edge - 0.75, y: 1, width: 1.5, height: 12 }),
    svg("circle", { class: "dot", cx: x(value), cy: 7, r: 4.5 }),
  );
}
