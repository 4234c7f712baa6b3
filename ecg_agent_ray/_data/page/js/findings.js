// What the classifier says, and where in the signal each finding comes from.

import { busy, el, failure } from "./dom.js";
import { capital, meaningOf, nameOf } from "./names.js";

const LIKELY = 5;

export class Findings {
  constructor(box, evidence) {
    this.evidence = evidence;
    this.body = el("div", { class: "card-body" });
    this.failed = false;
    box.append(el("div", { class: "card-head" }, el("h3", { id: "findings-title", text: "Classified" })), this.body);
  }

  async open(ecg) {
    this.ecg = ecg;
    this.body.replaceChildren(busy("Classifying …"));
    try {
      const found = await this.evidence.classify();
      if (ecg !== this.ecg) return;
      this.failed = false;
      this.body.replaceChildren(...this.#shown(found));
    } catch (error) {
      if (ecg !== this.ecg) return;
      this.failed = true;
      this.body.replaceChildren(failure(`No findings. ${error.message}`, () => this.open(ecg)));
    }
  }

  /** The service's parts, as they come and go. */
  parts({ classification }) {
    if (classification?.ready && this.failed && this.ecg) this.open(this.ecg);
  }

  #shown({ labels, positive, not_assessed, lead_configuration, model }) {
    const others = Object.entries(labels)
      .filter(([code, p]) => p !== null && !positive.includes(code))
      .sort((a, b) => b[1] - a[1])
      .slice(0, LIKELY);
    const main = positive.length
      ? el("ul", { class: "findings" }, ...positive.map((code) => this.#row(code, labels[code])))
      : el("p", { text: "Nothing above 50 %." });
    const assessed = Object.keys(labels).length - not_assessed.length;
    const rest = el(
      "details",
      { class: "notes" },
      el("summary", { text: "Less likely" }),
      el("ul", { class: "findings" }, ...others.map(([code, p]) => this.#row(code, p))),
      el("p", { class: "soft small", text: `${assessed} statements assessed from ${lead_configuration} by ${model}; ${not_assessed.length} are not.` }),
    );
    return [main, rest];
  }

  #row(code, probability) {
    const percent = `${(probability * 100).toFixed(0)} %`;
    const meter = el("meter", { min: 0, max: 1, value: probability, "aria-hidden": "true" });
    const why = el("button", { type: "button", class: "link", "aria-label": `Why ${nameOf(code)}`, text: "Why?" });
    why.addEventListener("click", async () => {
      why.disabled = true;
      await this.evidence.explain(code).catch(() => {});
      why.disabled = false;
    });
    return el(
      "li",
      { "data-code": code },
      el("span", { class: "finding-name", title: meaningOf(code) }, capital(nameOf(code))),
      meter,
      el("span", { class: "percent", text: percent }),
      why,
    );
  }
}
