/** Clean-up of lung masks, as `covidcxr.transforms.postprocess` does it. A mask: `{ width, height, pixels }`, 0 or 1. */

const STEPS = {
  fill_holes: fillHoles,
  largest_components: keepLargest,
  remove_small_objects: removeSmall,
  remove_small_holes: (mask, { max_area: most = 0.002 }) => fillHoles(mask, { max_area: most }),
};

/** Run the steps of `export.json`. */
export function cleanMask(mask, steps) {
  return steps.reduce((cleaned, step) => {
    const { name, ...settings } = typeof step === "string" ? { name: step } : step;
    if (!(name in STEPS)) throw new Error(`The clean-up step "${name}" is not written for this page.`);
    return STEPS[name](cleaned, settings);
  }, mask);
}

/** Number connected parts from 1 up; `areas[0]`, of the rest, is 0. */
function label({ width, height, pixels }, corners = true) {
  const parts = new Int32Array(pixels.length);
  const areas = [0];
  const stack = [];
  for (let start = 0; start < pixels.length; start += 1) {
    if (!pixels[start] || parts[start]) continue;
    const part = areas.push(0) - 1;
    parts[start] = part;
    stack.push(start);
    while (stack.length) {
      const place = stack.pop();
      areas[part] += 1;
      const [x, y] = [place % width, Math.floor(place / width)];
      for (let down = -1; down <= 1; down += 1) {
        for (let along = -1; along <= 1; along += 1) {
          const inside = x + along >= 0 && x + along < width && y + down >= 0 && y + down < height;
          const next = place + down * width + along;
          if (!inside || (!corners && down && along) || !pixels[next] || parts[next]) continue;
          parts[next] = part;
          stack.push(next);
        }
      }
    }
  }
  return { parts, areas };
}

function largest(areas, number, share) {
  const order = areas.map((_, part) => part).sort((a, b) => areas[b] - areas[a] || a - b);
  return order.slice(0, number).filter((part) => areas[part] > 0 && areas[part] >= share * Math.max(...areas));
}

function keepLargest(mask, { count: number = 2, min_share: share = 0.05 }) {
  const { parts, areas } = label(mask);
  const kept = largest(areas, number, share);
  return { ...mask, pixels: Uint8Array.from(parts, (part) => kept.includes(part)) };
}

function removeSmall(mask, { min_area: least = 0.002 }) {
  const { parts, areas } = label(mask);
  const enough = areas.map((area) => area > 0 && area >= least * mask.pixels.length);
  return { ...mask, pixels: Uint8Array.from(parts, (part) => enough[part]) };
}

function fillHoles(mask, { max_area: most = null }) {
  const { width, height, pixels } = mask;
  const { parts, areas } = label({ width, height, pixels: pixels.map((set) => 1 - set) }, false);
  const hole = areas.map((area) => most === null || area <= most * pixels.length);
  for (let place = 0; place < pixels.length; place += 1) {
    const [x, y] = [place % width, Math.floor(place / width)];
    if (!x || !y || x === width - 1 || y === height - 1) hole[parts[place]] = false; // open to the border
  }
  return { ...mask, pixels: pixels.map((set, place) => set || (parts[place] && hole[parts[place]] ? 1 : 0)) };
}

/** The centres of the two lungs, or of what there is of them; lungs that touch count as two. */
export function findLungs(mask) {
  const small = coarse(mask);
  const { parts, areas } = label(small);
  const lungs = largest(areas, 2, 0.05);
  if (lungs.length === 1) return cores(small, parts, lungs[0]) ?? [centre(parts, lungs[0], small.width)];
  return lungs.map((lung) => centre(parts, lung, small.width));
}

/** Wear one body down from its edge until two are left that lie side by side and are of like size. */
function cores({ width, height }, parts, body) {
  const depth = edgeDistance({ width, height, pixels: Uint8Array.from(parts, (part) => part === body) });
  const deepest = depth.reduce((most, value) => Math.max(most, value), 0);
  for (let step = 1; step <= 12; step += 1) {
    const pixels = Uint8Array.from(depth, (value) => value > 0.05 * step * deepest);
    const worn = label({ width, height, pixels });
    const two = largest(worn.areas, 2, 0.25).map((part) => centre(worn.parts, part, width));
    if (two.length === 2 && Math.abs(two[0].x - two[1].x) > Math.abs(two[0].y - two[1].y)) return two;
  }
  return null;
}

/** Distance to the nearest pixel outside, by the steps 1 and 1.4 of a chamfer. */
function edgeDistance({ width, height, pixels }) {
  const depth = Float32Array.from(pixels, (set) => (set ? 1e6 : 0));
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : depth[y * width + x]);
  const near = [[-1, 0, 1], [0, -1, 1], [-1, -1, 1.4], [1, -1, 1.4]];
  for (const sign of [1, -1]) {
    for (let step = 0; step < depth.length; step += 1) {
      const place = sign > 0 ? step : depth.length - 1 - step;
      const [x, y] = [place % width, Math.floor(place / width)];
      for (const [along, down, far] of near) {
        depth[place] = Math.min(depth[place], at(x + sign * along, y + sign * down) + far);
      }
    }
  }
  return depth;
}

/** Every n-th pixel: some 200 show the shape as well. */
function coarse({ width, height, pixels }) {
  const step = Math.max(1, Math.floor(Math.max(width, height) / 200));
  const [columns, rows] = [Math.ceil(width / step), Math.ceil(height / step)];
  const kept = new Uint8Array(columns * rows);
  kept.forEach((_, place) => {
    kept[place] = pixels[Math.floor(place / columns) * step * width + (place % columns) * step];
  });
  return { width: columns, height: rows, pixels: kept };
}

function centre(parts, wanted, width) {
  let [x, y, area] = [0, 0, 0];
  parts.forEach((part, place) => {
    if (part !== wanted) return;
    x += place % width;
    y += Math.floor(place / width);
    area += 1;
  });
  return { x: x / area, y: y / area };
}
