// The dialogue with the agent: messages, streamed answers, tool steps, and what went wrong.

import { ApiError, json, request, serverEvents } from "./api.js";
import { $, el } from "./dom.js";
import { nameOf } from "./names.js";
import { linkNumbers } from "./numbers.js";
import { hasTwelve } from "./paper/layout.js";
import { duration, finishedStep, runningStep } from "./steps.js";

const MODEL = "ecg-agent";
const SUGGESTIONS = [
  "What are the heart rate and QRS duration?",
  "What do you see in this ECG?",
  "Is the QTc interval prolonged?",
  "Where in the signal does the main finding show?",
];
const STATUS = { thinking: "Thinking …", calling_tool: "Choosing a tool …", answering: "Writing …" };
const LEAST_TALL_PX = 44;

export class Dialogue {
  /** @param {import("./evidence.js").Evidence} evidence */
  constructor(evidence) {
    this.evidence = evidence;
    $("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    $("say").addEventListener("keydown", (event) => {
      // while an input method composes, Enter chooses a word
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    $("say").addEventListener("input", () => grow($("say")));
    $("stop").addEventListener("click", () => this.running?.abort());
    $("fresh").addEventListener("click", () => this.open(this.ecg));
  }

  /** Begin anew, about an ECG or about none. */
  open(ecg) {
    this.running?.abort();
    this.ecg = ecg;
    this.messages = [];
    this.steps = [];
    this.sources = { measurement: null, classification: null, explanations: [] };
    $("say").placeholder = ecg ? `Ask about ${ecg.record_id}` : "Ask about ECGs";
    $("log").replaceChildren(this.#greeting());
    $("suggestions").replaceChildren(...(ecg ? SUGGESTIONS : []).map((text) => this.#suggestion(text)));
    this.#configurations(ecg);
  }

  /** Which parts of the service there are. */
  parts({ agent }) {
    const missing = agent && !agent.ready;
    $("agent-missing").hidden = !missing;
    if (missing) $("agent-missing").textContent = `The agent does not answer now (${agent.problem}). The paper, the values and the findings are not affected.`;
  }

  #greeting() {
    const text = this.ecg
      ? "Ask for findings, for the heart rate and the intervals, or where in the signal a finding shows."
      : "No ECG is open. The agent can explain terms; to measure it needs one.";
    return el("p", { class: "greeting soft", text });
  }

  #suggestion(text) {
    return el("button", { type: "button", class: "chip", onclick: () => this.#ask(text), text });
  }

  #configurations(ecg) {
    const leads = ecg?.leads ?? [];
    const choices = [
      hasTwelve(leads) && ["12-lead", "sees 12 leads"],
      leads.includes("II") && ["II", "sees lead II alone"],
      leads.includes("I") && ["I", "sees lead I alone"],
    ].filter(Boolean);
    $("configuration").replaceChildren(...choices.map(([value, text]) => el("option", { value, text })));
    $("configuration").hidden = choices.length < 2;
  }

  #submit() {
    const text = $("say").value.trim();
    if (!text || this.running) return;
    $("say").value = "";
    grow($("say"));
    this.#ask(text);
  }

  async #ask(text) {
    if (this.running) return;
    const turn = new TurnView(text, this.evidence);
    $("log").querySelector(".greeting")?.remove();
    $("suggestions").replaceChildren();
    $("log").append(turn.question, turn.answer);
    scrollDown();
    this.running = new AbortController();
    $("send").hidden = true;
    $("stop").hidden = false;
    const { messages, signal } = { messages: this.messages, signal: this.running.signal };
    messages.push({ role: "user", content: text });
    try {
      const words = await this.#stream(turn, signal);
      if (messages === this.messages) messages.push({ role: "assistant", content: words });
    } catch (error) {
      messages.pop();
      if (error.name === "AbortError") turn.stopped();
      else turn.failed(error, () => this.#again(turn, text));
    } finally {
      if (messages === this.messages || signal === this.running?.signal) this.running = null;
      $("send").hidden = false;
      $("stop").hidden = true;
      scrollDown();
    }
  }

  #again(turn, text) {
    if (this.running) return;
    turn.question.remove();
    turn.answer.remove();
    this.#ask(text);
  }

  async #stream(turn, signal) {
    const about = { include_steps: true, steps: this.steps };
    if (this.ecg) {
      about.ecg_id = this.ecg.id;
      about.lead_configuration = $("configuration").value || null;
    }
    const body = { model: MODEL, stream: true, messages: this.messages, ecg_agent: about };
    const { steps, sources } = this;
    const answer = await request("/v1/chat/completions", { ...json(body), signal });
    for await (const chunk of serverEvents(answer)) {
      if (chunk.error) throw new ApiError(chunk.error.message, Number(chunk.error.code) || 500);
      const said = chunk.choices?.[0]?.delta?.content;
      if (said) turn.write(said);
      const event = chunk.ecg_agent?.event;
      if (event) this.#event(turn, event, sources);
      // the last chunk comes again with the usage, so it is taken once
      if (chunk.ecg_agent?.steps && !turn.report) {
        steps.push(...chunk.ecg_agent.steps);
        turn.report = chunk.ecg_agent;
      }
      if (said || event) scrollDown();
    }
    // what the numbers of this answer mean must not change with the next
    turn.finish({ ...sources, explanations: [...sources.explanations] });
    return turn.words;
  }

