// Throughput over the last hour. Where nothing is known the line has a gap.

import { el, svg } from "./dom.js";
import { nice, trim } from "./scale.js";
import { clock, count, rate } from "./words.js";

const HEIGHT = 220;
const EDGE = { left: 44, right: 14, top: 12, bottom: 26 };
const SHORTEST_S = 120;
const HOUR_S = 3600;
const TICKS_S = [15, 30, 60, 120, 300, 600, 900, 1200];

export function throughputChart(parent) {
  const tip = el("div", { class: "tip", hidden: true });
  const picture = svg("svg", { height: HEIGHT, role: "img" });
  parent.replaceChildren(picture, tip);
  let points = [];
  let nowS = 0;
  let chosen = null; // time of the point that is pointed at

  const box = () => ({ left: EDGE.left, right: Math.max(parent.clientWidth, 200) - EDGE.right, top: EDGE.top, bottom: HEIGHT - EDGE.bottom });

  function scales() {
    const { left, right, top, bottom } = box();
    const firstS = Math.max(nowS - HOUR_S, Math.min(points[0]?.at_s ?? nowS, nowS - SHORTEST_S));
    const most = nice(Math.max(0, ...points.map((one) => Math.max(one.done_per_second ?? 0, one.failed_per_second ?? 0))));
    return {
      firstS, most,
      x: (atS) => left + ((atS - firstS) / (nowS - firstS)) * (right - left),
      y: (value) => bottom - (value / most) * (bottom - top),
    };
  }

  function draw() {
    const { left, right, bottom } = box();
    const { firstS, most, x, y } = scales();
    picture.setAttribute("width", parent.clientWidth);
    picture.setAttribute("viewBox", `0 0 ${Math.max(parent.clientWidth, 200)} ${HEIGHT}`);
    const parts = [];
    for (const value of [0, most / 2, most]) {
      parts.push(svg("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }));
      parts.push(svg("text", { class: "tick", x: left - 8, y: y(value) + 4, "text-anchor": "end" }, trim(value)));
    }
    for (const atS of ticks(firstS, nowS, (right - left) / 90)) {
      if (x(atS) > right - 16) continue; // its end would be cut off
      parts.push(svg("text", { class: "tick", x: x(atS), y: HEIGHT - 8, "text-anchor": "middle" }, clock(atS, atS % 60 !== 0)));
    }
    for (const run of runs(points, "done_per_second")) {
      const line = run.map((one) => `${x(one.at_s).toFixed(1)},${y(one.done_per_second).toFixed(1)}`).join("L");
      parts.push(svg("path", { class: "area done", d: `M${x(run[0].at_s).toFixed(1)},${bottom}L${line}L${x(run.at(-1).at_s).toFixed(1)},${bottom}Z` }));
      parts.push(svg("path", { class: "line done", d: `M${line}` }));
    }
    for (const run of runs(points, "failed_per_second")) {
      if (run.every((one) => one.failed_per_second === 0)) continue;
      parts.push(svg("path", { class: "line failed", d: `M${run.map((one) => `${x(one.at_s).toFixed(1)},${y(one.failed_per_second).toFixed(1)}`).join("L")}` }));
    }
    if (!points.some((one) => one.done_per_second !== null)) {
      parts.push(svg("text", { class: "tick", x: (left + right) / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "Nothing was seen yet."));
    }
    point(parts, x, y);
    picture.replaceChildren(...parts);
  }

  function point(parts, x, y) {
    const one = chosen === null ? null : nearest(chosen);
    tip.hidden = one === null;
    if (one === null) return;
    const at = x(one.at_s);
    parts.push(svg("line", { class: "cross", x1: at, x2: at, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
    if (one.done_per_second !== null) parts.push(svg("circle", { class: "dot done", cx: at, cy: y(one.done_per_second), r: 4 }));
    const facts = one.done_per_second === null
      ? [["", "nothing known before this"]]
      : [["stored/s", rate(one.done_per_second)], ["failed/s", rate(one.failed_per_second)]];
    tip.replaceChildren(
      el("b", {}, clock(one.at_s)),
      ...[...facts, ["jobs left", count(one.left)], ["workers", count(one.workers)]].map(([name, value]) =>
        el("div", {}, el("span", {}, name), el("span", {}, value))));
    tip.style.left = `${Math.min(Math.max(at + 12, 0), parent.clientWidth - tip.offsetWidth - 4)}px`;
    if (at + 12 + tip.offsetWidth > parent.clientWidth) tip.style.left = `${Math.max(0, at - tip.offsetWidth - 12)}px`;
  }

  const nearest = (atS) => points.reduce((best, one) =>
    (best === null || Math.abs(one.at_s - atS) < Math.abs(best.at_s - atS) ? one : best), null);

  function choose(atS) {
    chosen = atS;
    draw();
  }

  parent.addEventListener("pointermove", (event) => {
    const { left, right } = box();
    const { firstS } = scales();
    const share = (event.clientX - picture.getBoundingClientRect().left - left) / (right - left);
    if (points.length) choose(firstS + share * (nowS - firstS));
  });
  parent.addEventListener("pointerleave", () => choose(null));
  parent.addEventListener("blur", () => choose(null));
  parent.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") choose(null);
    if (!step || !points.length) return;
    event.preventDefault();
    const at = chosen === null ? points.length : points.indexOf(nearest(chosen));
    choose(points[Math.min(points.length - 1, Math.max(0, at + step))].at_s);
  });
  new ResizeObserver(draw).observe(parent);

  return {
    show(answer) {
      points = answer.points.filter((one) => one.at_s > answer.now_s - HOUR_S);
      nowS = answer.now_s;
      const last = points.at(-1);
      picture.setAttribute("aria-label", last && last.done_per_second !== null
        ? `Throughput of the last hour; now ${rate(last.done_per_second)} stored and ${rate(last.failed_per_second)} failed a second. Arrow keys show values.`
        : "Throughput of the last hour; nothing was seen yet.");
      draw();
    },
  };
}

/** Points that follow each other without a gap. */
function* runs(points, name) {
  let run = [];
  for (const one of points) {
    if (one[name] === null) {
      if (run.length) yield run;
      run = [];
    } else run.push(one);
  }
  if (run.length) yield run;
}

function ticks(firstS, lastS, most) {
  const step = TICKS_S.find((one) => (lastS - firstS) / one <= most) ?? TICKS_S.at(-1);
  // Whole minutes and hours of the place where the page is read.
  const shift = 60 * new Date(1000 * firstS).getTimezoneOffset();
  const found = [];
  for (let at = Math.ceil((firstS - shift) / step) * step + shift; at <= lastS; at += step) found.push(at);
  return found;
}
