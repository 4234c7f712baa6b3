// The few helpers for making elements. Text goes in as text nodes only.

export const $ = (id) => document.getElementById(id);

/**
 * An element with attributes, listeners (`onclick` …) and children; null children are left out.
 * @param {string} tag
 * @param {Object<string, any>} attributes
 * @param {...(Node|string|null|undefined)} children
 */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "text") made.textContent = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the symbols of index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A message with a way to try again, for a part of the page that failed. */
export function failure(message, retry) {
  const again = retry && el("button", { type: "button", class: "small", onclick: retry, text: "Try again" });
  return el("div", { class: "failure", role: "alert" }, el("p", { text: message }), again);
}

export function busy(text) {
  return el("p", { class: "busy soft", role: "status", text });
}

export const number = (value, digits = 0) =>
  value === null || value === undefined ? "–" : value.toFixed(digits);
