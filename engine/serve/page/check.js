// A picture held against its manifest, here in the browser, and files to take away.

import { el } from "./dom.js";
import { written } from "./json.js";
import { t } from "./words.js";

/** Whether this browser computes digests: it does on this machine and over HTTPS. */
export const able = Boolean(globalThis.crypto?.subtle);

/** SHA-256 of bytes, in hexadecimal digits. */
export async function digest(bytes) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** What the digest of the picture at an address is in a manifest: over its shape and its pixels in RGB. */
export async function pixelDigest(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const { naturalWidth: width, naturalHeight: height } = image;
  const canvas = el("canvas", { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const rgba = pen.getImageData(0, 0, width, height).data;
  const head = new TextEncoder().encode(`|u1(${height}, ${width}, 3)`);
  const bytes = new Uint8Array(head.length + width * height * 3);
  bytes.set(head);
  for (let pixel = 0, to = head.length; pixel < rgba.length; pixel += 4, to += 3) {
    bytes.set(rgba.subarray(pixel, pixel + 3), to);
  }
  return digest(bytes);
}

/** Compare each picture there is with what its manifest says: [{ name, named, computed, same }]. */
export async function compared(manifest, pictures) {
  const named = { picture: manifest.hashes.image, draft: manifest.hashes.draft };
  const found = { picture: pictures.final, draft: pictures.draft };
  const there = Object.keys(named).filter((name) => named[name] && found[name]);
  return Promise.all(
    there.map(async (name) => {
      const computed = await pixelDigest(found[name]);
      return { name, named: named[name], computed, same: computed === named[name] };
    }),
  );
}

/** What a comparison found, as lines of a list. */
export function lines(found) {
  if (!able) return [el("li", {}, t("check.insecure"))];
  if (!found.length) return [el("li", {}, t("check.nothing"))];
  return found.map(({ name, same }) =>
    el("li", { class: same ? "same" : "differs" }, t(same ? "check.same" : "check.differs", { name: t(`check.${name}`) })),
  );
}

/** A link that saves a file. */
export function saving(words, address, name) {
  return el("a", { class: "save", href: address, download: name }, words);
}

/** An address for a value as JSON. */
export function jsonAddress(value) {
  return URL.createObjectURL(new Blob([written(value, 1), "\n"], { type: "application/json" }));
}
