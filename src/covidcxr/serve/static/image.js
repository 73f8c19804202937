/** Pictures as grey values, and what a window makes of them. All have the image's own size. */

/** Decode a PNG: `{ width, height, grey }`, grey a byte a pixel. */
export async function decode(png) {
  const bitmap = await createImageBitmap(png, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  const context = canvasOf(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const grey = new Uint8Array(width * height);
  for (let at = 0; at < grey.length; at += 1) grey[at] = data[4 * at];
  return { width, height, grey };
}

/** A canvas that is not on the page. */
export function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** Colour bytes as one number, in the order in which this machine keeps them in a picture. */
export const rgba = (red, green, blue, alpha = 255) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

/** Paint every byte of `grey` in the colour that `colors` (256 numbers of `rgba`) has for it, within a rectangle. */
export function paint(canvas, grey, colors, [left, top, right, bottom] = [0, 0, canvas.width, canvas.height]) {
  if (right <= left || bottom <= top) return;
  const picture = new ImageData(right - left, bottom - top);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let y = top, to = 0; y < bottom; y += 1) {
    for (let from = y * canvas.width + left, x = left; x < right; x += 1) pixels[to++] = colors[grey[from++]];
  }
  canvas.getContext("2d").putImageData(picture, left, top);
}

/** An image under a window: greys from `level - width / 2` to `level + width / 2` spread from black to white. */
export class WindowedImage {
  width = 255;
  level = 127.5;
  inverted = false;

  constructor({ width, height, grey }) {
    this.size = [width, height];
    this.grey = grey;
    this.canvas = canvasOf(width, height);
    this.develop();
  }

  /** Paint the image anew under its window. */
  develop() {
    const colors = new Uint32Array(256);
    for (let value = 0; value < 256; value += 1) {
      const share = Math.min(1, Math.max(0, (value - this.level) / this.width + 0.5));
      const shade = Math.round(255 * (this.inverted ? 1 - share : share));
      colors[value] = rgba(shade, shade, shade);
    }
    paint(this.canvas, this.grey, colors);
  }

  /** The window from the darkest to the brightest percent: `[width, level]`. */
  spread() {
    const counts = new Uint32Array(256);
    for (const value of this.grey) counts[value] += 1;
    const rank = (share) => {
      let value = 0;
      for (let seen = counts[0]; seen < share * this.grey.length && value < 255; seen += counts[value]) value += 1;
      return value;
    };
    const [low, high] = [rank(0.01), rank(0.99)];
    return [Math.max(2, high - low), (low + high) / 2];
  }
}
