// The page: what the server offers, which view is open, and one picture at a time.

import { ServerError, draw, get } from "./api.js";
import { Asking } from "./asking.js";
import { Audit } from "./audit.js";
import { Dial } from "./dial.js";
import { at, el } from "./dom.js";
import { drawingKey } from "./keys.js";
import { hide, show } from "./notice.js";
import { Run } from "./run.js";
import { onLanguage, speak, tell } from "./words.js";

const VIEWS = ["draw", "audit"];
const MOST_RUNS = 20;

const notice = at("notice");
const runs = [];
let settings = null;
let asking = null;
let running = null;

/** Ask the server what it offers, and show the form that fits it; without a key that opens it, ask for one. */
async function open() {
  try {
    settings = await settingsOf(null);
  } catch (error) {
    const refused = error instanceof ServerError && error.status === 401;
    at("key-form").hidden = !refused;
    if (refused && !drawingKey.get()) return;
    drawingKey.clear();
    show(notice, error);
    return;
  }
  hide(notice);
  at("key-form").hidden = true;
  asking ??= new Asking(settings, new Dial(settings), notice);
  fit();
  audit.ask();
  view();
}

/** What may be asked of a model, of the server's first where none is named. */
function settingsOf(model) {
  return get(`v1/twig/settings${model === null ? "" : `?model=${encodeURIComponent(model)}`}`, drawingKey.get());
}

/** Fit the form to the model of the settings, one of several that may be chosen among. */
function fit() {
  const { model, models } = settings;
  at("model").textContent = model;
  at("model-field").hidden = models.length < 2;
  at("model-choice").replaceChildren(...models.map((name) => el("option", { value: name }, name)));
  at("model-choice").value = model;
  asking.fit(settings);
}

/** Ask for what the chosen model allows, from then on. */
async function choose() {
  try {
    settings = await settingsOf(at("model-choice").value);
    hide(notice);
  } catch (error) {
    show(notice, error);
  }
  fit();
}

/** Show the view that the address names. */
function view() {
  const name = location.hash.slice(1);
  if (!VIEWS.includes(name) && location.hash) return; // the skip link
  const chosen = VIEWS.includes(name) ? name : "draw";
  at("draw").hidden = chosen !== "draw" || settings === null;
  at("audit").hidden = chosen !== "audit";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${chosen}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** Draw what the form asks for, until it is there, refused or stopped. */
async function start() {
  const wanted = asking.wanted();
  const run = new Run(wanted, settings.bounds.drafts);
  const leaving = new AbortController();
  running = { run, leaving };
  at("empty").hidden = true;
  hide(notice);
  at("runs").prepend(run.article);
  runs.unshift(run);
  runs.splice(MOST_RUNS).forEach((old) => old.close());
  busy(true);
  try {
    for await (const event of draw({ ...wanted, key: drawingKey.get(), signal: leaving.signal })) run.hear(event);
  } catch (error) {
    if (leaving.signal.aborted) run.stop();
    else run.fail(error);
    if (error.status === 401) at("key-form").hidden = false;
  } finally {
    running = null;
    busy(false);
  }
}

function busy(is) {
  const from = is ? at("go") : at("stop");
  const to = is ? at("stop") : at("go");
  const focused = document.activeElement === from;
  to.disabled = false;
  from.disabled = true;
  if (focused) to.focus();
}

at("asking").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) start();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("asking").requestSubmit();
});
at("model-choice").addEventListener("change", choose);
at("stop").addEventListener("click", () => running?.leaving.abort());
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  drawingKey.set(at("key").value.trim());
  at("key").value = "";
  open();
});
for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => speak(button.dataset.language));
}
window.addEventListener("hashchange", view);

tell();
onLanguage(() => runs.forEach((run) => run.render()));
const audit = new Audit(() => settings);
audit.ask();
view();
open();
