// Finds the numbers of an answer that a tool gave, so that each can show where it was measured. Pure text work.

const NUMBER =
  /(?<![\w.])(?<low>\d+(?:\.\d+)?)(?:\s*(?:-|–|to)\s*(?<high>\d+(?:\.\d+)?))?\s*(?<unit>bpm|beats per minute|ms|milliseconds?|seconds?|s(?![\w'])|%|percent)?/gi;
const WORDS = [
  ["heart_rate_bpm", /\b(?:heart\s?rate|pulse|rate|HR)\b/gi],
  ["pr_ms", /\bP-?[RQ]\b/g],
  ["qrs_ms", /\bQRS\b/g],
  ["qtc_fridericia_ms", /\b(?:QTcF|Fridericia)\b/gi],
  ["qtc_bazett_ms", /\b(?:QTcB?|Bazett)\b/gi],
  ["qt_ms", /\bQT\b/g],
  ["rr_ms", /\bR-?R\b/g],
];
// answers round places in time to half a second
const PLACE_S = 0.25;
const TIMES = ["pr_ms", "qrs_ms", "qt_ms", "qtc_bazett_ms", "qtc_fridericia_ms", "rr_ms", "p_duration_ms"];

/**
 * @typedef {{measurement: ?object, classification: ?object, explanations: object[]}} Sources the tools' JSON
 * @typedef {{start: number, end: number, kind: "value"|"label"|"place", key: string}} Link a stretch of the text
 * @param {string} text
 * @param {Sources} sources
 * @param {(code: string) => string} nameOf
 * @returns {Link[]}
 */
export function linkNumbers(text, sources, nameOf) {
  const links = [];
  let before = 0;
  for (const match of text.matchAll(NUMBER)) {
    const start = match.index;
    const end = start + match[0].trimEnd().length;
    const sentence = Math.max(before, lastBreak(text, start));
    const found = linkOne(match.groups, { before: text.slice(sentence, start), after: text.slice(end, end + 24) }, sources, nameOf);
    if (found) links.push({ start, end, ...found });
    before = end;
  }
  return links;
}

const lastBreak = (text, end) => {
  const breaks = [...text.slice(0, end).matchAll(/[.!?]\s|\n/g)];
  return breaks.length ? breaks.at(-1).index : 0;
};

function linkOne({ low, high, unit }, around, sources, nameOf) {
  const kind = unit ? unit.toLowerCase() : "";
  if (high !== undefined) return kind.startsWith("s") ? place(Number(low), Number(high), sources) : null;
  if (kind === "%" || kind === "percent") return label(low, around, sources, nameOf);
  return value(low, kind, around, sources);
}

function place(low, high, { explanations }) {
  const index = explanations.findIndex((one) =>
    [...one.cells, ...one.regions].some((at) => near(at.start_s, low, PLACE_S) && near(at.end_s, high, PLACE_S)),
  );
  return index < 0 ? null : { kind: "place", key: String(index) };
}

function label(low, { before }, { classification, explanations }, nameOf) {
  const known = Object.entries(classification?.labels ?? {});
  for (const one of explanations) known.push([one.label, one.probability]);
  const equal = known.filter(([, p]) => p !== null && near(p * 100, Number(low), tolerance(low)));
  const codes = [...new Set(equal.map(([code]) => code))];
  const spoken = before.toLowerCase();
  const place = (code) => Math.max(spoken.lastIndexOf(nameOf(code).toLowerCase()), before.lastIndexOf(code));
  const named = codes.filter((code) => place(code) >= 0).sort((a, b) => place(b) - place(a));
  const code = named[0] ?? (codes.length === 1 ? codes[0] : null);
  return code && { kind: "label", key: code };
}

function value(low, unit, { before, after }, { measurement }) {
  if (!measurement) return null;
  const named = lastWord(before) ?? firstWord(after);
  const inMs = unit.startsWith("s") ? Number(low) * 1000 : Number(low);
  const step = tolerance(low) * (unit.startsWith("s") ? 1000 : 1);
  const fits = (key) => typeof measurement[key] === "number" && near(measurement[key], inMs, step);
  const isRate = unit === "bpm" || unit.startsWith("beats");
  const candidates = isRate ? ["heart_rate_bpm"] : unit ? TIMES : [];
  if (named) {
    const suits = !unit || candidates.includes(named);
    return suits && fits(named) ? { kind: "value", key: named } : null;
  }
  const key = candidates.find(fits);
  return key ? { kind: "value", key } : null;
}

function lastWord(text) {
  const found = WORDS.flatMap(([key, pattern]) => [...text.matchAll(pattern)].map((match) => [match.index + match[0].length, key]));
  return found.length ? found.reduce((best, one) => (one[0] > best[0] ? one : best))[1] : null;
}

function firstWord(text) {
  const clause = text.split(/[,;.]/)[0];
  const found = WORDS.flatMap(([key, pattern]) => [...clause.matchAll(pattern)].map((match) => [match.index, key]));
  return found.length ? found.reduce((best, one) => (one[0] < best[0] ? one : best))[1] : null;
}

// half a unit of the last digit said, since answers round
const tolerance = (numeral) => 0.5 * 10 ** -(numeral.split(".")[1]?.length ?? 0);
const near = (a, b, most) => Math.abs(a - b) <= most + 1e-9;
