// What went wrong, in words, at the place of the page where it happened.

import { ServerError, UnreachableError } from "./api.js";
import { el } from "./dom.js";
import { said, t } from "./words.js";

/** Sentences for an error: what it means, what the server said of it, when to try again. */
export function explained(error) {
  if (error instanceof UnreachableError) return [t(error.began ? "error.ended" : "error.network")];
  if (!(error instanceof ServerError)) throw error;
  const meant = said(`error.code.${error.code}`) ?? t("error.status", { status: error.status });
  const retry = error.retryAfter === null ? null : t("error.retry", { seconds: error.retryAfter });
  return [meant, retry, t("error.server", { message: error.body.message })].filter(Boolean);
}

/** Show an error in a notice and have it read out. */
export function show(notice, error) {
  const [first, ...rest] = explained(error);
  notice.replaceChildren(
    el("strong", {}, t("error.title")),
    el("p", {}, first),
    ...rest.map((line) => el("p", { class: "hint" }, line)),
  );
  notice.hidden = false;
}

/** Say something that the page found by itself. */
export function tell(notice, text) {
  notice.replaceChildren(el("p", {}, text));
  notice.hidden = false;
}

/** Take a notice away. */
export function hide(notice) {
  notice.hidden = true;
  notice.replaceChildren();
}
