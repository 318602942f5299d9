// The auditor's view: lines of the log, whether its chain is whole, and records with their digests computed here.

import { ServerError, bytes, get, post } from "./api.js";
import { able, digest } from "./check.js";
import { at, el } from "./dom.js";
import { verdictText } from "./judgement.js";
import { parsed } from "./json.js";
import { auditingKey, drawingKey } from "./keys.js";
import { hide, show } from "./notice.js";
import { onLanguage, t, when } from "./words.js";

const VERDICTS = ["accepted", "review", "refused", "not judged", "failed", "cancelled", "expired"];
const COLUMNS = ["number", "time", "event", "verdict", "why", "record"];

/** Drives the view. `settings`: returns what the server offers, null where it did not say. */
export class Audit {
  constructor(settings) {
    Object.assign(this, { settings, lines: [], more: null, record: null, verified: null });
    at("audit-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.search();
    });
    at("audit-verify").addEventListener("click", () => this.verify());
    onLanguage(() => this.render());
  }

  /** Ask for a key, unless the one for drawing opens the log too. */
  ask() {
    at("audit-key-field").hidden = this.settings()?.roles.includes("audit") ?? false;
  }

  /** The key in the field, or that of before; none where the server needs none. */
  key() {
    const typed = at("audit-key").value.trim();
    if (typed) auditingKey.set(typed);
    return auditingKey.get() ?? drawingKey.get();
  }

  async search(before = null) {
    await this.tried(async () => {
      const found = await post("v1/twig/audit/search", wanted(before), this.key());
      this.lines = before === null ? found.data : [...this.lines, ...found.data];
      this.more = found.next_before;
      this.verified = null;
      this.searched = true;
    });
  }

  async verify() {
    await this.tried(async () => {
      this.verified = await get("v1/twig/audit/verification", this.key());
    });
  }

  async open(id) {
    await this.tried(async () => {
      const path = `v1/twig/records/${id}`;
      const [record, manifest] = await Promise.all([get(path, this.key()), bytes(`${path}/manifest`, this.key())]);
      if (this.record) URL.revokeObjectURL(this.record.address);
      const address = URL.createObjectURL(new Blob([manifest], { type: "application/json" }));
      const text = new TextDecoder().decode(manifest);
      this.record = { ...record, manifest: parsed(text), address, computed: able ? await digest(manifest) : null };
    });
    if (this.record) at("audit-record").focus();
  }

  async tried(act) {
    hide(at("audit-notice"));
    try {
      await act();
    } catch (error) {
      if (error instanceof ServerError && [401, 403].includes(error.status)) {
        auditingKey.clear();
        at("audit-key-field").hidden = false;
      }
      show(at("audit-notice"), error);
    }
    this.render();
  }

  // --- what is seen ---

  render() {
    at("audit-verdict").replaceChildren(
      ...["", ...VERDICTS].map((each) => el("option", { value: each, selected: each === at("audit-verdict").value }, each ? verdictText(each) : t("audit.any"))),
    );
    at("audit-status").replaceChildren(...this.status());
    at("audit-lines").replaceChildren(...(this.lines.length ? [this.table(), this.further()].filter(Boolean) : []));
    at("audit-record").hidden = !this.record;
    at("audit-record").replaceChildren(...(this.record ? this.shown(this.record) : []));
  }

  status() {
    if (this.verified) return verification(this.verified);
    if (!this.searched) return [];
    if (!this.lines.length) return [t("audit.nothing")];
    return [t(this.more ? "audit.found.more" : "audit.found", { count: this.lines.length })];
  }

  table() {
    const heads = COLUMNS.map((name) => el("th", { scope: "col" }, t(`audit.${name}`)));
    return el(
      "div",
      { class: "scrolled", role: "region", tabindex: 0, "aria-label": t("audit.table") },
      el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...this.lines.map((line) => this.row(line)))),
    );
  }

  row(line) {
    const id = line.manifest?.endsWith(".json") ? line.manifest.slice(0, -".json".length) : null;
    const label = t("audit.open", { number: line.number });
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, String(line.number)),
      el("td", {}, when(line.time)),
      el("td", {}, t(`event.${line.event}`)),
      el("td", { class: line.verdict }, line.verdict ? verdictText(line.verdict) : ""),
      el("td", { class: "why" }, line.reason ?? (line.reasons ?? []).join("; ")),
      el("td", {}, id ? el("button", { type: "button", "aria-label": label, onclick: () => this.open(id) }, t("audit.open.short")) : ""),
    );
  }

  further() {
    return this.more && el("button", { type: "button", onclick: () => this.search(this.more) }, t("audit.more"));
  }

  shown({ id, manifest, manifest_sha256: named, computed, lines, address }) {
    const { request, verdict, rule, model, created } = manifest;
    const numbers = lines.map((line) => line.number).join(", ");
    const same = computed === named;
    const facts = {
      prompt: request.prompt,
      verdict: verdictText(verdict),
      made: when(created),
      seed: String(request.seed),
      rule,
      model: [model.source, lines[0]?.model_sha256, model.dtype, model.device].filter(Boolean).join(", "),
    };
    return [
      el("h2", { id: "record-title" }, t("rec.title", { id })),
      el("dl", {}, ...Object.entries(facts).flatMap(([name, value]) => [el("dt", {}, t(`rec.${name}`)), el("dd", {}, value)])),
      el(
        "ul",
        { class: "checks" },
        el("li", { class: lines.length ? "same" : "differs" }, lines.length ? t("rec.named", { lines: numbers }) : t("rec.unnamed")),
        computed === null
          ? el("li", {}, t("check.insecure"))
          : el("li", { class: same ? "same" : "differs" }, t(same ? "rec.same" : "rec.differs", { digest: computed })),
      ),
      el(
        "p",
        { class: "saves" },
        el("a", { class: "save", href: address, download: `${id}.json` }, t("save.manifest")),
        el("button", { type: "button", class: "quiet", onclick: () => this.close() }, t("rec.close")),
      ),
    ];
  }

  close() {
    this.record = null;
    this.render();
    at("audit-lines").querySelector("button")?.focus();
  }
}

function wanted(before) {
  const values = {
    prompt: at("audit-prompt").value,
    verdict: at("audit-verdict").value,
    nearest: at("audit-nearest").value.trim(),
    since: moment(at("audit-since").value),
    until: moment(at("audit-until").value),
    before,
  };
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== "" && value !== null));
}

/** A time of this machine's zone, with its zone. */
function moment(text) {
  return text ? new Date(text).toISOString() : null;
}

function verification({ whole, lines, head, findings, erased }) {
  const title = whole
    ? lines
      ? t("audit.whole", { lines, head })
      : t("audit.whole.empty")
    : t("audit.broken", { count: findings.length });
  return [
    el("strong", { class: whole ? "same" : "differs" }, title),
    ...findings.map((finding) => el("span", { class: "finding" }, finding)),
    erased.length ? el("span", {}, ` ${t("audit.erased", { lines: erased.join(", ") })}`) : "",
  ];
}