  #event(turn, event, sources) {
    if (event.type === "status") turn.status(STATUS[event.status] ?? "");
    else if (event.type === "tool_call") turn.toolStarted(event.tool);
    else if (event.type === "tool_output") {
      turn.toolFinished(event);
      if (!event.detail) return;
      if (event.tool === "explanation") {
        sources.explanations.unshift(event.detail);
        this.evidence.showExplanation(event.detail, false).catch(() => {});
      } else sources[event.tool] = event.detail;
    }
  }
}

/** One question and its answer on the page. */
class TurnView {
  constructor(text, evidence) {
    this.evidence = evidence;
    this.words = "";
    this.report = null;
    this.question = el("div", { class: "turn user" }, el("span", { class: "sr", text: "You: " }), text);
    this.tools = el("div", { class: "steps" });
    this.text = el("p", { class: "words" });
    this.state = el("p", { class: "busy soft", text: "Sending …" });
    this.answer = el(
      "article",
      { class: "turn agent", "aria-label": "Answer", "aria-busy": "true" },
      this.tools,
      this.text,
      this.state,
    );
  }

  status(text) {
    this.state.textContent = text;
  }

  toolStarted(tool) {
    this.tools.append(runningStep(tool));
  }

  toolFinished(event) {
    this.tools.querySelector(".running")?.remove();
    if (!event.reused) this.tools.append(finishedStep(event, this.evidence));
  }

  write(text) {
    this.words += text;
    this.text.textContent = this.words;
  }

  /** The answer is whole: its numbers become buttons, and what was checked is told. */
  finish(sources) {
    this.#end();
    const links = linkNumbers(this.words, sources, nameOf);
    const parts = [];
    let at = 0;
    for (const link of links) {
      parts.push(this.words.slice(at, link.start), this.#number(link, sources));
      at = link.end;
    }
    this.text.replaceChildren(...parts, this.words.slice(at));
    if (this.report) this.answer.append(el("p", { class: "meta" }, ...this.#meta()));
  }

  #number({ start, end, kind, key }, sources) {
    const show = {
      value: () => this.evidence.showValue(key, sources.measurement),
      label: () => this.evidence.explain(key, sources.classification?.lead_configuration ?? null),
      place: () => this.evidence.showExplanation(sources.explanations[Number(key)]),
    }[kind];
    const title = { value: "Show where it was measured", label: `Show where ${nameOf(key)} comes from`, place: "Show on the paper" }[kind];
    const text = this.words.slice(start, end);
    // a link, since unlike a button it flows with the words around it
    const follow = (event) => {
      event.preventDefault();
      show()?.catch(() => {});
    };
    return el("a", { href: "#paper", class: "number", title, "aria-label": `${text}. ${title}`, "data-key": key, onclick: follow, text });
  }

  #meta() {
    const { grounding, timings } = this.report;
    const told = [];
    if (timings?.total_s) told.push(el("span", { text: duration(timings.total_s * 1000) }));
    if (grounding?.repaired) told.push(el("span", { class: "flag", text: `${grounding.repaired} corrected by the number check` }));
    if (grounding?.dropped) told.push(el("span", { class: "flag", text: `${grounding.dropped} left out by the number check` }));
    return told;
  }

  stopped() {
    this.#end();
    this.answer.append(el("p", { class: "soft small", text: "Stopped. This question is not part of the dialogue." }));
  }

  failed(error, retry) {
    this.#end();
    const again = el("button", { type: "button", class: "small", onclick: retry, text: "Ask again" });
    const note = el("div", { class: "failure", role: "alert" }, el("p", { text: `Not answered. ${error.message}` }), again);
    this.answer.append(note);
    if (error.retryAfterS) countDown(again, error.retryAfterS);
  }

  #end() {
    this.state.remove();
    this.tools.querySelector(".running")?.remove();
    this.answer.removeAttribute("aria-busy");
  }
}

function countDown(button, seconds) {
  const text = button.textContent;
  const until = Date.now() + seconds * 1000;
  button.disabled = true;
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    button.disabled = left > 0;
    button.textContent = left > 0 ? `${text} in ${left} s` : text;
    if (left > 0 && button.isConnected) setTimeout(tick, 250);
  };
  tick();
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${Math.max(LEAST_TALL_PX, Math.min(area.scrollHeight + 2, 160))}px`;
}

function scrollDown() {
  const log = $("log");
  log.scrollTop = log.scrollHeight;
}
