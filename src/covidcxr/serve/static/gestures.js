/** Mouse, pen, fingers and keys on the image. */

const STEP = 40;
const ARROWS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/** Let the viewer follow the hands, and the brush where it is in use. */
export function attachGestures(viewer, brush) {
  const { canvas } = viewer;
  const pointers = new Map();
  const place = ({ clientX, clientY }) => {
    const stage = canvas.getBoundingClientRect();
    return [clientX - stage.left, clientY - stage.top];
  };

  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", () => brush.active || viewer.fit());
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      if (viewer.image) viewer.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...place(event));
    },
    { passive: false },
  );

  canvas.addEventListener("pointerdown", (event) => {
    if (!viewer.image) return;
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { at: place(event), button: event.button });
    if (pointers.size === 2)
      brush.cancel(); // the second finger says that the first did not want to draw
    else if (brush.active && event.button === 0) brush.start(...viewer.toImage(...place(event)));
  });

  canvas.addEventListener("pointermove", (event) => {
    const pointer = pointers.get(event.pointerId);
    brush.hover(...viewer.toImage(...place(event)));
    if (!pointer || !viewer.image) return;
    const before = pointer.at;
    pointer.at = place(event);
    const moved = [pointer.at[0] - before[0], pointer.at[1] - before[1]];
    if (pointers.size === 2)
      pinch(viewer, [...pointers.values()].find((other) => other !== pointer).at, before, pointer.at);
    else if (pointer.button === 2) viewer.setWindow(viewer.image.width + moved[0], viewer.image.level + moved[1] / 2);
    else if (pointer.button === 0 && brush.drawing)
      traces(event).forEach((each) => brush.move(...viewer.toImage(...place(each))));
    else viewer.pan(...moved);
  });

  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      brush.end();
    });
  }
  canvas.addEventListener("pointerleave", () => brush.hover(null));

  canvas.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (!viewer.image || event.ctrlKey || event.metaKey || event.altKey) return;
    if (arrow && brush.active) brush.step(-arrow[0], -arrow[1], ...viewer.middle());
    else if (arrow) viewer.pan(STEP * arrow[0], STEP * arrow[1]);
    else if (event.key === " " && brush.active) brush.dab(...viewer.middle());
    else return;
    event.preventDefault();
  });
}

/** All places since the last frame, where the browser tells them: a quick stroke stays round. */
function traces(event) {
  const places = event.getCoalescedEvents?.() ?? [];
  return places.length ? places : [event];
}

function pinch(viewer, still, before, now) {
  const distance = ([x, y]) => Math.hypot(x - still[0], y - still[1]);
  const middle = ([x, y]) => [(x + still[0]) / 2, (y + still[1]) / 2];
  viewer.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  viewer.zoom(distance(now) / Math.max(1, distance(before)), ...middle(now));
}
