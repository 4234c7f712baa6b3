// The ECG paper: what is on it, and its redrawing. Input is in input.js, drawing in trace.js and overlays.js.

import { failure } from "../dom.js";
import { Calipers } from "./calipers.js";
import { readInk } from "./ink.js";
import { listen } from "./input.js";
import { hasTwelve, layOut, PAGE_S } from "./layout.js";
import { drawEvidence, drawMarks, drawRegions } from "./overlays.js";
import { drawPaper, drawStrips } from "./trace.js";
import { Viewport } from "./viewport.js";

const NARROW_PX = 640;
// below, a strip of ten seconds is no longer read but looked over
const LEAST_STACK_PX_PER_MM = 2.6;
const LEAST_SURVEY_PX_PER_MM = 1.2;

export class Paper extends EventTarget {
  /** Events: `change` (view, tool, layout), `reading` (calipers). */
  constructor(box, canvas) {
    super();
    this.box = box;
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.view = new Viewport();
    this.calipers = new Calipers();
    this.tool = "pan";
    this.settings = { layout: "3x4", mmPerS: 25, mmPerMv: 10, startS: 0, leads: [] };
    this.marksShown = false;
    this.measurement = this.explanation = this.evidence = null;
    this.ecg = this.signal = this.page = null;
    this.restyle();
    new ResizeObserver(() => this.resize()).observe(box);
    listen(this);
  }

  /** Show another recording. Resolves when its first page is drawn. */
  async open(ecg, signal) {
    Object.assign(this, { ecg, signal, page: null, measurement: null, explanation: null, evidence: null });
    this.calipers.clear();
    const narrow = this.box.clientWidth < NARROW_PX;
    const layout = !hasTwelve(ecg.leads) || narrow ? "stack" : "3x4";
    this.settings = { ...this.settings, layout, startS: 0, leads: [...ecg.leads] };
    this.ownLayout = layout;
    this.canvas.setAttribute(
      "aria-label",
      `ECG ${ecg.record_id}: ${ecg.leads.join(", ")}; ${ecg.duration_s.toFixed(1)} seconds on paper`,
    );
    this.say("Loading the signal …");
    this.view.fitted = true;
    await this.load(0, PAGE_S);
    if (this.signal !== signal) return;
    this.relay();
  }

  /** Have the samples of a stretch, saying so while it takes and when it fails. */
  async load(startS, endS) {
    const signal = this.signal;
    try {
      const fresh = await signal.load(startS, endS);
      if (this.signal !== signal) return;
      this.say("");
      if (fresh && this.page) this.redraw();
    } catch (error) {
      const again = () => this.load(startS, endS).then(() => this.relay(), () => {});
      if (this.signal === signal) this.say(`The signal did not load. ${error.message}`, again);
      throw error;
    }
  }

  /** Words over the paper, and a way to try again if there is one; none for "". */
  say(text, retry = null) {
    const note = this.box.querySelector(".paper-note");
    note.replaceChildren(retry ? failure(text, retry) : text);
    note.hidden = !text;
  }

  /** The user's settings: layout, leads, mmPerS, mmPerMv, startS. */
  set(changes) {
    if ("layout" in changes) this.ownLayout = changes.layout;
    this.#apply(changes);
  }

  /** The layout that the user chose, after another one was needed to show something. */
  restoreLayout() {
    if (this.settings.layout !== this.ownLayout) this.#apply({ layout: this.ownLayout });
  }

