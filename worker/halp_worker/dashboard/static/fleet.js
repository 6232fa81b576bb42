// The fleet: progress, workers, failures.

import { throughputChart } from "./throughput.js";
import { byId, each, el, say } from "./dom.js";
import { ago, bytes, clock, count, duration, percent, rate } from "./words.js";

const FATES = [
  ["done", "done", "stored, or in the store already"],
  ["failed", "failed", "ended with a reason; see below"],
  ["in_flight", "in flight", "in the hands of a worker"],
  ["delayed", "delayed", "wait for another try"],
  ["waiting", "waiting", "no worker has them yet"],
];
const LOST_S = 5;

let chart = null;

export function showFleet(latest) {
  const { status, server } = latest;
  const age = server.read_s === null ? null : latest.now_s - server.read_s;
  say(byId("fleet-age"), age !== null && age > LOST_S ? `as of ${ago(age)}` : "");
  byId("fleet").classList.toggle("stale", server.problem !== null);
  progress(status, latest);
  workers(status?.workers ?? []);
  failures(latest);
}

export function showThroughput(answer) {
  chart ??= throughputChart(byId("throughput"));
  chart.show(answer);
}

function progress(status, latest) {
  const numbers = Object.fromEntries(FATES.map(([name]) => [name, status?.[name] ?? 0]));
  const all = status?.enqueued ?? 0;
  say(byId("share"), percent(numbers.done, all));
  say(byId("of"), status ? `${count(numbers.done)} of ${count(all)} stored` : "nothing is known of this run");
  const moves = status !== null && status.seconds_left !== null;
  byId("pace").parentElement.hidden = byId("left").parentElement.hidden = !moves;
  say(byId("pace"), rate(status?.rows_per_second));
  say(byId("left"), moves ? duration(status.seconds_left) : "");
  say(byId("still"), moves ? "" : status?.progress ?? "");
  const bar = byId("bar");
  const shown = FATES.filter(([name]) => numbers[name] > 0);
  each(bar, shown.map(([name]) => name), (name) => name, (name) => el("span", { class: name }));
  shown.forEach(([name], at) => { bar.children[at].style.flexGrow = numbers[name]; });
  bar.setAttribute("aria-label", FATES.map(([name, word]) => `${count(numbers[name])} ${word}`).join(", "));
  each(byId("legend"), FATES.map((one) => [...one, numbers[one[0]]]), ([name]) => name, ([name, word, title, number]) =>
    el("li", { title }, el("span", { class: `swatch ${name}` }), el("b", {}, count(number)), ` ${word}`));
}

function workers(all) {
  const alive = all.filter((one) => one.alive);
  say(byId("workers-sum"), all.length ? `${count(alive.length)} alive of ${count(all.length)}` : "");
  const none = byId("workers-none");
  none.hidden = all.length > 0;
  say(none, "No worker has shown up yet.");
  const sorted = [...all].sort((one, other) => Number(other.alive) - Number(one.alive));
  each(byId("workers"), sorted, (one) => one.worker, workerRow);
}

function workerRow({ worker, alive, state, in_flight: inFlight, seen_seconds_ago: seen, activity }) {
  const cell = (label, value, attributes = {}) =>
    el("td", { "data-label": label, ...attributes }, value);
  const number = (label, value) => cell(label, value, { class: "num" });
  const said = activity ?? {};
  return el("tr", { class: alive ? "alive" : "gone" },
    el("th", { scope: "row" },
      el("span", { class: `state ${alive ? "alive" : "gone"}`, title: state }),
      el("span", { class: "name", dir: "auto", title: worker }, worker),
      el("span", { class: "tag", dir: "auto" }, state)),
    cell("Host", said.host ?? "–", { dir: "auto" }),
    cell("Device", said.device ?? "–", { dir: "auto" }),
    cell("Model", said.model ?? "–", { class: "cut", dir: "auto", title: said.model }),
    number("Batch", said.batch_jobs ? count(said.batch_jobs) : "–"),
    number("In hand", count(inFlight)),
    number("Rows/s", alive ? rate(said.rows_per_second) : "–"),
    number("Done", activity ? count(said.done) : "–"),
    number("Failed", activity ? count(said.failed) : "–"),
    number("Memory", said.memory_bytes ? bytes(said.memory_bytes) : "–"),
    number("Seen", ago(seen)));
}

function failures(latest) {
  const { status } = latest;
  const byReason = Object.entries(status?.failed_by_reason ?? {}).filter(([, number]) => number > 0);
  byReason.sort(([, one], [, other]) => other - one);
  const most = Math.max(1, ...byReason.map(([, number]) => number));
  say(byId("failures-sum"), status?.failed ? `${count(status.failed)} in all` : "");
  each(byId("reasons"), byReason, ([reason]) => reason, ([reason, number]) => {
    const bar = el("span", { class: "fill" });
    bar.style.width = `${(100 * number) / most}%`;
    return el("li", {}, el("span", { class: "reason", dir: "auto" }, reason), el("span", { class: "track" }, bar),
      el("b", {}, count(number)));
  });
  each(byId("failures"), latest.failures, (one) => one.entry_id, failure);
  const more = byId("failures-more");
  if (!status?.failed) say(more, status ? "None." : "");
  else {
    const option = latest.run === "default" ? "" : ` --run ${latest.run}`;
    const shown = Math.min(latest.failures.length, status.failed);
    say(more, `The newest ${count(shown)} of ${count(status.failed)}. All of them: halp-producer failed list${option}`);
  }
}

function failure(one) {
  const tries = one.attempts === null ? [] : [`${count(one.attempts)} ${one.attempts === 1 ? "try" : "tries"}`];
  const when = one.failed_ms === null ? [] : [clock(one.failed_ms / 1000)];
  return el("li", {},
    el("div", { class: "line" },
      el("b", { dir: "auto" }, one.question_id || one.entry_id),
      el("span", { class: "tag bad", dir: "auto" }, one.reason),
      el("span", { class: "muted" }, [...when, ...tries].join(" · "))),
    el("p", { dir: "auto" }, one.error),
    one.question ? el("p", { class: "muted cut", dir: "auto" }, one.question) : null);
}
