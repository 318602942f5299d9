// Elements from code. Text is always text and never markup, whoever wrote it.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners (`onclick`) and children; what is null among the children is left out. */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for a drawing. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

/** A picture; a small one keeps its hard edges when it is shown larger. */
export function picture(address, alt, kind = null) {
  const sharp = ({ target }) => target.classList.toggle("small", target.naturalWidth <= 192);
  return el("img", { src: address, alt, class: kind, onload: sharp });
}

/** The element of the page with this id. */
export function at(id) {
  return document.getElementById(id);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An address for bytes in base64, good until the page is left or `URL.revokeObjectURL` is called. */
export function addressOf(base64, kind = "image/png") {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: kind }));
}
