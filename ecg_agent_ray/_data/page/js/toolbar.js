// The paper's toolbar: tool, zoom, page, layout, scale, leads, waves.

import { el, icon } from "./dom.js";
import { hasTwelve, PAGE_S } from "./paper/layout.js";
import { fit, zoomBy } from "./paper/input.js";

const LAYOUTS = [["3x4", "3 × 4 and II"], ["6x2", "6 × 2"], ["stack", "Stacked"]];

export class Toolbar {
  constructor(box, paper) {
    this.paper = paper;
    const tool = (name, text, symbol, key) => this.#button(symbol, `${text} (${key})`, () => paper.setTool(name), text);
    this.pan = tool("pan", "Move", "hand", "C");
    this.calipers = tool("calipers", "Calipers", "calipers", "C");
    this.repeat = this.#button("repeat", "Repeat the interval along the strip (R)", () => paper.repeatCalipers());
    this.zoom = el("span", { class: "zoom", "aria-hidden": "true" });
    this.waves = this.#button("waves", "Show the measured waves (M)", () => paper.show({ marksShown: !paper.marksShown }), "Waves");
    this.layout = this.#select("Layout", LAYOUTS, (value) => paper.set({ layout: value }));
    this.speed = this.#select("Paper speed", [25, 50].map((mm) => [mm, `${mm} mm/s`]), (value) => paper.set({ mmPerS: Number(value) }));
    this.gain = this.#select("Gain", [5, 10, 20].map((mm) => [mm, `${mm} mm/mV`]), (value) => paper.set({ mmPerMv: Number(value) }));
    this.gain.value = "10";
    this.page = el("span", { class: "zoom" });
    this.pages = el(
      "span",
      { class: "group", role: "group", "aria-label": "Time" },
      this.#button("left", "Ten seconds back (Page Up)", () => paper.turn(-1)),
      this.page,
      this.#button("right", "Ten seconds on (Page Down)", () => paper.turn(1)),
    );
    this.leads = el("div", { class: "popover-body leads" });
    this.leadsWord = el("summary", { text: "Leads" });
    box.append(
      el("span", { class: "group segmented", role: "group", "aria-label": "Tool" }, this.pan, this.calipers),
      this.repeat,
      el(
        "span",
        { class: "group", role: "group", "aria-label": "Zoom" },
        this.#button("minus", "Smaller (−)", () => zoomBy(paper, 1 / 1.25)),
        this.zoom,
        this.#button("plus", "Larger (+)", () => zoomBy(paper, 1.25)),
        this.#button("fit", "Fit the paper (0)", () => fit(paper)),
      ),
      this.pages,
      this.waves,
      el("details", { class: "popover" }, this.leadsWord, this.leads),
      this.layout,
      this.speed,
      this.gain,
    );
    paper.addEventListener("change", () => this.#show());
    paper.addEventListener("reading", ({ detail }) => this.#read(detail));
  }

  open(ecg) {
    this.layout.hidden = !hasTwelve(ecg.leads);
    this.leads.replaceChildren(
      el(
        "p",
        { class: "group" },
        el("button", { type: "button", class: "link", text: "All", onclick: () => this.#choose(() => true) }),
        el("button", { type: "button", class: "link", text: "Limb", onclick: () => this.#choose((lead) => !lead.startsWith("V")) }),
        el("button", { type: "button", class: "link", text: "Chest", onclick: () => this.#choose((lead) => lead.startsWith("V")) }),
      ),
      ...ecg.leads.map((lead) =>
        el("label", {}, el("input", { type: "checkbox", value: lead, checked: true, onchange: () => this.#chosen() }), ` ${lead}`),
      ),
    );
  }

  #choose(wanted) {
    const boxes = [...this.leads.querySelectorAll("input")];
    // none would be an empty paper
    const any = boxes.some((box) => wanted(box.value));
    for (const box of boxes) box.checked = !any || wanted(box.value);
    this.#chosen();
  }

  #chosen() {
    const boxes = [...this.leads.querySelectorAll("input")];
    const leads = boxes.filter((box) => box.checked).map((box) => box.value);
    if (leads.length) this.paper.set({ leads });
    else this.#show();
  }

  #button(symbol, title, act, text = null) {
    return el("button", { type: "button", title, "aria-label": title, onclick: act }, icon(symbol), text && el("span", { text }));
  }

  #select(name, choices, chosen) {
    const options = choices.map(([value, text]) => el("option", { value, text }));
    const made = el("select", { "aria-label": name, onchange: () => chosen(made.value) }, ...options);
    return made;
  }

  #show() {
    const { paper } = this;
    if (!paper.page) return;
    this.pan.setAttribute("aria-pressed", String(paper.tool === "pan"));
    this.calipers.setAttribute("aria-pressed", String(paper.tool === "calipers"));
    this.repeat.hidden = paper.tool !== "calipers";
    this.repeat.setAttribute("aria-pressed", String(paper.calipers.repeat));
    this.waves.setAttribute("aria-pressed", String(paper.marksShown));
    this.zoom.textContent = `${Math.round((paper.view.scale / paper.view.fitScale) * 100)} %`;
    const { layout, leads, startS } = paper.settings;
    this.layout.value = paper.page.layout;
    this.layout.disabled = paper.page.layout !== layout;
    this.leadsWord.textContent = leads.length === paper.ecg.leads.length ? "Leads" : `Leads: ${leads.length} of ${paper.ecg.leads.length}`;
    for (const box of this.leads.querySelectorAll("input")) box.checked = leads.includes(box.value);
    this.pages.hidden = paper.pages < 2;
    const from = paper.page.layout === "stack" ? this.#seenFrom() : startS;
    this.page.textContent = `${from.toFixed(0)} s of ${paper.ecg.duration_s.toFixed(0)} s`;
    this.page.title = `A page is ${PAGE_S} s`;
  }

  #seenFrom() {
    const { view, page, settings } = this.paper;
    return Math.max(0, (view.x - page.strips[0].x) / settings.mmPerS);
  }

  #read(reading) {
    const output = document.getElementById("reading");
    if (reading) output.textContent = `Calipers, lead ${reading.lead}: ${reading.text}`;
    else if (this.paper.tool === "calipers") output.textContent = "Calipers: drag over a trace, or press Enter to place them.";
    else if (output.textContent.startsWith("Calipers")) output.textContent = "";
  }
}
