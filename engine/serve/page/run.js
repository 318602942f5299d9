// One picture's way: its stages, its pictures as they come, how it ended, and what can be taken away.

import { ServerError } from "./api.js";
import { compared, able, jsonAddress, lines, saving } from "./check.js";
import { addressOf, at, el, picture as shownAs } from "./dom.js";
import { measures, stamp, verdictText, whyText } from "./judgement.js";
import { explanation } from "./maps.js";
import { explained } from "./notice.js";
import { t } from "./words.js";

const STAGES = ["draft", "mask", "final", "judgement"];
let count = 0;

/** Shows one request. `drafts`: whether this server lets them be seen. */
export class Run {
  constructor({ body, photo }, drafts) {
    const source = photo && URL.createObjectURL(photo);
    Object.assign(this, { prompt: body.prompt, preset: body.twig.preset, drafts, source });
    Object.assign(this, { told: null, error: null, stopped: false, preview: null, files: {} });
    this.id = `run-${(count += 1)}`;
    this.pictures = source ? { draft: source } : {};
    this.now = source ? "final" : "draft";
    this.checked = null;
    this.article = el("article", { id: this.id, "aria-labelledby": `${this.id}-title` });
    this.say(t(source ? "status.photo" : "status.sent"));
    this.render();
  }

  /** Take in an event of the stream. */
  hear(event) {
    if (event.type.endsWith(".completed")) {
      this.keep("final", event.b64_json);
      this.end(event.twig);
    } else if (event.twig.stage === "draft") {
      this.keep("draft", event.b64_json);
      if (event.twig.mask) this.keep("mask", event.twig.mask);
      this.now = "final";
      this.say(t("status.draft"));
    } else {
      this.keep("final", event.b64_json);
      this.preview = { step: event.twig.step, steps: event.twig.steps };
      this.now = "final";
      this.say(t("status.preview", this.preview));
    }
    this.render();
  }

  /** The stream ended in an error: a refusal with its evidence, or one that is told as what it is. */
  fail(error) {
    const told = error instanceof ServerError ? error.body.twig : null;
    this.forget("final");
    if (told) this.end(told);
    else {
      this.error = error;
      this.say(explained(error)[0]);
    }
    this.now = null;
    this.render();
  }

  /** The user stopped it. */
  stop() {
    this.stopped = true;
    this.now = null;
    this.say(t("status.stopped"));
    this.render();
  }

  end(told) {
    this.told = told;
    this.now = null;
    this.preview = null;
    if (!this.source && told.draft) this.keep("draft", told.draft);
    if (told.mask) this.keep("mask", told.mask);
    if (told.sheet) this.keep("sheet", told.sheet);
    for (const [name, picture] of Object.entries(told.explanation?.maps ?? {})) this.keep(name, picture);
    this.say(t("status.ended", { verdict: verdictText(told.verdict), why: whyText(told, Boolean(this.source)) }));
    this.check();
  }

  async check() {
    if (!this.told.manifest || !able) return;
    const draft = this.source ? null : this.pictures.draft;
    this.checked = await compared(this.told.manifest, { final: this.pictures.final, draft });
    this.render();
  }

  keep(name, base64) {
    this.forget(name);
    if (base64) this.pictures[name] = addressOf(base64);
  }

  forget(name) {
    if (this.pictures[name]) URL.revokeObjectURL(this.pictures[name]);
    delete this.pictures[name];
  }

  /** Give back what its pictures take. */
  close() {
    for (const address of Object.values({ ...this.pictures, ...this.files })) URL.revokeObjectURL(address);
    this.article.remove();
  }

  say(text) {
    at("status").textContent = text;
  }

  // --- what is seen ---

  render() {
    const open = [...this.article.querySelectorAll("details")].map((each) => each.open);
    this.article.replaceChildren(...this.parts().filter(Boolean));
    [...this.article.querySelectorAll("details")].forEach((each, number) => (each.open = open[number] ?? false));
    this.article.setAttribute("aria-busy", String(this.now !== null));
  }

