// A tool call of a turn: what is being done, then what came out, to unfold.

import { el } from "./dom.js";
import { capital, nameOf } from "./names.js";
import { QUANTITIES } from "./quantities.js";

const DOING = { measurement: "Measuring", classification: "Classifying", explanation: "Explaining" };
const DONE = { measurement: "Measured", classification: "Classified", explanation: "Explained" };

export function runningStep(tool) {
  return el("div", { class: "step running", "data-tool": tool }, el("span", { class: "busy", text: `${DOING[tool] ?? tool} …` }));
}

/**
 * @param {object} event the stream's `tool_output`: step, and `detail` if the tool did not fail
 * @param {import("./evidence.js").Evidence} evidence
 */
export function finishedStep(event, evidence) {
  const { tool, tool_output: output, detail, ms } = event;
  const fault = faultOf(output);
  const words = fault ? `${capital(tool)} failed` : `${DONE[tool] ?? tool} ${summary(tool, output, detail)}`;
  const body = fault ? el("p", { class: "error", text: fault }) : contents(tool, output, detail, evidence);
  return el(
    "details",
    { class: `step${fault ? " failed" : ""}`, "data-tool": tool },
    el("summary", {}, el("span", { text: words.trim() }), el("span", { class: "ms", text: duration(ms) })),
    body,
    el(
      "details",
      { class: "raw" },
      el("summary", { text: "What the model read" }),
      el("pre", { tabindex: 0, text: typeof output === "string" ? output : JSON.stringify(output, null, 2) }),
    ),
  );
}

export const duration = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms)} ms`);

function faultOf(output) {
  if (typeof output === "string" && output.startsWith("Explanation error:")) return output.slice(19);
  return output !== null && typeof output === "object" && !Array.isArray(output) ? output.error ?? null : null;
}

function summary(tool, output, detail) {
  if (tool === "measurement") return detail ? (detail.lead === "global" ? "all leads" : `lead ${detail.lead}`) : "";
  if (tool === "explanation") return detail ? nameOf(detail.label) : "";
  const count = Array.isArray(output) ? output.length : 0;
  return count === 1 ? "1 finding" : `${count} findings`;
}

function contents(tool, output, detail, evidence) {
  if (tool === "measurement") return measurement(output, detail, evidence);
  if (tool === "classification") return classification(output, detail);
  return explanation(detail, evidence);
}

function measurement(output, detail, evidence) {
  if (!detail) return null;
  const rows = QUANTITIES.filter(({ key }) => detail[key] !== undefined).map(({ key, name, unit, digits }) => {
    const value = detail[key];
    const shown = value === null ? "not measurable" : `${value.toFixed(Math.max(digits, 1))} ${unit}`;
    const cell =
      value === null
        ? el("td", { class: "soft", text: shown })
        : el("td", {}, el("button", { type: "button", class: "link", onclick: () => evidence.showValue(key, detail), text: shown }));
    return el("tr", {}, el("th", { scope: "row", text: name }), cell);
  });
  const notes = detail.notes.length ? el("ul", { class: "small" }, ...detail.notes.map((text) => el("li", { text }))) : null;
  return el("div", {}, el("table", {}, el("tbody", {}, ...rows)), notes);
}

function classification(output, detail) {
  const positive = detail?.positive ?? [];
  if (!positive.length) return el("p", { text: "Nothing above the threshold." });
  const rows = positive.map((code) =>
    el("tr", {}, el("th", { scope: "row", text: capital(nameOf(code)) }), el("td", { text: `${(detail.labels[code] * 100).toFixed(1)} %` })),
  );
  return el("div", {}, el("table", {}, el("tbody", {}, ...rows)));
}

function explanation(detail, evidence) {
  if (!detail) return null;
  const cells = detail.cells.map((cell) =>
    el("li", { text: `${cell.start_s}–${cell.end_s} s, ${cell.low_hz}–${cell.high_hz} Hz in lead ${detail.lead}` }),
  );
  return el(
    "div",
    {},
    el("p", { text: `${capital(nameOf(detail.label))}, ${(detail.probability * 100).toFixed(1)} %. What counts most:` }),
    el("ul", { class: "small" }, ...cells),
    el("button", { type: "button", class: "small", onclick: () => evidence.showExplanation(detail), text: "Show on the paper" }),
  );
}
