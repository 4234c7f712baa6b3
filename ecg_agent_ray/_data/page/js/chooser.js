// Opening an ECG: from files, by dropping them, or from the samples of the service.

import { getJson, request } from "./api.js";
import { $, busy, el, failure } from "./dom.js";
import { capital, nameOf } from "./names.js";

export class Chooser {
  /** @param {{opened: (ecg: object) => void, back: () => void}} told */
  constructor({ opened, back }) {
    this.opened = opened;
    this.message = el("p", { class: "banner bad", role: "alert", hidden: true });
    $("drop").after(this.message);
    $("files").addEventListener("change", () => this.#upload($("files").files));
    $("back").addEventListener("click", back);
    this.#acceptDrops(document.body);
  }

  /** Fetch the samples, unless they are there. */
  async refresh() {
    const list = $("samples");
    if (list.childElementCount && list.dataset.loaded) return;
    list.setAttribute("aria-busy", "true");
    list.replaceChildren(el("li", {}, busy("Loading the samples …")));
    try {
      const { data } = await getJson("/v1/samples");
      list.replaceChildren(...data.map((sample) => this.#sample(sample)));
      list.dataset.loaded = "yes";
      if (!data.length) list.replaceChildren(el("li", { class: "soft", text: "The service has no samples." }));
    } catch (error) {
      list.replaceChildren(el("li", {}, failure(`No samples. ${error.message}`, () => this.refresh())));
    }
    list.removeAttribute("aria-busy");
  }

  async delete(id) {
    await request(`/v1/ecgs/${id}`, { method: "DELETE" });
  }

  /** @param {string} text news, not an error */
  say(text) {
    this.#show(text, "good");
  }

  #show(text, kind) {
    this.message.className = `banner ${kind}`;
    this.message.textContent = text;
    this.message.hidden = !text;
  }

  #sample({ record_id, age, sex, statements }) {
    const about = [age && `${age} years`, sex].filter(Boolean).join(", ");
    const found = (statements ?? []).map(nameOf).join(", ");
    return el(
      "li",
      {},
      el(
        "button",
        { type: "button", class: "sample", "data-record": record_id, onclick: () => this.#take(`/v1/samples/${record_id}`, { method: "POST" }, record_id) },
        el("strong", { text: record_id }),
        el("span", { class: "soft small", text: about }),
        el("span", { class: "small", text: found }),
      ),
    );
  }

  #upload(files) {
    if (!files.length) return;
    const body = new FormData();
    for (const file of files) body.append("files", file);
    this.#take("/v1/ecgs", { method: "POST", body }, [...files].map((file) => file.name).join(", "));
  }

  async #take(path, options, what) {
    if (this.taking) return;
    this.taking = true;
    $("chooser").setAttribute("aria-busy", "true");
    this.#show(`Reading ${what} …`, "news");
    try {
      const ecg = await (await request(path, options)).json();
      this.#show("", "bad");
      this.opened(ecg);
    } catch (error) {
      this.#show(`${what} was not opened. ${withoutName(error.message, what)}`, "bad");
    } finally {
      this.taking = false;
      $("files").value = "";
      $("chooser").removeAttribute("aria-busy");
    }
  }

  #acceptDrops(target) {
    const carriesFiles = (event) => [...event.dataTransfer.types].includes("Files");
    target.addEventListener("dragover", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      target.dataset.dropping = "yes";
    });
    target.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) delete target.dataset.dropping;
    });
    target.addEventListener("drop", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      delete target.dataset.dropping;
      // a drop over an open ECG shows its outcome where the user looks
      $("another").click();
      this.#upload(event.dataTransfer.files);
    });
  }
}

/** What the service says, where it begins with the name that stands before it already. */
function withoutName(message, name) {
  const told = message.toLowerCase().startsWith(`${name.toLowerCase()}: `);
  return told ? capital(message.slice(name.length + 2)) : message;
}
