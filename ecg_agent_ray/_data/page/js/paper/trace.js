// The paper itself: grid, calibration pulse, lead names, traces.

const PULSE = { from: 5, rise: 7, fall: 12, to: 14 };
const FINE_FROM_PX_PER_MM = 2.3;

/**
 * @param {CanvasRenderingContext2D} context set to CSS pixels
 * @param {object} scene see Paper
 */
export function drawPaper(context, scene) {
  const { view, ink } = scene;
  context.fillStyle = ink.paper;
  context.fillRect(0, 0, view.width, view.height);
  if (view.scale >= FINE_FROM_PX_PER_MM) grid(context, scene, 1, ink.minor);
  grid(context, scene, 5, ink.major);
}

function grid(context, { view, page, ratio }, step, colour) {
  const left = Math.max(0, view.x);
  const top = Math.max(0, view.y);
  const right = Math.min(page.width, view.x + view.width / view.scale);
  const bottom = Math.min(page.height, view.y + view.height / view.scale);
  // hair lines of one device pixel, on whole device pixels
  const snap = (css) => (Math.round(css * ratio) + 0.5) / ratio;
  const px = (x) => snap((x - view.x) * view.scale);
  const py = (y) => snap((y - view.y) * view.scale);
  context.strokeStyle = colour;
  context.lineWidth = 1 / ratio;
  context.beginPath();
  for (let x = Math.ceil(left / step) * step; x <= right; x += step) {
    context.moveTo(px(x), py(top));
    context.lineTo(px(x), py(bottom));
  }
  for (let y = Math.ceil(top / step) * step; y <= bottom; y += step) {
    context.moveTo(px(left), py(y));
    context.lineTo(px(right), py(y));
  }
  context.stroke();
}

/** Traces, pulses and names of all strips in sight. */
export function drawStrips(context, scene) {
  const { view, ink, page } = scene;
  context.lineJoin = "round";
  for (const strip of page.strips) {
    if (strip.firstInRow) pulse(context, scene, strip);
    context.strokeStyle = ink.ink;
    context.lineWidth = Math.min(2.2, Math.max(1, view.scale * 0.3));
    trace(context, scene, strip);
  }
  // after all traces, so that a name is never under one
  for (const strip of page.strips) name(context, scene, strip);
}

function pulse(context, { view, ink, mmPerMv }, { y }) {
  const at = (x, up) => [(x - view.x) * view.scale, (y - up - view.y) * view.scale];
  context.strokeStyle = ink.faint;
  context.lineWidth = Math.max(1, view.scale * 0.25);
  context.beginPath();
  context.moveTo(...at(PULSE.from, 0));
  for (const [x, up] of [[PULSE.rise, 0], [PULSE.rise, mmPerMv], [PULSE.fall, mmPerMv], [PULSE.fall, 0], [PULSE.to, 0]]) {
    context.lineTo(...at(x, up));
  }
  context.stroke();
}

function trace(context, { view, signal, mmPerS, mmPerMv }, strip) {
  const pxPerSample = (mmPerS / signal.rate) * view.scale;
  const x0 = (strip.x - view.x) * view.scale;
  const y0 = (strip.y - view.y) * view.scale;
  const first = Math.round(strip.startS * signal.rate);
  const last = Math.round(strip.endS * signal.rate) - 1;
  const from = Math.max(first, first + Math.floor(-x0 / pxPerSample) - 1);
  const to = Math.min(last, first + Math.ceil((view.width - x0) / pxPerSample) + 1);
  const y = (mv) => y0 - mv * mmPerMv * view.scale;
  context.save();
  context.beginPath();
  context.rect(0, 0, view.width, view.height);
  context.clip();
  context.beginPath();
  if (pxPerSample >= 0.3) lines(context, { signal, strip, from, to, y, x: (n) => x0 + (n - first) * pxPerSample });
  else columns(context, { signal, strip, from, to, y, x: (n) => x0 + (n - first) * pxPerSample });
  context.stroke();
  context.restore();
}

function lines(context, { signal, strip, from, to, x, y }) {
  let drawing = false;
  for (let n = from; n <= to; n++) {
    const value = signal.at(strip.lead, n);
    if (Number.isNaN(value)) {
      drawing = false;
      continue;
    }
    if (drawing) context.lineTo(x(n), y(value));
    else context.moveTo(x(n), y(value));
    drawing = true;
  }
}

// many samples in a pixel: its lowest and highest, in the order they come, so that no peak is lost
function columns(context, { signal, strip, from, to, x, y }) {
  let drawing = false;
  for (let n = from; n <= to; ) {
    const pixel = Math.floor(x(n));
    let low = NaN;
    let high = NaN;
    let lowest = n;
    let highest = n;
    for (; n <= to && Math.floor(x(n)) === pixel; n++) {
      const value = signal.at(strip.lead, n);
      if (!(value >= low)) [low, lowest] = Number.isNaN(value) ? [low, lowest] : [value, n];
      if (!(value <= high)) [high, highest] = Number.isNaN(value) ? [high, highest] : [value, n];
    }
    if (Number.isNaN(low)) {
      drawing = false;
      continue;
    }
    const ends = highest < lowest ? [high, low] : [low, high];
    if (drawing) context.lineTo(pixel, y(ends[0]));
    else context.moveTo(pixel, y(ends[0]));
    context.lineTo(pixel, y(ends[1]));
    drawing = true;
  }
}

function name(context, { view, ink, ecg, mmPerS }, strip) {
  const size = Math.min(16, Math.max(10, view.scale * 3.4));
  context.font = `600 ${size}px system-ui, sans-serif`;
  // the name stays in sight while its strip does
  const x = Math.max((strip.x - view.x) * view.scale, 2) + 3;
  const y = (strip.y - 6 - view.y) * view.scale;
  const end = (strip.x + (strip.endS - strip.startS) * mmPerS - view.x) * view.scale;
  if (x + 2 * size > end || y < -size || y > view.height + size) return;
  const poor = ecg.quality[strip.lead] && ecg.quality[strip.lead].status !== "usable";
  const text = poor ? `${strip.lead} · ${ecg.quality[strip.lead].status}` : strip.lead;
  context.lineWidth = 4;
  context.strokeStyle = ink.paper;
  context.strokeText(text, x, y);
  context.fillStyle = poor ? ink.poor : ink.ink;
  context.fillText(text, x, y);
}
