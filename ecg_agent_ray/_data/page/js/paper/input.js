// Pointer, wheel, touch and keyboard on the paper.

import { stripAt } from "./layout.js";

const PAN_PX = 60;
const ZOOM_STEP = 1.25;
const WIDTH_S = 0.8;

export function listen(paper) {
  const { box } = paper;
  const pointers = new Map();
  let grip = null;

  box.addEventListener("pointerdown", (event) => {
    if (event.button > 0 || !paper.page || event.target.closest("button")) return;
    box.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, place(box, event));
    grip = pointers.size === 1 && paper.tool === "calipers" ? takeHold(paper, place(box, event)) : null;
  });
  box.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return hover(paper, place(box, event));
    const now = place(box, event);
    if (pointers.size === 2) pinch(paper, pointers, event.pointerId, now);
    else if (grip !== null) dragCalipers(paper, grip, before, now);
    else if (paper.tool === "pan") {
      paper.view.pan(before.x - now.x, before.y - now.y);
      paper.changed();
    }
    pointers.set(event.pointerId, now);
  });
  const release = (event) => {
    if (!pointers.delete(event.pointerId) || grip === null) return;
    grip = null;
    // a click without a drag places nothing
    const reading = paper.calipers.reading();
    if (reading && reading.ms < 2 && Math.abs(reading.mv) < 0.005) paper.calipers.clear();
    paper.read();
    paper.changed();
  };
  box.addEventListener("pointerup", release);
  box.addEventListener("pointercancel", release);
  box.addEventListener("wheel", (event) => wheel(paper, event), { passive: false });
  box.addEventListener("keydown", (event) => {
    if (paper.page && !event.altKey && !event.metaKey && key(paper, event)) event.preventDefault();
  });
}

function place(box, event) {
  const { left, top } = box.getBoundingClientRect();
  return { x: event.clientX - left - box.clientLeft, y: event.clientY - top - box.clientTop };
}

/** Time and voltage of a pixel on a strip. */
function on(paper, strip, { x, y }) {
  const { mmPerS, mmPerMv } = paper.settings;
  const at = paper.view.toPaper(x, y);
  const s = strip.startS + (at.x - strip.x) / mmPerS;
  return { s: Math.min(Math.max(s, strip.startS), strip.endS), mv: (strip.y - at.y) / mmPerMv };
}

function stripUnder(paper, pixel) {
  const at = paper.view.toPaper(pixel.x, pixel.y);
  return stripAt(paper.page.strips, at.x, at.y, paper.settings.mmPerS);
}

function takeHold(paper, pixel) {
  const held = paper.calipers.hit(paper.scene, pixel.x, pixel.y);
  const strip = stripUnder(paper, pixel);
  if (held !== null) return { held, strip: strip ?? paper.page.strips[0] };
  if (!strip) return null;
  const { s, mv } = on(paper, strip, pixel);
  paper.calipers.begin(strip.lead, s, mv);
  paper.changed();
  return { held: 1, strip };
}

function dragCalipers(paper, { held, strip }, before, now) {
  const from = on(paper, strip, before);
  const to = on(paper, strip, now);
  if (held === "all") paper.calipers.moveAll(to.s - from.s, to.mv - from.mv);
  else paper.calipers.moveEdge(held, to.s, to.mv);
  paper.read();
  paper.changed();
}

function hover(paper, pixel) {
  if (paper.tool !== "calipers" || !paper.page) return;
  const held = paper.calipers.hit(paper.scene, pixel.x, pixel.y);
  paper.box.dataset.grip = held === "all" ? "move" : held === null ? "" : "edge";
}

function pinch(paper, pointers, moved, now) {
  const other = [...pointers].find(([id]) => id !== moved)[1];
  const before = pointers.get(moved);
  const apart = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);
  const factor = apart(now, other) / Math.max(1, apart(before, other));
  paper.view.zoom(factor, (now.x + other.x) / 2, (now.y + other.y) / 2);
  paper.view.pan((before.x - now.x) / 2, (before.y - now.y) / 2);
  paper.changed();
}

function wheel(paper, event) {
  if (!paper.page) return;
  event.preventDefault();
  const { x, y } = place(paper.box, event);
  const unit = event.deltaMode === 1 ? 16 : 1;
  if (event.ctrlKey || event.metaKey) paper.view.zoom(Math.exp(-event.deltaY * unit * 0.006), x, y);
  else if (event.shiftKey) paper.view.pan((event.deltaX || event.deltaY) * unit, 0);
  else paper.view.pan(event.deltaX * unit, event.deltaY * unit);
  paper.changed();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** @returns {boolean} whether the key meant something here */
function key(paper, event) {
  const { calipers } = paper;
  if (event.ctrlKey) return false;
  const arrow = ARROWS[event.key];
  if (arrow) {
    const far = event.shiftKey ? 10 : 1;
    if (calipers.place) {
      calipers.nudge(arrow[0] * far, -arrow[1] * far, paper.signal.rate);
      paper.read();
    } else paper.view.pan(arrow[0] * PAN_PX * (far > 1 ? 5 : 1), arrow[1] * PAN_PX * (far > 1 ? 5 : 1));
    paper.changed();
    return true;
  }
  const action = ACTIONS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return false;
  action(paper);
  return true;
}

const ACTIONS = {
  "+": (paper) => zoomBy(paper, ZOOM_STEP),
  "=": (paper) => zoomBy(paper, ZOOM_STEP),
  "-": (paper) => zoomBy(paper, 1 / ZOOM_STEP),
  0: (paper) => fit(paper),
  PageDown: (paper) => paper.turn(1),
  PageUp: (paper) => paper.turn(-1),
  c: (paper) => paper.setTool(paper.tool === "calipers" ? "pan" : "calipers"),
  m: (paper) => paper.show({ marksShown: !paper.marksShown }),
  x: (paper) => paper.calipers.place && (paper.calipers.otherEdge(), paper.changed()),
  r: (paper) => paper.repeatCalipers(),
  Enter: (paper) => placeCalipers(paper),
  Escape: (paper) => {
    if (paper.calipers.place) paper.calipers.clear();
    else paper.show({ evidence: null, explanation: null });
    paper.read();
    paper.changed();
  },
};

export function zoomBy(paper, factor) {
  paper.view.zoom(factor);
  paper.changed();
}

export function fit(paper) {
  paper.view.fit();
  paper.changed();
}

/** Calipers in the middle of what is seen, for the keyboard. */
function placeCalipers(paper) {
  if (paper.tool !== "calipers") return;
  const strip = stripUnder(paper, { x: paper.view.width / 2, y: paper.view.height / 2 }) ?? paper.page.strips[0];
  const { s } = on(paper, strip, { x: paper.view.width / 2, y: paper.view.height / 2 });
  const from = Math.max(strip.startS, Math.min(s - WIDTH_S / 2, strip.endS - WIDTH_S));
  paper.calipers.begin(strip.lead, from, 0);
  paper.calipers.moveEdge(1, Math.min(from + WIDTH_S, strip.endS), 0);
  paper.read();
  paper.changed();
}
