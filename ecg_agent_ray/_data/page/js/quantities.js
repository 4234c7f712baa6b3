// What the measurement tool gives, and from which fiducial points of which beat each value comes.

/**
 * @typedef {{key: string, name: string, short: string, unit: string, digits: number,
 *   span: (beat: object, previous: ?object, rate: number) => ?{from: number, to: number, value: number}}} Quantity
 * `key` is the name in the measurement tool's JSON; `span` gives samples and the beat's own value.
 */

const between = (from, to) => (beat, previous, rate) =>
  beat[from] === null || beat[to] === null
    ? null
    : { from: beat[from], to: beat[to], value: ((beat[to] - beat[from]) / rate) * 1000 };

const rr = (beat, previous, rate) =>
  !previous || beat.r_peak === null || previous.r_peak === null
    ? null
    : { from: previous.r_peak, to: beat.r_peak, value: ((beat.r_peak - previous.r_peak) / rate) * 1000 };

const qt = between("qrs_onset", "t_offset");

const corrected = (power) => (beat, previous, rate) => {
  const own = qt(beat, previous, rate);
  const before = rr(beat, previous, rate);
  return own && before && { ...own, value: own.value / (before.value / 1000) ** power, rr: before };
};

/** @type {Quantity[]} */
export const QUANTITIES = [
  {
    key: "heart_rate_bpm",
    name: "Heart rate",
    short: "Heart rate",
    unit: "bpm",
    digits: 0,
    span: (beat, previous, rate) => {
      const found = rr(beat, previous, rate);
      return found && { ...found, value: 60_000 / found.value };
    },
  },
  { key: "pr_ms", name: "PR interval", short: "PR", unit: "ms", digits: 0, span: between("p_onset", "qrs_onset") },
  { key: "qrs_ms", name: "QRS duration", short: "QRS", unit: "ms", digits: 0, span: between("qrs_onset", "qrs_offset") },
  { key: "qt_ms", name: "QT interval", short: "QT", unit: "ms", digits: 0, span: qt },
  { key: "qtc_bazett_ms", name: "QTc Bazett", short: "QTc", unit: "ms", digits: 0, span: corrected(1 / 2) },
  { key: "qtc_fridericia_ms", name: "QTc Fridericia", short: "QTcF", unit: "ms", digits: 0, span: corrected(1 / 3) },
  { key: "rr_ms", name: "RR interval", short: "RR", unit: "ms", digits: 0, span: rr },
  { key: "p_duration_ms", name: "P duration", short: "P", unit: "ms", digits: 0, span: between("p_onset", "p_offset") },
];

export const quantity = (key) => QUANTITIES.find((one) => one.key === key);

/**
 * Where a value was measured: each beat's interval, the one nearest to the value marked as the main one.
 * @returns {?{lead: ?string, spans: {startS: number, endS: number, main: boolean, text: string}[], words: string}}
 */
export function whereMeasured(one, measurement, rate) {
  const value = measurement[one.key];
  const beats = measurement.beats ?? [];
  const found = beats.map((beat, index) => one.span(beat, beats[index - 1] ?? null, rate)).filter(Boolean);
  if (value === null || !found.length) return null;
  const nearest = found.reduce((best, span) => (Math.abs(span.value - value) < Math.abs(best.value - value) ? span : best));
  const spans = found.map((span) => ({
    startS: span.from / rate,
    endS: span.to / rate,
    main: span === nearest,
    text: `${one.short} ${span.value.toFixed(one.digits)} ${one.unit}`,
  }));
  const lead = measurement.lead === "global" ? null : measurement.lead;
  const where = lead === null ? "all usable leads" : `lead ${lead}`;
  const words =
    `${one.name} ${value.toFixed(one.digits)} ${one.unit}: median of ${found.length} ` +
    `${found.length === 1 ? "interval" : "intervals"} in ${where}; ` +
    `the one shown, at ${(nearest.from / rate).toFixed(2)} s, is ${nearest.value.toFixed(one.digits)} ${one.unit}.`;
  return { lead, spans, words };
}
