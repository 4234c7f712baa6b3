// Which parts of the service answer, from /readyz, asked now and then while the page is seen.

import { $, el } from "./dom.js";

const PERIOD_MS = 30_000;
const PARTS = { agent: "Agent", measurement: "Measurement", classification: "Classification and explanation" };

/** @param {(parts: Object<string, {ready: boolean, problem: ?string}>) => void} told */
export function watchStatus(told) {
  const look = async () => {
    if (!document.hidden) show(await ask(), told);
  };
  look();
  setInterval(look, PERIOD_MS);
  document.addEventListener("visibilitychange", look);
}

async function ask() {
  try {
    const answer = await fetch("/readyz");
    const body = await answer.json();
    return { reached: true, ready: answer.ok, parts: body.parts ?? {} };
  } catch {
    return { reached: false, ready: false, parts: {} };
  }
}

function show({ reached, ready, parts }, told) {
  const missing = Object.keys(parts).filter((name) => !parts[name].ready);
  const state = !reached ? "bad" : missing.length || !ready ? "warn" : "good";
  const words = { bad: "Not reached", warn: `Without ${missing.map(title).join(", ") || "some parts"}`, good: "Ready" };
  $("status").dataset.state = state;
  if ($("status-word").textContent !== words[state]) $("status-word").textContent = words[state];
  $("status-parts").replaceChildren(
    ...(reached ? Object.entries(parts).map(line) : [el("li", { text: "The service does not answer." })]),
  );
  if (reached) told(parts);
}

const title = (name) => (PARTS[name] ?? name).toLowerCase();

function line([name, part]) {
  const about = part.ready ? [part.uri, part.reason].filter(Boolean).join(", ") || "ready" : part.problem;
  return el("li", { class: part.ready ? "good" : "warn" }, el("strong", { text: PARTS[name] ?? name }), ` ${about}`);
}