  #apply(changes) {
    Object.assign(this.settings, changes);
    if (this.signal && "startS" in changes) {
      this.load(this.settings.startS, this.settings.startS + PAGE_S).then(() => this.relay(), () => {});
    }
    if ("layout" in changes || "leads" in changes) this.view.fitted = true;
    this.relay();
  }

  /** Lay the page out anew. */
  relay() {
    if (!this.ecg) return;
    const extent = (lead, from, to) => this.signal.extent(lead, from, to);
    this.page = layOut({ ...this.settings, durationS: this.ecg.duration_s, extent });
    this.#place();
  }

  #place() {
    const { width, height, layout } = this.page;
    this.view.setPaper(width, height, layout === "stack" ? this.#leastScale(height) : 0);
    this.changed();
  }

  // ten seconds of twelve leads fit a desktop as a whole; a phone and longer recordings do not get smaller than legible
  #leastScale(paperHeight) {
    const narrow = this.box.clientWidth < NARROW_PX;
    return narrow ? LEAST_STACK_PX_PER_MM : Math.min(LEAST_STACK_PX_PER_MM, Math.max(LEAST_SURVEY_PX_PER_MM, this.box.clientHeight / paperHeight));
  }

  get pages() {
    return Math.max(1, Math.ceil((this.ecg?.duration_s ?? 0) / PAGE_S - 0.05));
  }

  /** Ten seconds on or back. */
  turn(by) {
    if (this.page?.layout === "stack") {
      this.view.pan(by * PAGE_S * this.settings.mmPerS * this.view.scale, 0);
      this.changed();
      return;
    }
    const last = (this.pages - 1) * PAGE_S;
    this.set({ startS: Math.min(Math.max(this.settings.startS + by * PAGE_S, 0), last) });
  }

  setTool(tool) {
    this.tool = tool;
    this.box.dataset.tool = tool;
    if (tool !== "calipers") this.calipers.clear();
    this.read();
    this.changed();
  }

  repeatCalipers() {
    this.calipers.repeat = !this.calipers.repeat;
    this.changed();
  }

  show(overlays) {
    Object.assign(this, overlays);
    this.changed();
  }

  /** Bring a stretch of a lead into sight, on another page or in another layout if need be. */
  async reveal(lead, startS, endS) {
    this.restoreLayout();
    if (lead !== null && !this.settings.leads.includes(lead)) this.#apply({ leads: [...this.ecg.leads] });
    await this.load(startS, endS).catch(() => {});
    let strip = this.#stripOf(lead, startS, endS);
    if (!strip && this.page.layout !== "stack") {
      this.#apply({ startS: Math.floor(startS / PAGE_S) * PAGE_S });
      strip = this.#stripOf(lead, startS, endS);
      if (!strip) this.#apply({ layout: "stack" });
      strip = this.#stripOf(lead, startS, endS);
    }
    if (!strip) return;
    const left = strip.x + (startS - strip.startS) * this.settings.mmPerS;
    const right = left + Math.max(endS - startS, 0.4) * this.settings.mmPerS;
    this.view.reveal({ left, right, top: strip.top - 4, bottom: strip.bottom + 2 });
    this.changed();
  }

  /** All leads one below the other, as a whole if they fit, else with a stretch of one of them in sight. */
  async survey(lead, startS, endS) {
    this.#apply({ layout: "stack", leads: [...this.ecg.leads] });
    this.view.fit();
    await this.load(startS, endS).catch(() => {});
    const strip = this.#stripOf(lead, startS, endS);
    if (strip) this.view.show({ x: strip.x + ((startS + endS) / 2) * this.settings.mmPerS, y: strip.y });
    this.changed();
  }

  #stripOf(lead, startS, endS) {
    const usable = this.page.strips.filter(
      (strip) => (lead === null || strip.lead === lead) && startS >= strip.startS && endS <= strip.endS + 1e-6,
    );
    // the longest, so that the neighbours are seen too
    return usable.sort((a, b) => b.endS - b.startS - (a.endS - a.startS))[0];
  }

  read() {
    this.dispatchEvent(new CustomEvent("reading", { detail: this.calipers.reading() }));
  }

  changed() {
    this.redraw();
    this.dispatchEvent(new Event("change"));
  }

  restyle() {
    this.ink = readInk(this.box);
    this.redraw();
  }

  resize() {
    const { clientWidth, clientHeight } = this.box;
    if (!clientWidth || !clientHeight) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    this.view.resize(clientWidth, clientHeight);
    if (this.page) this.#place();
  }

  get scene() {
    const { view, page, ink, signal, ecg, measurement, explanation, evidence } = this;
    const { mmPerS, mmPerMv } = this.settings;
    const ratio = window.devicePixelRatio || 1;
    return { view, page, ink, signal, ecg, measurement, explanation, evidence, mmPerS, mmPerMv, ratio };
  }

  redraw() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.#draw();
    });
  }

  #draw() {
    if (!this.page) return;
    const { context, scene } = this;
    context.setTransform(scene.ratio, 0, 0, scene.ratio, 0, 0);
    drawPaper(context, scene);
    drawRegions(context, scene);
    if (this.marksShown) drawMarks(context, scene);
    drawStrips(context, scene);
    drawEvidence(context, scene);
    this.calipers.draw(context, scene);
    this.#loadSeen();
  }

  // long strips are fetched as they come into sight
  #loadSeen() {
    if (this.page.layout !== "stack") return;
    const { mmPerS } = this.settings;
    const from = (this.view.x - this.page.strips[0].x) / mmPerS;
    const to = from + this.view.width / this.view.scale / mmPerS;
    this.load(Math.max(0, from), Math.min(this.ecg.duration_s, to)).catch(() => {});
  }
}
