// The samples of one recording, fetched in pieces as they are looked at.

import { getJson } from "./api.js";

const PIECE_S = 30;
const MOST_SAMPLES = 1_500_000;

export class Signal {
  /** @param {{id: string, leads: string[], sampling_rate: number, duration_s: number}} ecg */
  constructor(ecg) {
    this.ecg = ecg;
    this.rate = ecg.sampling_rate;
    this.pieceS = Math.min(PIECE_S, Math.max(1, Math.floor(MOST_SAMPLES / (ecg.leads.length * this.rate))));
    this.pieces = new Map();
    this.zero = new Map();
  }

  /** Have the samples from `startS` to `endS`. Resolves to whether any were new. */
  async load(startS, endS) {
    const first = Math.max(0, Math.floor(startS / this.pieceS));
    const last = Math.ceil(Math.min(endS, this.ecg.duration_s) / this.pieceS);
    const wanted = [];
    for (let index = first; index < last; index++) {
      if (!this.pieces.has(index)) wanted.push(this.#fetch(index));
    }
    await Promise.all(wanted);
    return wanted.length > 0;
  }

  async #fetch(index) {
    this.pieces.set(index, null);
    const start = index * this.pieceS;
    const end = Math.min(start + this.pieceS, this.ecg.duration_s);
    try {
      const body = await getJson(`/v1/ecgs/${this.ecg.id}/signal?start=${start}&end=${end}`);
      // what JSON writes as null is a gap
      const rows = Object.entries(body.signal).map(([lead, row]) => [lead, Float32Array.from(row, (v) => v ?? NaN)]);
      this.pieces.set(index, new Map(rows));
      for (const [lead, row] of rows) if (!this.zero.has(lead)) this.zero.set(lead, median(row));
    } catch (error) {
      this.pieces.delete(index);
      throw error;
    }
  }

  /** Sample number `n` of a lead in mV from the lead's median; NaN in gaps and where none is loaded yet. */
  at(lead, n) {
    const length = Math.round(this.pieceS * this.rate);
    const row = this.pieces.get(Math.floor(n / length))?.get(lead);
    return row ? row[n % length] - this.zero.get(lead) : NaN;
  }

  /** Lowest and highest value of a stretch in mV; null where nothing is known. */
  extent(lead, startS, endS) {
    let low = Infinity;
    let high = -Infinity;
    const last = Math.min(Math.round(endS * this.rate), Math.round(this.ecg.duration_s * this.rate));
    for (let n = Math.round(startS * this.rate); n < last; n++) {
      const value = this.at(lead, n);
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return low <= high ? { low, high } : null;
  }
}

function median(row) {
  const known = row.filter((value) => !Number.isNaN(value)).sort();
  return known.length ? known[known.length >> 1] : 0;
}
