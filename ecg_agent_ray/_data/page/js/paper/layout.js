// Where the strips lie on the paper, in millimetres from its upper left corner. Pure arithmetic.

export const STANDARD = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"];
export const PAGE_S = 10;
const LEFT_MM = 15;
const EDGE_MM = 6;
const LEAST_ROW_MM = { "3x4": 25, "6x2": 15, stack: 12 };
const CLEAR_MM = 2;
const LIMIT_MM = 50;
const COLUMNS = {
  "3x4": [["I", "II", "III"], ["aVR", "aVL", "aVF"], ["V1", "V2", "V3"], ["V4", "V5", "V6"]],
  "6x2": [["I", "II", "III", "aVR", "aVL", "aVF"], ["V1", "V2", "V3", "V4", "V5", "V6"]],
};

/**
 * A stretch of one lead on the paper: its zero line `y`, from `x` on, and the band from `top` to
 * `bottom` that is its own.
 * @typedef {{lead: string, x: number, y: number, startS: number, endS: number, top: number, bottom: number,
 *   firstInRow: boolean}} Strip
 */

/** Whether a recording has the twelve leads of a page in columns. */
export const hasTwelve = (leads) => STANDARD.every((lead) => leads.includes(lead));

/**
 * @param {{leads: string[], durationS: number, layout: string, startS: number, mmPerS: number,
 *   mmPerMv: number, extent: (lead: string, startS: number, endS: number) => ?{low: number, high: number}}} wanted
 *   `leads` are the chosen ones; a layout in columns needs all twelve of them
 * @returns {{width: number, height: number, layout: string, strips: Strip[]}}
 */
export function layOut(wanted) {
  const layout = wanted.layout !== "stack" && hasTwelve(wanted.leads) ? wanted.layout : "stack";
  const rows = layout === "stack" ? stackRows(wanted) : columnRows(layout, wanted);
  const strips = [];
  let y = EDGE_MM;
  let before = [];
  for (const row of rows) {
    const cells = row.map((cell) => ({ ...cell, ...reachOf(cell, wanted), right: cell.x + (cell.endS - cell.startS) * wanted.mmPerS }));
    const gap = before.length ? Math.max(LEAST_ROW_MM[layout], meeting(before, cells)) : Math.max(...cells.map((c) => c.above));
    y = upToGrid(y + gap + CLEAR_MM);
    for (const [index, { above, below, right, ...cell }] of cells.entries()) {
      strips.push({ ...cell, y, top: y - above, bottom: y + below, firstInRow: index === 0 });
    }
    before = cells;
  }
  const width = EDGE_MM + Math.max(...before.map((cell) => cell.right), ...strips.map((s) => s.x + (s.endS - s.startS) * wanted.mmPerS));
  const height = y + Math.max(...before.map((cell) => cell.below)) + CLEAR_MM;
  return { width: upToGrid(width), height: upToGrid(height), layout, strips };
}

/** How far two rows have to stand apart for no trace to meet one of the other row at the same time. */
function meeting(upper, lower) {
  const pairs = upper.flatMap((one) => lower.filter((two) => one.x < two.right && two.x < one.right).map((two) => one.below + two.above));
  return Math.max(0, ...pairs);
}

function stackRows({ leads, durationS }) {
  return leads.map((lead) => [{ lead, x: LEFT_MM, startS: 0, endS: durationS }]);
}

function columnRows(layout, { durationS, startS, mmPerS }) {
  const columns = COLUMNS[layout];
  const partS = PAGE_S / columns.length;
  const cell = (lead, fromS, lengthS) => ({
    lead,
    x: LEFT_MM + (fromS - startS) * mmPerS,
    startS: fromS,
    endS: Math.min(fromS + lengthS, durationS),
  });
  const rows = columns[0].map((_, row) => columns.map((leads, at) => cell(leads[row], startS + at * partS, partS)));
  if (layout === "3x4") rows.push([cell("II", startS, PAGE_S)]);
  return rows.map((row) => row.filter((one) => one.endS > one.startS));
}

/** How far a trace goes above and below its zero line; room for a name at least. */
function reachOf({ lead, startS, endS }, { extent, mmPerMv }) {
  // long strips are as high as their first minute says
  const found = extent(lead, startS, Math.min(endS, startS + 60)) ?? { low: 0, high: 0 };
  return {
    above: Math.max(8, Math.min(found.high * mmPerMv, LIMIT_MM) + 1),
    below: Math.max(5, Math.min(-found.low * mmPerMv, LIMIT_MM) + 1),
  };
}

const upToGrid = (mm) => Math.ceil(mm / 5) * 5;

/** The strip at a place on the paper: of those whose time covers it the one with the nearest zero line. */
export function stripAt(strips, x, y, mmPerS) {
  const inTime = strips.filter((s) => x >= s.x && x <= s.x + (s.endS - s.startS) * mmPerS);
  return inTime.reduce((best, s) => (!best || distance(s, y) < distance(best, y) ? s : best), null);
}

function distance(strip, y) {
  const outside = Math.max(strip.top - y, y - strip.bottom, 0);
  return outside * 1000 + Math.abs(strip.y - y);
}
