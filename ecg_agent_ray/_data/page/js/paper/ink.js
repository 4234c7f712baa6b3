// Colours of the paper, read from the style sheet so that light and dark come from one place.

const NAMES = ["paper", "minor", "major", "ink", "faint", "p", "qrs", "t", "region", "evidence", "calipers", "poor"];

/** Name -> colour that a canvas understands. */
export function readInk(element) {
  const probe = document.createElement("span");
  element.append(probe);
  const ink = {};
  for (const name of NAMES) {
    // a custom property computes to its text, a colour property to the colour
    probe.style.color = `var(--ink-${name})`;
    ink[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return ink;
}
