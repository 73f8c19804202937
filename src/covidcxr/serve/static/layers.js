/** What lies over an image: masks as tint and outline, heat as colour. */

import { canvasOf, paint, rgba } from "./image.js";

const STOPS = [
  [120, 0, 120],
  [170, 10, 110],
  [225, 55, 40],
  [250, 150, 10],
  [255, 240, 90],
]; // as covidcxr.explain draws

/** A mask at the image's own size. `data` has a byte a pixel, 0 or 1. */
export class MaskLayer {
  constructor({ width, height, grey }, color) {
    this.size = [width, height];
    this.data = grey.map((value) => (value > 127 ? 1 : 0));
    this.color = color;
    this.canvas = canvasOf(width, height);
    this.refresh();
  }

  /** Draw tint and outline anew after a change of `data` within a rectangle. */
  refresh(rectangle) {
    this.tint(rectangle);
    this.outline = outlineOf(this.data, ...this.size);
  }

  /** Draw the tint anew within a rectangle. */
  tint(rectangle) {
    paint(this.canvas, this.data, Uint32Array.of(0, rgba(...this.color)), rectangle);
  }

  /** The share of the image that it covers, in [0, 1]. */
  get fraction() {
    return this.data.reduce((sum, value) => sum + value, 0) / this.data.length;
  }

  /** Draw it in the image's coordinates, tinted or as a line, which `scale` (screen pixels an image pixel) keeps thin. */
  draw(context, scale, opacity, tinted) {
    context.globalAlpha = 0.3 * opacity;
    if (tinted) context.drawImage(this.canvas, 0, 0);
    context.globalAlpha = Math.min(1, 1.8 * opacity);
    context.lineWidth = 1.5 / scale;
    context.lineCap = "square";
    context.strokeStyle = `rgb(${this.color.join(" ")})`;
    context.stroke(this.outline);
  }

  /** As a PNG of 0 and 255. */
  async png() {
    const canvas = canvasOf(...this.size);
    paint(canvas, this.data, Uint32Array.of(rgba(0, 0, 0), rgba(255, 255, 255)));
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
}

/** What speaks for a class; the stronger, the brighter and the less transparent. */
export class HeatLayer {
  constructor({ width, height, grey }) {
    const colors = new Uint32Array(256);
    for (let value = 0; value < 256; value += 1) {
      const place = (value / 255) * (STOPS.length - 1);
      const from = Math.min(Math.floor(place), STOPS.length - 2);
      const mix = [0, 1, 2].map(
        (part) => STOPS[from][part] + (place - from) * (STOPS[from + 1][part] - STOPS[from][part]),
      );
      colors[value] = rgba(...mix.map(Math.round), Math.round(255 * Math.min(1, (1.5 * value) / 255)));
    }
    this.empty = grey.every((value) => value === 0);
    this.canvas = canvasOf(width, height);
    paint(this.canvas, grey, colors);
  }

  /** Draw it in the image's coordinates. */
  draw(context, scale, opacity) {
    context.globalAlpha = Math.min(1, 1.6 * opacity);
    context.drawImage(this.canvas, 0, 0);
  }
}

/** The edges between set and unset pixels as a path, straight runs as one line each. */
function outlineOf(data, width, height) {
  const path = new Path2D();
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : data[y * width + x]);
  const trace = (outer, inner, differs, line) => {
    for (let o = 0; o <= outer; o += 1) {
      for (let i = 0, start = -1; i <= inner; i += 1) {
        const edge = i < inner && differs(o, i);
        if (edge && start < 0) start = i;
        if (!edge && start >= 0) {
          line(o, start, i);
          start = -1;
        }
      }
    }
  };
  trace(
    height,
    width,
    (y, x) => at(x, y) !== at(x, y - 1),
    (y, from, to) => {
      path.moveTo(from, y);
      path.lineTo(to, y);
    },
  );
  trace(
    width,
    height,
    (x, y) => at(x, y) !== at(x - 1, y),
    (x, from, to) => {
      path.moveTo(x, from);
      path.lineTo(x, to);
    },
  );
  return path;
}
