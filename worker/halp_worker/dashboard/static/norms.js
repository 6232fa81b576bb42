// Norms of the stored vectors over the layers, a line for each token position.

import { el, svg } from "./dom.js";
import { nice, trim } from "./scale.js";
import { norm } from "./words.js";

const WIDTH = 640;
const HEIGHT = 190;
const EDGE = { left: 52, right: 16, top: 12, bottom: 28 };

export function normsChart({ arrays, layers }) {
  const lines = Object.entries(arrays).filter(([, one]) => one.shape.length > 1);
  const values = lines.flatMap(([, one]) => one.norms).filter((value) => value !== null);
  if (!values.length) return el("p", { class: "muted" }, "There is nothing to draw.");
  const most = nice(Math.max(...values));
  const x = (at) => EDGE.left + (layers.length < 2 ? 0.5 : at / (layers.length - 1)) * (WIDTH - EDGE.left - EDGE.right);
  const y = (value) => HEIGHT - EDGE.bottom - (value / most) * (HEIGHT - EDGE.top - EDGE.bottom);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Euclidean norm by layer; the table below has the numbers" });
  for (const value of [0, most / 2, most]) {
    picture.append(
      svg("line", { class: "rule", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: EDGE.left - 8, y: y(value) + 4, "text-anchor": "end" }, trim(value)));
  }
  layers.forEach((layer, at) => picture.append(
    svg("text", { class: "tick", x: x(at), y: HEIGHT - 8, "text-anchor": "middle" }, String(layer))));
  lines.forEach(([name, one], number) => {
    const kind = `series-${number % 5}`;
    const known = one.norms.map((value, at) => [value, at]).filter(([value]) => value !== null);
    picture.append(svg("path", { class: `line ${kind}`, d: `M${known.map(([value, at]) => `${x(at)},${y(value)}`).join("L")}` }));
    for (const [value, at] of known) {
      picture.append(svg("circle", { class: `dot ${kind}`, cx: x(at), cy: y(value), r: 4 }, svg("title", {}, `${name}, layer ${layers[at]}: ${norm(value)}`)));
    }
  });
  const key = lines.map(([name], number) => el("li", { dir: "auto" }, el("span", { class: `swatch series-${number % 5}` }), name));
  return el("figure", { class: "norms" }, el("ul", { class: "key" }, ...key), picture);
}
