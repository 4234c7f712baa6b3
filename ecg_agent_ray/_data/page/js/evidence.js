// Shows on the paper where a value or a finding comes from. The tools' results are asked for once.

import { postJson } from "./api.js";
import { $, el } from "./dom.js";
import { capital, nameOf } from "./names.js";
import { LEAST_DROP } from "./paper/overlays.js";
import { quantity, whereMeasured } from "./quantities.js";

export class Evidence {
  /** @param {import("./paper/paper.js").Paper} paper @param {() => void} bringForward shows the paper's pane */
  constructor(paper, bringForward) {
    this.paper = paper;
    this.bringForward = bringForward;
    this.ecg = null;
    this.results = new Map();
    paper.addEventListener("change", () => this.#legend());
  }

  open(ecg) {
    this.ecg = ecg;
    this.results = new Map();
    this.say("");
  }

  say(text) {
    $("reading").textContent = text;
  }

  /** A tool's result; asked for once, unless it failed. */
  #ask(tool, options) {
    const key = JSON.stringify([tool, options]);
    if (!this.results.has(key)) {
      const answer = postJson(`/v1/ecgs/${this.ecg.id}/${tool}`, options);
      this.results.set(key, answer);
      answer.catch(() => this.results.delete(key));
    }
    return this.results.get(key);
  }

  measure(lead) {
    return this.#ask("measurement", { lead, beats: true });
  }

  classify() {
    return this.#ask("classification", {});
  }

  /** The beats behind a measurement that came without them (a step of the dialogue). */
  async #beatsOf(detail) {
    if (detail.beats) return detail;
    const auto = await this.measure("auto").catch(() => null);
    if (auto && auto.lead === detail.lead && auto.heart_rate_bpm === detail.heart_rate_bpm) return auto;
    return this.measure(detail.lead);
  }

  /** Show where a measured value was taken. @returns {Promise<boolean>} whether it could be shown */
  async showValue(key, detail) {
    const one = quantity(key);
    this.say("Looking for the beats …");
    try {
      const measurement = await this.#beatsOf(detail);
      const found = whereMeasured(one, measurement, this.ecg.sampling_rate);
      if (!found) {
        this.say(`${one.name}: no beat has both ends of this interval.`);
        return false;
      }
      this.bringForward();
      this.paper.show({ measurement, evidence: found, explanation: null });
      const main = found.spans.find((span) => span.main);
      await this.paper.reveal(found.lead, main.startS, main.endS);
      this.say(found.words);
      return true;
    } catch (error) {
      this.say(`The beats could not be shown. ${error.message}`);
      return false;
    }
  }

  /** Explain a label and show it. @throws {import("./api.js").ApiError} */
  async explain(label, leads = null) {
    this.say(`Looking where ${nameOf(label)} comes from …`);
    try {
      await this.showExplanation(await this.#ask("explanation", { label, leads }));
    } catch (error) {
      this.say(`No explanation. ${error.message}`);
      throw error;
    }
  }

  /** @param {boolean} forward whether a phone turns to the paper; not while an answer is being read */
  async showExplanation(explanation, forward = true) {
    if (forward) this.bringForward();
    this.paper.show({ explanation, evidence: null });
    const strongest = explanation.regions.reduce((best, one) => (one.score > best.score ? one : best), { score: 0 });
    const matters = strongest.score >= LEAST_DROP;
    const place = matters ? strongest : { lead: explanation.lead, ...explanation.cells[0] };
    await this.paper.survey(place.lead, place.start_s, place.end_s);
    const drop = (strongest.score * 100).toFixed(1);
    const words = matters
      ? `darker where the probability falls more without it, at most by ${drop} points (lead ${place.lead}, ${place.start_s}–${place.end_s} s)`
      : "no second of a single lead changes it by 0.1 points";
    this.say(`${capital(nameOf(explanation.label))} ${(explanation.probability * 100).toFixed(0)} %: ${words}.`);
  }

  clear() {
    this.paper.show({ evidence: null, explanation: null });
    this.paper.restoreLayout();
    this.say("");
  }

  #legend() {
    const { marksShown, measurement, explanation, evidence } = this.paper;
    const parts = [];
    const swatch = (kind, text) => el("span", { class: `swatch ${kind}` }, text);
    if (marksShown && measurement) {
      const where = measurement.lead === "global" ? "all leads" : `lead ${measurement.lead}`;
      parts.push(swatch("p", "P"), swatch("qrs", "QRS"), swatch("t", "T"), el("span", { text: `measured in ${where}` }));
    }
    if (explanation) {
      parts.push(swatch("region", `why ${nameOf(explanation.label)}`));
      if (explanation.cells.length) parts.push(swatch("cell", "what counts most in time and frequency"));
    }
    if (evidence) parts.push(swatch("evidence", "measured here"));
    if (explanation || evidence) {
      parts.push(el("button", { type: "button", class: "link", onclick: () => this.clear(), text: "Clear" }));
    }
    const words = parts.map((part) => part.textContent).join("|");
    const legend = $("legend");
    if (legend.dataset.words === words) return;
    legend.dataset.words = words;
    legend.replaceChildren(...parts);
  }
}
