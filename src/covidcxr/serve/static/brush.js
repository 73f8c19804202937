/** Brush and eraser on a mask, in pixels of the image. */

export class Brush {
  active = false;
  erasing = false;
  diameter = 40; // pixels of the image
  layer = null;
  changed = () => {}; // called when a stroke, or an undo, is done
  #strokes = []; // [rectangle, what was there before]
  #before = null;
  #last = null;
  #cursor = null;

  constructor(viewer) {
    this.viewer = viewer;
    viewer.painters.push((context, scale) => this.#drawCursor(context, scale));
  }

  /** Draw on another mask; what could be undone is forgotten. */
  take(layer) {
    this.layer = layer;
    this.#strokes = [];
    this.#before = this.#last = null;
  }

  /** Whether a stroke is going on. */
  get drawing() {
    return this.#before !== null;
  }

  /** How many strokes can be undone. */
  get strokes() {
    return this.#strokes.length;
  }

  /** Begin a stroke. */
  start(x, y) {
    if (!this.layer) return;
    this.#before = this.layer.data.slice();
    this.#extent = null;
    this.#last = [x, y];
    this.move(x, y);
  }

  #extent;

  /** Go on to a place. */
  move(x, y) {
    if (!this.drawing) return;
    this.#cursor = [x, y];
    const touched = fillCapsule(this.layer, this.#last, [x, y], this.diameter / 2, this.erasing ? 0 : 1);
    this.#extent = unite(this.#extent, touched);
    this.#last = [x, y];
    this.layer.tint(touched);
    this.viewer.draw();
  }

  /** End the stroke. */
  end() {
    if (!this.drawing) return;
    this.#strokes.push([this.#extent, cut(this.#before, this.layer.size[0], this.#extent)]);
    this.#before = null;
    this.layer.refresh(this.#extent);
    this.viewer.draw();
    this.changed();
  }

  /** Take the stroke back that is going on. */
  cancel() {
    if (!this.drawing) return;
    this.end();
    this.undo();
  }

  /** Take the last stroke back. */
  undo() {
    const stroke = this.#strokes.pop();
    if (!stroke) return;
    const [[left, top, right, bottom], before] = stroke;
    const [width] = this.layer.size;
    for (let y = top; y < bottom; y += 1) {
      this.layer.data.set(
        before.subarray((y - top) * (right - left), (y - top + 1) * (right - left)),
        y * width + left,
      );
    }
    this.layer.refresh(stroke[0]);
    this.viewer.draw();
    this.changed();
  }

  /** Show where the brush is; null = nowhere. */
  hover(x, y) {
    this.#cursor = x === null ? null : [x, y];
    if (this.active) this.viewer.draw();
  }

  /** Move the brush by half its width, for those who have no mouse; it starts at (x, y). */
  step(right, down, x, y) {
    const [atX, atY] = this.#cursor ?? [x, y];
    this.hover(atX + (right * this.diameter) / 2, atY + (down * this.diameter) / 2);
  }

  /** Draw once where the brush is, or at (x, y). */
  dab(x, y) {
    this.start(...(this.#cursor ?? [x, y]));
    this.end();
  }

  #drawCursor(context, scale) {
    if (!this.active || !this.#cursor) return;
    context.globalAlpha = 1;
    for (const [color, width] of [
      ["#000", 3],
      [this.erasing ? "#ff8a80" : "#fff", 1.5],
    ]) {
      context.strokeStyle = color;
      context.lineWidth = width / scale;
      context.beginPath();
      context.arc(...this.#cursor, this.diameter / 2, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

/** Set all pixels whose centre is within `radius` of a line; returns the rectangle that holds them. */
function fillCapsule({ data, size: [width, height] }, [x0, y0], [x1, y1], radius, value) {
  const left = Math.min(width, Math.max(0, Math.floor(Math.min(x0, x1) - radius)));
  const top = Math.min(height, Math.max(0, Math.floor(Math.min(y0, y1) - radius)));
  const right = Math.max(left, Math.min(width, Math.ceil(Math.max(x0, x1) + radius)));
  const bottom = Math.max(top, Math.min(height, Math.ceil(Math.max(y0, y1) + radius)));
  const [alongX, alongY] = [x1 - x0, y1 - y0];
  const length = alongX * alongX + alongY * alongY || 1;
  for (let y = top; y < bottom; y += 1) {
    for (let x = left; x < right; x += 1) {
      const [dx, dy] = [x + 0.5 - x0, y + 0.5 - y0];
      const share = Math.min(1, Math.max(0, (dx * alongX + dy * alongY) / length));
      if (Math.hypot(dx - share * alongX, dy - share * alongY) <= radius) data[y * width + x] = value;
    }
  }
  return [left, top, right, bottom];
}

function unite(one, other) {
  if (!one) return other;
  return [
    Math.min(one[0], other[0]),
    Math.min(one[1], other[1]),
    Math.max(one[2], other[2]),
    Math.max(one[3], other[3]),
  ];
}

function cut(data, width, [left, top, right, bottom]) {
  const part = new Uint8Array((right - left) * (bottom - top));
  for (let y = top; y < bottom; y += 1)
    part.set(data.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  return part;
}
