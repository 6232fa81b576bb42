// Which view is shown, and what is asked for how often.

import * as address from "./address.js";
import { get } from "./api.js";
import { byId, each, el, say } from "./dom.js";
import { showFleet, showThroughput } from "./fleet.js";
import { showQuestion } from "./question.js";
import { noticeRows, showQuestions } from "./questions.js";
import { count } from "./words.js";

const EVERY_MS = 1000;

let latest = null;
let lost = null;

function show() {
  const place = address.read();
  for (const view of ["fleet", "questions"]) byId(view).hidden = view !== place.view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === place.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (place.view === "questions") showQuestions(place);
  else showLatest(place);
  showQuestion(place);
}

function showLatest(place) {
  if (latest && place.view === "fleet") showFleet(latest);
}

function notices() {
  const found = [];
  if (lost) found.push({ kind: "bad", title: "No connection", text: lost });
  else if (latest?.server.problem) found.push({ kind: "warn", title: "Server", text: latest.server.problem });
  if (!lost && latest?.store.problem) found.push({ kind: "warn", title: "Store", text: latest.store.problem });
  each(byId("notices"), found, (one) => one.title, ({ kind, title, text }) =>
    el("p", { class: `notice ${kind}` }, el("b", {}, title), el("span", { dir: "auto" }, text)));
}

async function poll() {
  if (!document.hidden) {
    try {
      latest = await get("/api/status");
      lost = null;
      const place = address.read();
      say(byId("run"), latest.run);
      say(byId("store"), latest.store.path);
      byId("store").title = latest.store.path;
      const rows = latest.store.rows;
      say(byId("rows"), rows === null ? "" : count(rows));
      document.title = `${latest.run} · halp-stream`;
      showLatest(place);
      noticeRows(latest);
      if (place.view === "fleet") showThroughput(await get("/api/throughput"));
    } catch (error) {
      lost = error.message;
    }
    document.body.classList.toggle("lost", lost !== null);
    notices();
  }
  setTimeout(poll, EVERY_MS);
}

addEventListener("hashchange", show);
show();
poll();
