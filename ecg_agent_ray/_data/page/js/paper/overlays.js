// What is laid over the paper: measured waves, regions of an explanation, where a value was measured.

const WAVES = [
  { name: "p", from: "p_onset", peak: "p_peak", to: "p_offset" },
  { name: "qrs", from: "qrs_onset", peak: "r_peak", to: "qrs_offset" },
  { name: "t", from: "t_onset", peak: "t_peak", to: "t_offset" },
];

/** Probability that has to be lost for a region to be worth showing: a tenth of a per cent. */
export const LEAST_DROP = 0.001;

/** Functions from a strip's time and voltage to pixels. */
export function strips({ view, page, mmPerS, mmPerMv }, lead) {
  const found = lead === null ? page.strips : page.strips.filter((strip) => strip.lead === lead);
  return found.map((strip) => ({
    strip,
    x: (s) => (strip.x + (s - strip.startS) * mmPerS - view.x) * view.scale,
    y: (mv) => (strip.y - mv * mmPerMv - view.y) * view.scale,
    top: (strip.top - view.y) * view.scale,
    bottom: (strip.bottom - view.y) * view.scale,
    covers: (from, to) => to > strip.startS && from < strip.endS,
    cut: (from, to) => [Math.max(from, strip.startS), Math.min(to, strip.endS)],
  }));
}

/** Regions of an explanation under the trace: the stronger, the more the answer rests on them. */
export function drawRegions(context, scene) {
  const { explanation, ink } = scene;
  if (!explanation) return;
  const most = Math.max(...explanation.regions.map((region) => region.score), 0);
  for (const region of explanation.regions) {
    if (most < LEAST_DROP || region.score < most * 0.08) continue;
    for (const at of strips(scene, region.lead)) {
      if (!at.covers(region.start_s, region.end_s)) continue;
      const [from, to] = at.cut(region.start_s, region.end_s);
      context.globalAlpha = 0.08 + 0.47 * (region.score / most);
      context.fillStyle = ink.region;
      context.fillRect(at.x(from), at.top, at.x(to) - at.x(from), at.bottom - at.top);
    }
  }
  context.globalAlpha = 1;
  for (const cell of explanation.cells) drawCell(context, scene, cell);
}

function drawCell(context, scene, cell) {
  for (const at of strips(scene, scene.explanation.lead)) {
    if (!at.covers(cell.start_s, cell.end_s)) continue;
    const [from, to] = at.cut(cell.start_s, cell.end_s);
    context.strokeStyle = scene.ink.region;
    context.lineWidth = 2;
    context.setLineDash([5, 3]);
    context.strokeRect(at.x(from), at.top, at.x(to) - at.x(from), at.bottom - at.top);
    context.setLineDash([]);
    label(context, scene, `${cell.low_hz}–${cell.high_hz} Hz`, (at.x(from) + at.x(to)) / 2, at.top + 10, scene.ink.region);
  }
}

/** P, QRS and T of every measured beat: a bar below the trace from onset to offset, a tick at the peak. */
export function drawMarks(context, scene) {
  const { measurement, signal } = scene;
  if (!measurement?.beats) return;
  for (const at of strips(scene, measurement.lead === "global" ? null : measurement.lead)) {
    for (const beat of measurement.beats) {
      for (const wave of WAVES) drawWave(context, scene, at, beat, wave, signal.rate);
    }
  }
}

function drawWave(context, { ink, view }, at, beat, wave, rate) {
  const [from, peak, to] = [beat[wave.from], beat[wave.peak], beat[wave.to]];
  context.strokeStyle = context.fillStyle = ink[wave.name];
  if (from !== null && to !== null && at.covers(from / rate, to / rate)) {
    const [start, end] = at.cut(from / rate, to / rate).map(at.x);
    const sliver = end - start < 0.3 * (at.x(to / rate) - at.x(from / rate));
    if (sliver || end < 0 || start > view.width) return;
    context.globalAlpha = 0.13;
    context.fillRect(start, at.top, end - start, at.bottom - at.top);
    context.globalAlpha = 1;
    context.fillRect(start, at.bottom - 3, end - start, 3);
    context.lineWidth = 1;
    context.beginPath();
    for (const s of [from / rate, to / rate]) {
      // an end that lies on another strip is drawn there
      if (s < at.strip.startS || s > at.strip.endS) continue;
      const x = Math.round(at.x(s)) + 0.5;
      context.moveTo(x, at.top);
      context.lineTo(x, at.bottom);
    }
    context.stroke();
  }
  if (peak !== null && at.covers(peak / rate, peak / rate + 1e-6)) {
    const x = at.x(peak / rate);
    context.beginPath();
    context.moveTo(x, at.top + 5);
    context.lineTo(x - 3.5, at.top - 1);
    context.lineTo(x + 3.5, at.top - 1);
    context.fill();
  }
}

/** The intervals that a value comes from; the chosen beat's is strong and has the words. */
export function drawEvidence(context, scene) {
  const { evidence, ink } = scene;
  if (!evidence) return;
  for (const at of strips(scene, evidence.lead)) {
    for (const span of evidence.spans) {
      if (!at.covers(span.startS, span.endS)) continue;
      bracket(context, scene, at, span, span.main);
    }
  }
  const main = evidence.spans.find((span) => span.main);
  if (!main) return;
  // of the strips that show it the longest has the words, the same as is brought into sight
  const at = strips(scene, evidence.lead)
    .filter((one) => one.covers(main.startS, main.endS))
    .sort((a, b) => b.strip.endS - b.strip.startS - (a.strip.endS - a.strip.startS))[0];
  if (at) label(context, scene, main.text, (at.x(main.startS) + at.x(main.endS)) / 2, at.top - 4, ink.evidence);
}

function bracket(context, { ink }, at, span, strong) {
  const [from, to] = at.cut(span.startS, span.endS).map(at.x);
  const y = at.top + 8;
  context.strokeStyle = context.fillStyle = ink.evidence;
  context.globalAlpha = strong ? 0.16 : 0.05;
  context.fillRect(from, at.top, to - from, at.bottom - at.top);
  context.globalAlpha = strong ? 1 : 0.35;
  context.lineWidth = strong ? 2 : 1;
  context.beginPath();
  context.moveTo(from, strong ? at.bottom : y + 5);
  context.lineTo(from, strong ? at.top : y - 5);
  context.moveTo(to, strong ? at.bottom : y + 5);
  context.lineTo(to, strong ? at.top : y - 5);
  context.moveTo(from, y);
  context.lineTo(to, y);
  context.stroke();
  context.globalAlpha = 1;
}

/** Words on a plate of the paper's colour, kept in sight. */
export function label(context, { ink, view }, text, x, y, colour) {
  context.font = "600 13px system-ui, sans-serif";
  const width = context.measureText(text).width + 12;
  const left = Math.min(Math.max(x - width / 2, 4), view.width - width - 4);
  const top = Math.min(Math.max(y - 20, 4), view.height - 24);
  context.globalAlpha = 0.92;
  context.fillStyle = ink.paper;
  context.beginPath();
  context.roundRect(left, top, width, 20, 5);
  context.fill();
  context.globalAlpha = 1;
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.stroke();
  context.fillStyle = colour;
  context.fillText(text, left + 6, top + 14.5);
}
