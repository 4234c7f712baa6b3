// Calipers on one strip: two moments and two voltages, read as ms, bpm and mV.

import { label, strips } from "./overlays.js";

const GRIP_PX = 9;
const STEP_MV = 0.01;

export class Calipers {
  constructor() {
    this.place = null;
    this.repeat = false;
  }

  /** @param {string} lead @param {number} s seconds @param {number} mv where the drag began */
  begin(lead, s, mv) {
    this.place = { lead, times: [s, s], levels: [mv, mv], edge: 1 };
  }

  clear() {
    this.place = null;
  }

  /** A part that a pointer at this pixel takes hold of: an edge's number, "all", or null. */
  hit(scene, px, py) {
    if (!this.place) return null;
    for (const at of strips(scene, this.place.lead)) {
      if (py < at.top - GRIP_PX || py > at.bottom + GRIP_PX) continue;
      const edges = this.place.times.map(at.x);
      const near = edges.map((x) => Math.abs(px - x));
      const nearest = near[0] < near[1] ? 0 : 1;
      if (near[nearest] <= GRIP_PX) return nearest;
      if (px > Math.min(...edges) && px < Math.max(...edges)) return "all";
    }
    return null;
  }

  moveEdge(edge, s, mv) {
    this.place.edge = edge;
    this.place.times[edge] = s;
    if (mv !== null) this.place.levels[edge] = mv;
  }

  moveAll(ds, dmv) {
    this.place.times = this.place.times.map((s) => s + ds);
    this.place.levels = this.place.levels.map((mv) => mv + dmv);
  }

  /** One step of the active edge by keyboard: `dx` samples, `dy` hundredths of a millivolt. */
  nudge(dx, dy, rate) {
    const { times, levels, edge } = this.place;
    times[edge] += dx / rate;
    levels[edge] += dy * STEP_MV;
  }

  otherEdge() {
    this.place.edge = 1 - this.place.edge;
  }

  /** @returns {?{ms: number, bpm: ?number, mv: number, lead: string, text: string}} */
  reading() {
    if (!this.place) return null;
    const [s0, s1] = this.place.times;
    const ms = Math.abs(s1 - s0) * 1000;
    const mv = this.place.levels[1] - this.place.levels[0];
    const bpm = ms >= 1 ? 60_000 / ms : null;
    const rate = bpm !== null && bpm < 1000 ? `${bpm.toFixed(0)} bpm` : "– bpm";
    return { ms, bpm, mv, lead: this.place.lead, text: `${ms.toFixed(0)} ms · ${rate} · ${mv.toFixed(2)} mV` };
  }

  draw(context, scene) {
    if (!this.place) return;
    const { times, levels, lead, edge } = this.place;
    context.strokeStyle = context.fillStyle = scene.ink.calipers;
    for (const at of strips(scene, lead)) {
      const middle = (times[0] + times[1]) / 2;
      if (middle < at.strip.startS || middle > at.strip.endS) continue;
      if (this.repeat) this.#repeats(context, at);
      const [x0, x1] = times.map(at.x);
      const [y0, y1] = levels.map(at.y);
      context.globalAlpha = 0.1;
      context.fillRect(x0, at.top, x1 - x0, at.bottom - at.top);
      context.globalAlpha = 1;
      for (const [index, x] of [x0, x1].entries()) {
        context.lineWidth = index === edge ? 2.5 : 1.5;
        line(context, x, at.top - 6, x, at.bottom + 6);
      }
      context.lineWidth = 1.5;
      context.setLineDash([4, 3]);
      for (const y of [y0, y1]) line(context, Math.min(x0, x1) - 8, y, Math.max(x0, x1) + 8, y);
      context.setLineDash([]);
      label(context, scene, this.reading().text, (x0 + x1) / 2, at.top - 8, scene.ink.calipers);
    }
  }

  // marching the interval along the strip shows at a glance whether a rhythm is regular
  #repeats(context, at) {
    const [from, to] = [...this.place.times].sort((a, b) => a - b);
    const step = to - from;
    if (step < 0.05) return;
    context.globalAlpha = 0.55;
    context.lineWidth = 1;
    const first = Math.ceil((at.strip.startS - from) / step);
    for (let k = first; from + k * step <= at.strip.endS; k++) {
      const x = at.x(from + k * step);
      line(context, x, at.top, x, at.bottom);
    }
    context.globalAlpha = 1;
  }
}

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}
