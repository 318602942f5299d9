// The dial from gentle to strict, and what each place on it cost and kept in the operator's last study.

import { at, el, svg } from "./dom.js";
import { number, onLanguage, percent, t, when } from "./words.js";

/** Shows the presets that this server takes, and its study where there is one. */
export class Dial {
  constructor(settings) {
    this.input = at("dial");
    this.input.addEventListener("input", () => this.show());
    this.fit(settings);
    onLanguage(() => this.show());
  }

  /** Show from now on what a model is served with. */
  fit({ presets, preset, study }) {
    Object.assign(this, { presets, study });
    this.input.max = presets.length - 1;
    this.input.value = presets.indexOf(preset);
    at("dial-field").hidden = presets.length < 2;
    this.show();
  }

  /** The preset that is chosen. */
  get preset() {
    return this.presets[Number(this.input.value)];
  }

  show() {
    const name = t(`preset.${this.preset}`);
    this.input.setAttribute("aria-valuetext", name);
    at("dial-names").replaceChildren(
      ...this.presets.map((each) => el("span", { class: each === this.preset ? "chosen" : null }, t(`preset.${each}`))),
    );
    at("dial-said").textContent = t(`preset.${this.preset}.means`);
    at("study").hidden = !this.study;
    if (this.study) at("study").replaceChildren(...this.drawn(this.study));
  }

  drawn(study) {
    const told = { ...study, date: when(study.date) };
    const chosen = study.presets.find(({ name }) => name === this.preset);
    return [
      el("h2", { id: "study-title" }, t("study.title")),
      el(
        "table",
        { "aria-labelledby": "study-title" },
        el("thead", {}, el("tr", {}, ...["preset", "close", "kept", "seconds"].map((n) => el("th", { scope: "col" }, t(`study.${n}`))))),
        el("tbody", {}, ...study.presets.map((point) => this.row(point))),
      ),
      chosen && chosen.low !== null ? el("p", {}, interval(chosen)) : null,
      el("p", { class: "hint" }, t("study.of", told), study.finished ? null : ` ${t("study.unfinished")}`),
    ].filter(Boolean);
  }

  row({ name, close, kept, seconds }) {
    return el(
      "tr",
      { "aria-current": name === this.preset ? "true" : null },
      el("th", { scope: "row" }, t(`preset.${name}`)),
      el("td", {}, el("span", { class: "measured" }, bar(close), percent(close, 1))),
      el("td", {}, percent(kept)),
      el("td", {}, number(seconds)),
    );
  }
}

function interval({ name, low, high }) {
  return t("study.interval", { preset: t(`preset.${name}`), low: percent(low, 1), high: percent(high, 1) });
}

function bar(share) {
  const width = 60 * (share ?? 0);
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 60 6", width: 60, height: 6, "aria-hidden": "true" },
    svg("rect", { class: "track", width: 60, height: 6, rx: 3 }),
    svg("rect", { class: "filled", width: width && Math.max(2, width), height: 6, rx: 3 }),
  );
}
