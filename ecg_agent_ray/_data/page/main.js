// Puts the parts of the page together. Each part knows its own piece of the page and nothing of the others.

import { ApiError, getJson, needsToken } from "./js/api.js";
import { Chooser } from "./js/chooser.js";
import { Dialogue } from "./js/dialogue.js";
import { $ } from "./js/dom.js";
import { Evidence } from "./js/evidence.js";
import { Findings } from "./js/findings.js";
import { loadNames } from "./js/names.js";
import { Paper } from "./js/paper/paper.js";
import { Signal } from "./js/signal.js";
import { watchStatus } from "./js/status.js";
import { setUpTheme } from "./js/theme.js";
import { askForToken, setUpToken } from "./js/token.js";
import { Toolbar } from "./js/toolbar.js";
import { Values } from "./js/values.js";

const paper = new Paper($("paper"), $("canvas"));
const toolbar = new Toolbar($("toolbar"), paper);
const evidence = new Evidence(paper, () => showPane("ecg"));
const values = new Values($("values"), evidence);
const findings = new Findings($("findings"), evidence);
const dialogue = new Dialogue(evidence);
const chooser = new Chooser({ opened: openEcg, back: () => showViewer(true) });
let ecg = null;

function showPane(name) {
  $("main").dataset.pane = name;
  for (const button of document.querySelectorAll("nav.panes button")) {
    button.setAttribute("aria-pressed", String(button.dataset.pane === name));
  }
  if (name === "ecg") paper.resize();
}

function showViewer(shown) {
  $("viewer").hidden = $("record").hidden = !shown;
  $("chooser").hidden = shown;
  $("back").hidden = ecg === null;
  $("ecg-pane").scrollTop = 0;
  if (shown) paper.resize();
  else chooser.refresh();
}

/** @param {object} body what `POST /v1/ecgs` answers */
async function openEcg(body) {
  ecg = body;
  fail("");
  describe(body);
  showViewer(true);
  const signal = new Signal(body);
  evidence.open(body);
  dialogue.open(body);
  toolbar.open(body);
  await Promise.all([
    // the paper itself says what failed and offers another try
    paper.open(body, signal).catch(() => {}),
    values.open(body),
    findings.open(body),
  ]);
}

function describe({ record_id, format, leads, sampling_rate, duration_s, quality }) {
  $("ecg-title").textContent = record_id;
  const poor = Object.entries(quality).filter(([, found]) => found.status !== "usable");
  const facts = [
    format.toUpperCase(),
    leads.length === 1 ? `lead ${leads[0]}` : `${leads.length} leads`,
    `${sampling_rate} Hz`,
    `${Number(duration_s.toFixed(1))} s`,
    poor.length
      ? `signal quality: ${poor.map(([lead, q]) => `${lead} ${q.status} (${q.reason})`).join(", ")}`
      : "signal quality good",
  ];
  $("facts").textContent = facts.join(" · ");
  document.title = `${record_id} · ecg-agent`;
}

async function removeEcg() {
  $("remove").disabled = true;
  try {
    await chooser.delete(ecg.id);
  } catch (error) {
    // one that is gone already is as good as deleted
    if (!(error instanceof ApiError && error.status === 404)) return fail(`Not deleted. ${said(error)}`);
  } finally {
    $("remove").disabled = false;
  }
  close();
  chooser.say("Deleted from the service.");
}

/** Another token may not own what is open. */
async function tokenChanged() {
  const mine = ecg && (await getJson(`/v1/ecgs/${ecg.id}`).then(() => true, () => false));
  if (ecg && !mine) close();
  chooser.refresh();
}

function close() {
  ecg = null;
  document.title = "ecg-agent";
  dialogue.open(null);
  showViewer(false);
}

const said = (error) => (error instanceof Error ? error.message : String(error));

function fail(message) {
  $("ecg-error").textContent = message;
  $("ecg-error").hidden = !message;
}

for (const button of document.querySelectorAll("nav.panes button")) {
  button.addEventListener("click", () => showPane(button.dataset.pane));
}
$("another").addEventListener("click", () => showViewer(false));
$("remove").addEventListener("click", removeEcg);
$("help-button").addEventListener("click", () => $("help-dialog").showModal());
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  showPane("talk");
  $("say").focus();
});
for (const popover of document.querySelectorAll("details.popover")) {
  document.addEventListener("click", (event) => popover.contains(event.target) || (popover.open = false));
  popover.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    popover.open = false;
    popover.querySelector("summary").focus();
  });
}

setUpTheme(() => paper.restyle());
setUpToken(tokenChanged);
needsToken(askForToken);
watchStatus((parts) => {
  dialogue.parts(parts);
  findings.parts(parts);
});
await loadNames();
dialogue.open(null);
chooser.refresh();
