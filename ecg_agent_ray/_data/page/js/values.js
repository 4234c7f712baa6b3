// The measured values below the paper; each shows on a click where it was measured.

import { busy, el, failure, number } from "./dom.js";
import { QUANTITIES } from "./quantities.js";

const SHOWN = ["heart_rate_bpm", "pr_ms", "qrs_ms", "qt_ms", "qtc_bazett_ms", "qtc_fridericia_ms"];

export class Values {
  constructor(box, evidence) {
    this.evidence = evidence;
    this.lead = el("select", { "aria-label": "Lead to measure", onchange: () => this.#measure() });
    this.body = el("div", { class: "card-body" });
    box.append(
      el("div", { class: "card-head" }, el("h3", { id: "values-title", text: "Measured" }), el("label", { class: "soft small" }, "in ", this.lead)),
      this.body,
    );
  }

  async open(ecg) {
    this.ecg = ecg;
    const choices = [["auto", "best lead"], ["global", "all leads"], ...ecg.leads.map((lead) => [lead, `lead ${lead}`])];
    this.lead.replaceChildren(...choices.map(([value, text]) => el("option", { value, text })));
    await this.#measure();
  }

  async #measure() {
    const { ecg } = this;
    const lead = this.lead.value;
    this.body.replaceChildren(busy("Measuring …"));
    try {
      const measurement = await this.evidence.measure(lead);
      if (ecg !== this.ecg || lead !== this.lead.value) return;
      this.evidence.paper.show({ measurement, evidence: null });
      this.body.replaceChildren(...this.#shown(measurement));
    } catch (error) {
      if (ecg === this.ecg) this.body.replaceChildren(failure(`Not measured. ${error.message}`, () => this.#measure()));
    }
  }

  #shown(measurement) {
    const { lead, n_beats, status, notes } = measurement;
    const about = `${lead === "global" ? "All usable leads" : `Lead ${lead}`}, ${n_beats} ${n_beats === 1 ? "beat" : "beats"}, median`;
    const cells = SHOWN.map((key) => this.#cell(QUANTITIES.find((one) => one.key === key), measurement));
    const said = notes.length
      ? el("details", { class: "notes" }, el("summary", { text: `${notes.length} ${notes.length === 1 ? "note" : "notes"}` }), el("ul", {}, ...notes.map((text) => el("li", { text }))))
      : null;
    const first = el("p", { class: "soft small" }, status === "ok" ? about : `${about} · ${status}`);
    return [el("div", { class: "values" }, ...cells), first, said].filter(Boolean);
  }

  #cell({ key, name, unit, digits }, measurement) {
    const value = measurement[key];
    const inside = [
      el("span", { class: "value-name", text: name }),
      el("span", { class: "value-number" }, number(value, digits), el("small", { text: value === null ? "" : ` ${unit}` })),
    ];
    if (value === null) return el("div", { class: "value none", title: "Not measurable, see the notes" }, ...inside);
    const show = () => this.evidence.showValue(key, measurement);
    return el("button", { type: "button", class: "value", "data-key": key, title: "Show where it was measured", onclick: show }, ...inside);
  }
}
