// The page's language: the browser's own at first, then what was last chosen here.

import { en } from "./en.js";
import { ja } from "./ja.js";

const TABLES = { en, ja };
const KEPT = "twig-language";
const listeners = [];
let language = chosen();

function chosen() {
  const wanted = [localStorage.getItem(KEPT), ...navigator.languages];
  return wanted.map((tag) => tag?.slice(0, 2)).find((tag) => tag in TABLES) ?? "en";
}

/** Words for a name, with `{places}` filled in. */
export function t(name, values = {}) {
  return TABLES[language][name].replace(/\{(\w+)\}/g, (_, place) => values[place]);
}

/** Words for one of many names that come from the server; null where there are none. */
export function said(name, values = {}) {
  return name in TABLES[language] ? t(name, values) : null;
}

/** Speak another language from now on. */
export function speak(name) {
  language = name;
  localStorage.setItem(KEPT, name);
  tell();
}

/** Call now, and whenever the language changes. */
export function onLanguage(listener) {
  listeners.push(listener);
  listener();
}

/** Put words into all of the page that stands in its file. */
export function tell() {
  document.documentElement.lang = language;
  for (const each of document.querySelectorAll("[data-t]")) each.textContent = t(each.dataset.t);
  for (const each of document.querySelectorAll("[data-t-label]")) each.setAttribute("aria-label", t(each.dataset.tLabel));
  for (const each of document.querySelectorAll("[data-t-placeholder]")) each.placeholder = t(each.dataset.tPlaceholder);
  for (const each of document.querySelectorAll("[data-language]")) {
    each.setAttribute("aria-pressed", String(each.dataset.language === language));
  }
  for (const listener of listeners) listener();
}

/** How this browser writes numbers and dates in the page's language. */
function locale() {
  return navigator.languages.find((tag) => tag.startsWith(language)) ?? language;
}

/** A number with three digits that count. */
export function number(value) {
  if (value === null) return t("number.none");
  return new Intl.NumberFormat(locale(), { maximumSignificantDigits: 3 }).format(value);
}

/** A share of one in per cent. */
export function percent(value, digits = 0) {
  if (value === null) return t("number.none");
  return new Intl.NumberFormat(locale(), { style: "percent", maximumFractionDigits: digits }).format(value);
}

/** A moment, to the second; a day alone where no time is said. */
export function when(text) {
  const style = text.length > 10 ? { dateStyle: "medium", timeStyle: "medium" } : { dateStyle: "long", timeZone: "UTC" };
  return new Intl.DateTimeFormat(locale(), style).format(new Date(text));
}
