// The list of stored questions: searched, filtered, a page at a time; new rows come by themselves.

import * as address from "./address.js";
import { get } from "./api.js";
import { byId, each, el, say } from "./dom.js";
import { picture } from "./picture.js";
import { badge } from "./verdict.js";
import { count } from "./words.js";

const NEW_ROWS_MS = 2000;

let place = null; // as it is shown
let shownChanges = null; // of the store, when the list was loaded
let loadedAt = 0;
let loading = null;
let latest = null;
/** Ids of the page that is shown, for the next and the previous one. */
export let pageIds = [];

export function showQuestions(wanted) {
  const before = place;
  place = wanted;
  const same = before && address.href({ ...before, id: null }) === address.href({ ...wanted, id: null });
  if (same && loadedAt) return;
  byId("text").value = wanted.text;
  for (const one of document.getElementsByName("verdict")) one.checked = one.value === wanted.verdict;
  conditions();
  load();
}

/** The store may show other rows by now. */
export function noticeRows(status) {
  const isFirst = latest === null;
  latest = status;
  const names = status.store.about?.filters ?? [];
  each(byId("where-names"), names, (one) => one, (one) => el("option", { value: one }));
  if (place?.view !== "questions" || byId("questions").hidden) return;
  const isOther = status.store.changes !== shownChanges && Date.now() - loadedAt > NEW_ROWS_MS;
  if (isFirst || isOther) load({ quietly: true });
}

async function load({ anew = false, quietly = false } = {}) {
  if (quietly && loading) return;
  loading?.abort();
  const mine = (loading = new AbortController());
  const changes = latest?.store.changes ?? null;
  const params = address.asked(place);
  params.append("offset", place.offset);
  if (anew) params.append("anew", "1");
  if (!quietly) byId("list").classList.add("loading");
  try {
    show(await get("/api/questions", params, mine.signal));
  } catch (error) {
    if (error.name === "AbortError") return;
    nothing(error);
  } finally {
    if (loading === mine) {
      loading = null;
      loadedAt = Date.now();
      shownChanges = changes;
      byId("list").classList.remove("loading");
    }
  }
}

function show(answer) {
  pageIds = answer.rows.map((one) => one.question_id);
  each(byId("list"), answer.rows.map((one) => ({ ...one, href: link(one.question_id) })), (one) => one.question_id, row);
  found(answer);
  const none = byId("list-none");
  none.hidden = answer.rows.length > 0;
  say(none, isFiltered() ? "No stored question is like that." : "The store has no rows yet; they show up here as workers commit them.");
  for (const pager of document.querySelectorAll(".pager")) pages(pager, answer);
}

function nothing(error) {
  pageIds = [];
  each(byId("list"), [], (one) => one, () => null);
  byId("found").replaceChildren();
  for (const pager of document.querySelectorAll(".pager")) pager.replaceChildren();
  const none = byId("list-none");
  none.hidden = false;
  say(none, error.message);
}

const isFiltered = () => Boolean(place.text || place.verdict || place.where.length);
const link = (id) => address.href({ ...place, id });

function row(one) {
  const open = (event) => {
    // A selection is not a click, and the link answers for itself.
    if (!event.target.closest("a") && !String(getSelection())) location.hash = one.href;
  };
  return el("tr", { click: open },
    el("td", { class: "thumb" }, picture(one.question_id, "thumbnail", { alt: "", shown: latest?.pictures })),
    el("td", { class: "asked" },
      el("a", { href: one.href, dir: "auto" }, one.question_text || "(no question)"),
      el("small", { class: "id", dir: "auto" }, one.question_id)),
    el("td", { "data-label": "Truth", dir: "auto" }, one.ground_truth || "–"),
    el("td", { "data-label": "Answer", class: "answer", dir: "auto" }, one.answer || "–"),
    el("td", { class: "verdict" }, badge(one)));
}

function found(answer) {
  const { total, offset, rows, searched, of, newer_rows: newer } = answer;
  const parts = [];
  if (!rows.length) parts.push(total ? `${count(total)} found; this page is beyond the last` : "");
  else parts.push(el("span", {}, el("b", {}, `${count(offset + 1)}–${count(offset + rows.length)}`), ` of ${count(total)}${isFiltered() ? " found" : " questions"}`));
  const again = (text, options) => el("button", { type: "button", class: "plain", click: () => load(options) }, text);
  if (searched < of) {
    parts.push(el("span", { class: "warn-text" }, `stopped after ${count(searched)} of ${count(of)} rows`), again("Search on", {}));
  } else if (isFiltered() && newer > 0) {
    parts.push(el("span", {}, `${count(newer)} newer rows`), again("Search anew", { anew: true }));
  }
  byId("found").replaceChildren(...parts);
}

function pages(pager, { total, offset, page_rows: size }) {
  const last = Math.max(0, Math.floor((total - 1) / size) * size);
  const button = (text, title, target, off) => off
    ? el("span", { class: "page off", title, "aria-hidden": "true" }, text)
    : el("a", { class: "page", title, "aria-label": title, href: address.href({ ...place, id: null, offset: target }) }, text);
  if (total <= size && !offset) return pager.replaceChildren();
  return pager.replaceChildren(
    button("«", "First page", 0, offset === 0),
    button("‹", "Previous page", Math.max(0, offset - size), offset === 0),
    el("span", { class: "muted" }, `page ${count(Math.floor(offset / size) + 1)} of ${count(Math.floor(last / size) + 1)}`),
    button("›", "Next page", offset + size, offset + size >= total),
    button("»", "Last page", last, offset >= last));
}

function conditions() {
  const remove = (gone) => address.go({ ...place, id: null, offset: 0, where: place.where.filter((one) => one !== gone) });
  each(byId("conditions"), place.where, (one) => one, (one) => el("li", {},
    el("code", { dir: "auto" }, one),
    el("button", { type: "button", "aria-label": `Take off ${one}`, click: () => remove(one) }, "×")));
}

byId("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  const added = byId("where").value.trim();
  byId("where").value = "";
  const next = {
    ...place,
    text: byId("text").value.trim(),
    verdict: document.querySelector("[name=verdict]:checked").value,
    where: added && !place.where.includes(added) ? [...place.where, added] : place.where,
    offset: 0,
    id: null,
  };
  if (address.href(next) === address.href(place)) load({ anew: true });
  else address.go(next);
});
for (const one of document.getElementsByName("verdict")) {
  one.addEventListener("change", () => byId("filters").requestSubmit());
}
byId("text").addEventListener("search", () => {
  if (!byId("text").value && place?.text) byId("filters").requestSubmit();
});