  parts() {
    const brought = Boolean(this.source);
    return [
      el("h3", { id: `${this.id}-title` }, el("span", { class: "unseen" }, `${t("run.of")} `), this.prompt),
      this.told ? el("p", { class: "faint meta" }, this.meta()) : this.stages(),
      el("div", { class: "panels" }, ...this.panels()),
      this.error ? el("div", { class: "stamp failed" }, ...explained(this.error).map((line) => el("p", {}, line))) : null,
      this.told && stamp(this.told, brought),
      ...(this.told ? measures(this.told) : []),
      this.told && explanation(this.told, this.pictures, brought),
      this.told && this.record(),
    ];
  }

  meta() {
    const { attempts, seed, rows, manifest } = this.told;
    const tries = attempts === 1 ? t("run.try") : t("run.tries", { count: attempts });
    return t("run.meta", { preset: t(`preset.${this.preset}`), seed: String(manifest?.request.seed ?? seed), attempts: tries, rows });
  }

  stages() {
    if (this.stopped) return el("p", { class: "faint meta" }, t("run.stopped"));
    if (this.error) return null;
    const reached = STAGES.indexOf(this.now);
    return el(
      "ol",
      { class: "stages" },
      ...STAGES.map((stage, number) => {
        const state = number < reached ? "done" : number === reached ? "now" : "due";
        return el("li", { class: state, "aria-current": state === "now" ? "step" : null }, t(`stage.${stage}`), el("span", { class: "unseen" }, `, ${t(`state.${state}`)}`));
      }),
    );
  }

  panels() {
    const draft = this.source ? "source" : "draft";
    const shown = this.drafts ? [this.panel(draft, "draft"), this.panel("mask", "mask")] : this.source ? [this.panel("source", "draft")] : [];
    return [...shown, this.panel("final", "final")];
  }

  panel(kind, picture) {
    const address = this.pictures[picture];
    const title = kind === "source" ? t("panel.source") : t(`stage.${kind}`);
    const caption = kind === "final" && this.preview ? t("panel.preview", this.preview) : title;
    const inside = address
      ? shownAs(address, t(`alt.${kind}`, { prompt: this.prompt }), this.preview && kind === "final" ? "preview" : null)
      : el("span", { class: "faint" }, this.missing(kind));
    return el("figure", { class: this.now === kind ? "now" : null }, el("div", { class: address ? "frame" : "frame void" }, inside), el("figcaption", {}, caption));
  }

  missing(kind) {
    if (this.told && kind === "final") return t("panel.withheld");
    return t(this.now === null ? "panel.none" : "panel.waiting");
  }

  record() {
    const { manifest, record, signed, manifest_sha256: named } = this.told;
    return el(
      "section",
      { class: "record" },
      el("h4", {}, t("record.title")),
      el("ul", { class: "checks" }, ...(this.checked || !able ? lines(this.checked ?? []) : [el("li", {}, t("check.running"))])),
      signed ? el("p", { class: "hint signed" }, t("record.signed")) : null,
      el("p", { class: "hint" }, t("record.id", { id: record }), el("br"), `${t("record.digest")}: `, el("code", {}, named)),
      el("p", { class: "saves", role: "group", "aria-label": t("save.all") }, ...this.saves(manifest, record)),
    );
  }

  saves(manifest, record) {
    if (manifest) this.files.manifest ??= jsonAddress(manifest);
    if (this.checked) this.files.check ??= jsonAddress(this.checkFile());
    return [
      this.pictures.final && saving(t("save.picture"), this.pictures.final, `${record}.png`),
      this.pictures.sheet && saving(t("save.sheet"), this.pictures.sheet, `${record}-sheet.png`),
      this.files.manifest && saving(t("save.manifest"), this.files.manifest, `${record}.json`),
      this.files.check && saving(t("save.check"), this.files.check, `${record}-check.json`),
    ].filter(Boolean);
  }

  checkFile() {
    const { record, manifest_sha256, verdict } = this.told;
    return { record, manifest_sha256, verdict, checked: new Date().toISOString(), pictures: this.checked };
  }
}
