// Which part of the paper the canvas shows: millimetres to CSS pixels and back.

const MOST_PX_PER_MM = 40;
const WIDEST_FIT_PX_PER_MM = 7;

export class Viewport {
  constructor() {
    this.width = this.height = 1;
    this.paper = { width: 1, height: 1 };
    this.scale = 1;
    this.x = this.y = 0;
    this.fitted = true;
    this.leastPxPerMm = 0;
  }

  /** New size of the canvas in CSS pixels. */
  resize(width, height) {
    this.width = Math.max(1, width);
    this.height = Math.max(1, height);
    if (this.fitted) this.fit();
    else this.#clamp();
  }

  /** Another paper, never fitted smaller than `leastPxPerMm`; what is seen stays where it may. */
  setPaper(width, height, leastPxPerMm) {
    this.paper = { width, height };
    this.leastPxPerMm = leastPxPerMm;
    if (this.fitted) this.fit();
    else this.#clamp();
  }

  get fitScale() {
    const whole = Math.min(this.width / this.paper.width, this.height / this.paper.height);
    return Math.min(Math.max(whole, this.leastPxPerMm), WIDEST_FIT_PX_PER_MM);
  }

  fit() {
    this.scale = this.fitScale;
    this.x = this.y = 0;
    this.fitted = true;
    this.#clamp();
  }

  /** @param {number} px @param {number} py the place, in pixels, that stays where it is */
  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const { x, y } = this.toPaper(px, py);
    const least = Math.min(this.width / this.paper.width, this.height / this.paper.height, this.fitScale) * 0.9;
    this.scale = Math.min(MOST_PX_PER_MM, Math.max(least, this.scale * factor));
    this.x = x - px / this.scale;
    this.y = y - py / this.scale;
    this.fitted = false;
    this.#clamp();
  }

  /** @param {number} dx @param {number} dy pixels that the paper moves left and up */
  pan(dx, dy) {
    this.x += dx / this.scale;
    this.y += dy / this.scale;
    this.fitted = false;
    this.#clamp();
  }

  /** Move, and zoom in where it helps, until a rectangle of the paper (mm) is well in sight. */
  reveal({ left, right, top, bottom }) {
    const share = 0.34;
    const scale = Math.min((this.width * share) / (right - left), (this.height * 0.8) / (bottom - top), 9);
    if (scale > this.scale) this.scale = scale;
    this.x = (left + right) / 2 - this.width / 2 / this.scale;
    this.y = (top + bottom) / 2 - this.height / 2 / this.scale;
    this.fitted = false;
    this.#clamp();
  }

  /** Move a point of the paper (mm) to the middle if it is out of sight or near the rim. */
  show({ x, y }) {
    const [across, down] = [this.width / this.scale, this.height / this.scale];
    if (x < this.x + across * 0.1 || x > this.x + across * 0.9) this.x = x - across / 2;
    if (y < this.y + down * 0.1 || y > this.y + down * 0.9) this.y = y - down / 2;
    this.#clamp();
  }

  toPaper(px, py) {
    return { x: this.x + px / this.scale, y: this.y + py / this.scale };
  }

  #clamp() {
    this.x = clamped(this.x, this.paper.width, this.width / this.scale);
    this.y = clamped(this.y, this.paper.height, this.height / this.scale);
  }
}

// a paper smaller than the canvas lies in its middle
function clamped(from, paper, seen) {
  return seen >= paper ? (paper - seen) / 2 : Math.min(Math.max(from, 0), paper - seen);
}
