// Where avoidance acted and what was close: the explanation's pictures, its words and its steps.

import { el, picture, svg } from "./dom.js";
import { number, percent, t } from "./words.js";

const STRIPS = { guidance: "maps.guidance", control: "maps.control.strength", noise: "maps.noise.strength", negative: "maps.negative", repulsion: "maps.repulsion" };
const MOST_WORDS = 6;

/** The folded section. `pictures`: addresses by name, of the final too where it may be seen. */
export function explanation(told, pictures, brought) {
  const found = told.explanation;
  if (!found) return null;
  return el(
    "details",
    { class: "maps" },
    el("summary", {}, t("maps.title")),
    el("div", { class: "panels" }, ...figures(found, pictures, brought)),
    pictures.reference || pictures.work ? key() : null,
    el("ul", {}, ...facts(found).map((fact) => el("li", {}, fact))),
    ...words(found.attention_moved),
    el("h4", {}, t("maps.steps")),
    steps(found.steps),
  );
}

function figures(found, pictures, brought) {
  const own = (name) => t(brought ? `${name}.source` : name);
  return [
    pictures.labels && figure(own("maps.labels"), pictures.labels),
    pictures.control && figure(t("maps.control"), pictures.control),
    pictures.reference && figure(own("maps.reference"), pictures.final, pictures.reference, found.alike.reference),
    pictures.work && figure(t("maps.work", { work: found.nearest }), pictures.final, pictures.work, found.alike.work),
  ].filter(Boolean);
}

/** A picture, and what is laid over it; without a picture that may be seen, on plain ground. */
function figure(title, address, over = null, share = null) {
  const caption = share === null ? title : t("maps.caption", { title, share: t("maps.share", { share: percent(share) }) });
  return el(
    "figure",
    {},
    el(
      "div",
      { class: over ? "frame grey" : "frame" },
      address ? picture(address, over ? "" : title) : null,
      over ? picture(over, caption, "over") : null,
    ),
    el("figcaption", {}, caption),
  );
}

function key() {
  return el("p", { class: "heat" }, el("span", {}, t("maps.none")), el("span", { class: "ramp", "aria-hidden": "true" }), el("span", {}, t("maps.same")));
}

function facts(found) {
  return [
    found.overlap === null ? null : t("maps.overlap", { share: percent(found.overlap) }),
    found.noise_moved ? t("maps.noise", { share: percent(found.noise_moved) }) : null,
  ].filter(Boolean);
}

/** The words that most attention was taken from. */
function words(moved) {
  const most = Object.entries(moved).filter(([, mass]) => mass > 0).sort(([, a], [, b]) => b - a).slice(0, MOST_WORDS);
  if (!most.length) return [];
  const top = most[0][1];
  const items = most.map(([name, mass]) => el("li", {}, el("span", {}, wordOf(name)), line(mass / top), el("span", {}, number(mass))));
  return [el("h4", {}, t("maps.attention")), el("ul", { class: "words" }, ...items)];
}

function wordOf(name) {
  const word = name.replace(/^\d+ /, "");
  return /^(padding|startoftext|endoftext)/.test(word) ? t("maps.padding") : word;
}

function line(share) {
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 100 6", width: 100, height: 6, "aria-hidden": "true" },
    svg("rect", { class: "filled", width: 100 * share, height: 6, rx: 3 }),
  );
}

/** A small chart for each thing that was in force at some step. */
function steps(found) {
  const used = Object.keys(STRIPS).filter((name) => found[name].some(Boolean));
  return el("div", { class: "strips" }, ...used.map((name) => strip(t(STRIPS[name]), found[name])));
}

function strip(name, values) {
  const most = Math.max(...values);
  const title = t("maps.upto", { name, most: number(most) });
  const width = 200 / values.length;
  const bars = values.map((value, step) =>
    svg("rect", { class: "filled", x: step * width + width * 0.1, y: 30 - (28 * value) / most, width: width * 0.8, height: (28 * value) / most }),
  );
  const chart = svg("svg", { viewBox: "0 0 200 32", role: "img", "aria-label": `${title}: ${values.map(number).join(", ")}` }, ...bars, svg("rect", { class: "track", y: 30.5, width: 200, height: 1 }));
  return el("figure", {}, chart, el("figcaption", {}, title));
}
