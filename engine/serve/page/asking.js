// What is asked for: the form, the photo that is dropped on it, and the body that they make.

import { at } from "./dom.js";
import { hide, tell } from "./notice.js";
import { onLanguage, t } from "./words.js";

const KINDS = ["image/png", "image/jpeg", "image/webp"];

/** The form, for a server of these settings. */
export class Asking {
  constructor(settings, dial, notice) {
    Object.assign(this, { settings, dial, notice, photo: null });
    onLanguage(() => this.speak());
    at("photo").addEventListener("change", ({ target }) => this.bring(target.files[0] ?? null));
    at("mask").addEventListener("change", () => this.nameMask());
    at("photo-away").addEventListener("click", () => this.away());
    dropping(at("drop"), (file) => this.bring(file));
  }

  /** Ask from now on for what these settings, of a model, allow. */
  fit(settings) {
    this.settings = settings;
    this.dial.fit(settings);
    this.speak();
  }

  speak() {
    at("steps").max = this.settings.bounds.steps;
    at("steps").placeholder = this.settings.steps;
    const { rule, calibrated, bounds } = this.settings;
    at("rule-hint").textContent = t("rule.hint", { rule: rule ?? t(calibrated ? "rule.limits" : "rule.none") });
    at("photo-hint").textContent = t("photo.hint", { size: size(bounds.upload) });
    at("photo-shown").alt = t("photo.shown");
    this.nameMask();
  }

  nameMask() {
    at("mask-name").textContent = at("mask").files[0]?.name ?? t("mask.none");
  }

  /** Take a photo, unless the server would not. */
  bring(file) {
    if (file === null) return;
    if (!KINDS.includes(file.type)) return this.away(t("photo.kind", { name: file.name }));
    const most = this.settings.bounds.upload;
    if (file.size > most) return this.away(t("photo.large", { name: file.name, size: size(file.size), most: size(most) }));
    hide(this.notice);
    this.forget();
    this.photo = { file, address: URL.createObjectURL(file) };
    at("photo-shown").src = this.photo.address;
    at("photo-name").textContent = `${file.name}, ${size(file.size)}`;
    at("brought").hidden = false;
  }

  away(why = null) {
    this.forget();
    at("photo").value = at("mask").value = "";
    this.nameMask();
    at("brought").hidden = true;
    if (why) tell(this.notice, why);
    at("photo").focus();
  }

  forget() {
    if (this.photo) URL.revokeObjectURL(this.photo.address);
    this.photo = null;
  }

  /** What to send: `body`, `photo` and `mask` (files, or null), and where the photo is shown. */
  wanted() {
    const drafts = this.settings.bounds.drafts;
    const shown = drafts ? { draft: true, mask: true, explain: true, sheet: true } : {};
    const options = {
      preset: this.dial.preset,
      negative_prompt: at("negative").value.trim(),
      steps: at("steps").value && Number(at("steps").value),
      seed: at("seed").value.trim() && BigInt(at("seed").value),
      rule: at("rule").value.trim(),
      always: at("always").checked,
    };
    const said = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== "" && value !== false));
    return {
      body: {
        prompt: at("prompt").value,
        model: this.settings.model,
        stream: true,
        ...(drafts ? { partial_images: 3 } : {}),
        twig: { ...said, ...shown, manifest: true },
      },
      photo: this.photo?.file ?? null,
      mask: this.photo ? (at("mask").files[0] ?? null) : null,
    };
  }
}

function dropping(place, take) {
  const over = (is) => (event) => {
    event.preventDefault();
    place.classList.toggle("over", is);
  };
  place.addEventListener("dragover", over(true));
  place.addEventListener("dragleave", over(false));
  place.addEventListener("drop", (event) => {
    over(false)(event);
    take(event.dataTransfer.files[0] ?? null);
  });
}

function size(bytes) {
  return bytes < 2 ** 20 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / 2 ** 20).toFixed(1).replace(/\.0$/, "")} MiB`;
}
